"""Preflight: what the TOML, the heads of the tables and this machine show, before any work of a job.

Every job of a night runs it first, so that a misspelt column of the last stage is refused before the first one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from pipelines.contracts.errors import ConfigError, TowerlineError
from pipelines.contracts.manifest import check_files, read_manifest
from pipelines.contracts.schema import TableName
from towerline.config import Config
from towerline.jobs.check.destinations import unwritable
from towerline.jobs.check.finding import Finding, raise_errors
from towerline.jobs.check.heads import Heads
from towerline.jobs.check.named_columns import Columns, missing_columns
from towerline.jobs.extras import Need, missing_extras, pip_line
from towerline.jobs.stages import FEATURES

NIGHT: tuple[Need, ...] = ("features", "train", "embed", "build", "publish")


def needs_of_night(config: Config) -> tuple[Need, ...]:
    """What a refresh runs: the stages, and the report where ``refresh.evaluate`` asks for it."""
    return (*NIGHT, "evaluate") if config.refresh.evaluate else NIGHT


def require(config: Config, needs: Sequence[Need], *, previous: Path | None = None) -> None:
    """Refuses what some stages would refuse later.

    Args:
        config: the whole configuration.
        needs: the stages that will run.
        previous: the features folder that the caller named to build upon.

    Raises:
        TowerlineError: something is missing or wrong; each is a line of the message, with key and remedy.
    """
    raise_errors(preflight(config, needs, previous=previous))


def preflight(config: Config, needs: Sequence[Need], *, previous: Path | None = None) -> Iterator[Finding]:
    """What ``require`` refuses, as findings; all of them are errors. Writes nothing."""
    yield from of_installation(config, needs)
    if previous is not None:
        yield from _previous(previous)
    if "features" in needs:
        heads = Heads.read(config)
        yield from heads.wrong
        yield from of_heads(config, heads)
    else:
        yield from missing_columns(config, _kept_columns(config.work / FEATURES), later=True)


def of_installation(config: Config, needs: Sequence[Need]) -> Iterator[Finding]:
    """Errors for missing extras, and for places that cannot be written."""
    yield from _extras(config, needs)
    yield from unwritable(config, registry="publish" in needs)


def of_heads(config: Config, heads: Heads) -> Iterator[Finding]:
    """Errors for columns that the TOML names and the tables do not have."""
    yield from missing_columns(config, heads.columns)


def _extras(config: Config, needs: Sequence[Need]) -> Iterator[Finding]:
    missing = missing_extras(needs, sharded=config.index.shards > 1, evaluation=config.evaluation)
    if missing:
        modules = ", ".join(dict.fromkeys(module for found in missing.values() for module in found))
        yield Finding("extras", "error", f"this needs {modules}, not installed.", f"Install with: {pip_line(missing)}")


def _previous(folder: Path) -> Iterator[Finding]:
    """A folder that the caller named must hold features: a run in full in its place would be no answer."""
    try:
        if not folder.is_dir():
            raise ConfigError(f"--previous: {folder}: expected a features folder, found none. Correct the path.")
        manifest = read_manifest(folder)
        if manifest.kind != "features":
            raise ConfigError(
                f"--previous: {folder}: expected an artifact of kind 'features', found {manifest.kind!r}. "
                "Correct the path."
            )
        check_files(folder, manifest, verify=False)
    except TowerlineError as err:
        yield Finding.of("--previous", err)


def _kept_columns(features: Path) -> Columns:
    """The columns that the features keep; none where there are no features yet."""
    kept: dict[TableName, list[str]] = {}
    tables: tuple[TableName, ...] = ("items", "users")
    for table in tables:
        part = next(iter(sorted((features / table).glob("part-*.parquet"))), None)
        if part is not None:
            kept[table] = pq.read_schema(part).names
    return kept
