"""The stages: the single verbs and the nightly job agree on what is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import read_manifest
from tests.worlds import write_marketplace
from towerline.jobs import refresh
from towerline.jobs.stages import StageCall
from towerline.jobs.stages.night import _STAGES as STAGES
from towerline.project import Project, open_project

FEATURES_STAGE, TRAIN_STAGE, EMBED_STAGE, BUILD_STAGE = STAGES
SMALL = ("towers.epochs=1", "towers.min_steps=2", "towers.embedding_dim=8", "towers.refit=false", "index.engine=exact")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project after features, train, embed and build, each run alone."""
    root = tmp_path_factory.mktemp("stages")
    opened = open_project(write_marketplace(root), overrides=SMALL, work=root / "run")
    for verb in (opened.features, opened.train, opened.embed, opened.build):
        assert verb().is_file()
    return opened


def test_each_stage_reads_what_earlier_ones_write() -> None:
    written: list[str] = []
    for stage in STAGES:
        assert set(stage.reads) <= set(written)
        written.append(stage.folder)
    assert [stage.verb for stage in STAGES] == ["features", "train", "embed", "build"]


def test_what_single_verbs_wrote_is_current_for_the_nightly_job(project: Project) -> None:
    assert [stage.is_current(project.config) for stage in STAGES] == [True] * 4
    outcomes = [refresh._outcome(stage, StageCall(project.config)) for stage in STAGES]
    assert [outcome.outcome for outcome in outcomes] == ["reused"] * 4


def test_the_manifests_have_the_kind_and_the_format_of_the_table(project: Project) -> None:
    for stage in STAGES:
        manifest = read_manifest(project.work / stage.folder)
        assert (manifest.kind, manifest.format_version) == stage.identity()
        assert manifest.inputs == stage.inputs(project.config)


@pytest.mark.parametrize(
    ("override", "stale"),
    [
        ("towers.epochs=2", {TRAIN_STAGE}),
        ("seed=3", {FEATURES_STAGE, TRAIN_STAGE}),
        ("index.tuning_queries=11", {BUILD_STAGE}),
        ("retriever.new_items_share=0.1", {BUILD_STAGE}),
        ("gates.panel=20", set()),
        ("history.max_length=21", {FEATURES_STAGE}),
    ],
)
def test_a_changed_setting_makes_its_own_stage_stale(project: Project, override: str, stale: set[object]) -> None:
    root = project.work.parent
    changed = open_project(root / "marketplace.toml", overrides=(*SMALL, override), work=project.work).config
    assert {stage for stage in STAGES if not stage.is_current(changed)} == stale


def test_a_stage_before_its_inputs_is_refused(tmp_path: Path) -> None:
    config = open_project(write_marketplace(tmp_path), work=tmp_path / "run").config
    assert not FEATURES_STAGE.is_current(config)
    for stage in (TRAIN_STAGE, EMBED_STAGE, BUILD_STAGE):
        with pytest.raises(ArtifactError, match=r"features|model|embeddings"):
            stage.is_current(config)
