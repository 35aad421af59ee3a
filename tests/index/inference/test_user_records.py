"""User records: their contents, and that a build and the gates read the sequences once."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.publishing.gates import judge
from index.registry.bundle import Bundle
from index.settings import GatesSettings, IndexSettings
from pipelines.sequences.reader import Sequences
from tests.index.stage_artifacts import Stages, write_stages


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return write_stages(tmp_path_factory.mktemp("stages"), items=300, users=80, dim=8)


@pytest.fixture(scope="module")
def embeddings(stages: Stages) -> Path:
    return embed.run(stages.model, stages.features, stages.root / "embeddings")


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The features whose sequences are read during a test, once for each time."""
    read: list[Path] = []
    whole = Sequences.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Sequences], features: Path) -> Sequences:
        read.append(features)
        opened: Sequences = whole(cls, features)
        return opened

    monkeypatch.setattr(Sequences, "open", classmethod(counted))
    return read


def test_a_build_and_the_gates_read_the_sequences_once(
    stages: Stages, embeddings: Path, tmp_path: Path, opens: list[Path]
) -> None:
    settings = IndexSettings(tuning_queries=20, include_users=True)
    built = build.run(embeddings, stages.model, stages.features, settings, tmp_path / "bundle")
    assert opens == [stages.features]
    opens.clear()
    # More users than have held-out events: the panel is filled up with others.
    judge(Bundle.open(built), Bundle.open(built), stages.features, GatesSettings(panel=200))
    assert opens == [stages.features]


def test_an_evaluation_opens_the_version_once(
    stages: Stages, embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IndexSettings(tuning_queries=20)
    built = build.run(embeddings, stages.model, stages.features, settings, tmp_path / "bundle")
    opened: list[Path] = []
    whole = Bundle.open.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Bundle], directory: Path, *, verify: bool = True) -> Bundle:
        opened.append(directory)
        bundle: Bundle = whole(cls, directory, verify=verify)
        return bundle

    monkeypatch.setattr(Bundle, "open", classmethod(counted))
    subject = Subject.open(built, EvaluationData.open(stages.features, EvaluationSettings()))
    assert subject.bundle.num_items == 300
    assert opened == [built]
