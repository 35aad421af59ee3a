"""Nights for the refresh: features and models made beforehand, handed out as the first two stages would write them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pipelines.contracts.manifest import MANIFEST_FILE, Manifest, fingerprint_of, read_manifest
from pipelines.contracts.schema import DatasetSchema
from pipelines.features import job as features_stage
from tests.index.serving_bundles import SCHEMA
from tests.index.stage_artifacts import write_features, write_model
from towerline.config import Config
from towerline.jobs.stages import stage as stages
from towers.settings import TowersSettings
from towers.training import job as training

ITEMS, DIM = 200, 16


def write_nights(root: Path, nights: int) -> None:
    """Writes ``features-N`` and ``model-N`` below ``root``."""
    for night in range(nights):
        write_features(root / f"features-{night}", items=ITEMS + night, users=40, dim=DIM, seed=night)
        write_model(root / f"model-{night}", root / f"features-{night}", dim=DIM, seed=night)


def put(source: Path, out: Path, **facts: Any) -> None:
    """Puts a copy in place by one rename, as a stage does; ``facts`` are added to its manifest."""
    aside = out.parent / f".{out.name}.copy"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside)
    fields = read_manifest(aside).model_dump()
    fields["facts"] |= facts
    del fields["seal"]
    sealed = Manifest.model_validate({**fields, "seal": fingerprint_of(fields)})
    (aside / MANIFEST_FILE).write_text(sealed.model_dump_json())
    shutil.rmtree(out, ignore_errors=True)
    aside.rename(out)


@contextlib.contextmanager
def tables_of(stored: Path, night: Callable[[], int]) -> Iterator[None]:
    """Within it, the tables are those of a night, and the stages that read them write what was made beforehand."""

    class Inputs:
        @classmethod
        def find(cls, schema: DatasetSchema, *_: Path | None) -> type[Inputs]:
            return cls

        @staticmethod
        def fingerprints() -> dict[str, str]:
            return dict(read_manifest(stored / f"features-{night()}").inputs)

    def write(schema: DatasetSchema, out: Path, *rest: Any, delta_sequence: int, **named: Any) -> None:
        put(stored / f"features-{night()}", out, delta_sequence=delta_sequence)

    def train(features: Path, settings: TowersSettings, out: Path, **rest: Any) -> None:
        put(stored / f"model-{night()}", out)

    kept = stages.is_current

    def current(path: Path, **wanted: Any) -> bool:
        # What the first two were made with is the real stages' business.
        if wanted["kind"] in ("features", "model") and (path / "manifest.json").exists():
            wanted["config"] = read_manifest(path).config
        return kept(path, **wanted)

    with (
        mock.patch.object(features_stage, "Inputs", Inputs),
        mock.patch.object(features_stage, "run", write),
        mock.patch.object(training, "run", train),
        mock.patch.object(stages, "is_current", current),
    ):
        yield


def config(work: Path, **changes: Any) -> Config:
    """A configuration whose gates let every night pass."""
    gates = {"churn": None, "recall_drop": None, "latency_p99_us": None}
    sections = {"index": {"tuning_queries": 10}, "gates": gates, "paths": {"work": str(work)}}
    return Config.model_validate({**SCHEMA, **sections, **changes})
