"""Rolling nights for tests that run many: features, towers and vectors of both chains made beforehand, the rest real.

A night's stages write what was made for it, after a moment's work, so that a night takes about a second and can be
stopped anywhere. Training records what it went on from, as the real one does.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from index.building import embedding_job
from pipelines.contracts.manifest import Manifest, fingerprint_of, read_manifest, write_artifact
from pipelines.features import job as features_job
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.reader import Sequences, part_name, write_part
from tests.index.nights import put
from tests.index.serving_bundles import SCHEMA
from tests.index.stage_artifacts import DAY_US, TEST_FROM_US, write_features, write_model
from towerline.config import Config
from towerline.jobs.stages import stage as stages
from towers.settings import TowersSettings
from towers.training import job as training
from towers.training.warm_start import EPOCHS_FOUND, FORGOTTEN_USERS, NIGHTS, WarmStart

ITEMS, DIM = 200, 16
CHAINS = ("", "night/")


def write_nights(root: Path, nights: int) -> None:
    """Writes ``N/features``, ``N/model``, ``N/embeddings``, and the same below ``N/night``, for each night."""
    for night in range(nights):
        folder = root / str(night)
        window = {"history_from": None, "valid_from": TEST_FROM_US - 7 * DAY_US, "test_from": TEST_FROM_US}
        write_features(folder / "plain", items=ITEMS + night, users=40, dim=DIM, seed=night)
        _with_window(folder / "plain", folder / "features", {**window, "end": TEST_FROM_US + 7 * DAY_US})
        _whole(folder / "features", folder / "night" / "features")
        for place, chain in enumerate(CHAINS):
            features, model = folder / f"{chain}features", folder / f"{chain}model"
            write_model(model, features, dim=DIM, seed=2 * night + place)
            embedding_job.run(model, features, folder / f"{chain}embeddings")


def _with_window(source: Path, out: Path, window: dict[str, Any]) -> None:
    end_day = window["end"] // DAY_US - 1
    with write_artifact(out, kind="features", inputs={"events": source.parent.name}) as draft:
        shutil.copytree(source, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        facts = {"window": window, "days": {str(end_day): 1}, "delta_sequence": 0}
        draft.facts.update(read_manifest(source).facts, **facts)


def _whole(features: Path, out: Path) -> None:
    manifest, sequences = read_manifest(features), Sequences.open(features)
    end = manifest.facts["window"]["end"]
    with write_artifact(out, kind="features", inputs={"features": manifest.fingerprint}) as draft:
        shutil.copytree(features, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        events = sequences.events
        assert events.values is not None
        parts = (events.offsets, events.rows, events.times, events.actions, events.values)
        file = draft.dir / "sequences" / part_name(0, 1)
        file.unlink()
        write_part(Grouped(sequences.user_ids, *parts, np.zeros(len(events.rows), np.int8)), file)
        whole = {"history_from": None, "valid_from": end, "test_from": end, "end": end}
        draft.facts.update({**manifest.facts, "window": whole})


def config(work: Path, **changes: Any) -> Config:
    """A configuration whose windows roll and whose gates let every night pass."""
    gates = {"churn": None, "recall_drop": None, "agreement": None, "panel": 20, "reachable_items": None}
    sections = {
        "split": {"valid_days": 7, "test_days": 7},
        "index": {"tuning_queries": 10},
        "gates": gates,
        "paths": {"work": str(work)},
    }
    return Config.model_validate({**SCHEMA, **sections, **changes})


@contextlib.contextmanager
def nights_of(stored: Path, night: Callable[[], int], called: Callable[[str], None] = lambda _: None) -> Iterator[None]:
    """Within it, the tables are those of a night, and its stages up to the vectors write what was made beforehand.

    Args:
        stored: what ``write_nights`` wrote.
        night: tonight's number.
        called: what to do before a stage writes; it is given the folder below the run's.
    """

    class Inputs:
        @classmethod
        def find(cls, *_: Any) -> type[Inputs]:
            return cls

        @staticmethod
        def fingerprints() -> dict[str, str]:
            return dict(read_manifest(stored / str(night()) / "features").inputs)

    def features(schema: Any, out: Path, *_: Any, delta_sequence: int = 0, **__: Any) -> None:
        name = f"{_chain(out)}features"
        called(name)
        _put_with(stored / str(night()) / name, out, facts={"delta_sequence": delta_sequence})

    def train(features: Path, settings: TowersSettings, out: Path, **named: Any) -> None:
        name, warm = f"{_chain(out)}model", named["warm"]
        called(name)
        epochs = named.get("epochs")
        found = read_manifest(warm.model).facts[EPOCHS_FOUND] if warm is not None else 2 if epochs is None else epochs
        facts = {NIGHTS: 0 if warm is None else _checked(warm, out).nights(), EPOCHS_FOUND: found, FORGOTTEN_USERS: 0}
        made_with = {"towers": settings.model_dump(mode="json", exclude={"tune"}), "seed": named["seed"]}
        _put_with(stored / str(night()) / name, out, facts=facts, config=made_with)

    def embed(model: Path, features: Path, out: Path, *_: Any, **__: Any) -> None:
        name = f"{_chain(out)}embeddings"
        called(name)
        inputs = {"model": read_manifest(model).fingerprint, "features": read_manifest(features).fingerprint}
        _put_with(stored / str(night()) / name, out, inputs=inputs)

    kept = stages.is_current

    def current(path: Path, **wanted: Any) -> bool:
        if wanted["kind"] == "features" and (path / "manifest.json").exists():
            wanted["config"] = read_manifest(path).config
        return kept(path, **wanted)

    with (
        mock.patch.object(features_job, "Inputs", Inputs),
        mock.patch.object(features_job, "run", features),
        mock.patch.object(training, "run", train),
        mock.patch.object(embedding_job, "run", embed),
        mock.patch.object(stages, "is_current", current),
    ):
        yield


def _chain(out: Path) -> str:
    return "night/" if out.parent.name == "night" else ""


def _checked(warm: WarmStart, out: Path) -> WarmStart:
    """A chain goes on from its own model."""
    assert warm.model == out
    return warm


def _put_with(source: Path, out: Path, **changes: dict[str, Any]) -> None:
    """Puts a copy in place, its manifest changed as the real stage would have written it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    before = read_manifest(source)
    changes["facts"] = {**before.facts, **changes.get("facts", {})}
    content = before.model_dump(mode="json", exclude={"seal", "fingerprint"}) | changes
    kinds = {name: content[name] for name in ("kind", "format_version", "inputs", "config", "files")}
    fields = {**content, "fingerprint": fingerprint_of(kinds)}
    manifest = Manifest.model_validate({**fields, "seal": fingerprint_of(fields)})
    aside = out.parent / f".{out.name}.changed"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    (aside / "manifest.json").write_text(json.dumps(manifest.model_dump(mode="json")))
    put(aside, out)
    shutil.rmtree(aside)
