"""The stage plan: which stages would run, and why. Reads manifests, and hashes files of tables that have changed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import Manifest, check_files, plain_config, read_manifest
from pipelines.features.increment import decide
from pipelines.features.planning import Inputs
from pipelines.features.task import roll_of
from towerline.config import Config
from towerline.jobs.stages import FEATURES, FeaturesStage, Stage, stages_of

State = Literal["up to date", "would run", "would append"]


@dataclass(frozen=True)
class StageState:
    """What a refresh would do with one stage, and why."""

    stage: str
    state: State
    reason: str


def plan_night(config: Config, inputs: Inputs) -> tuple[StageState, ...]:
    """The stages in their order; once one would run, those after it would, too.

    Args:
        config: the whole configuration.
        inputs: the files of the tables, with their contents hashed.
    """
    states: list[StageState] = []
    for stage in stages_of(config):
        if stage.folder == FEATURES:
            states.append(_features(config, inputs))
        elif states[-1].state != "up to date":
            states.append(StageState(stage.title, "would run", f"{states[-1].stage} would"))
        else:
            states.append(_later(config, stage))
    return tuple(states)


def _features(config: Config, inputs: Inputs) -> StageState:
    folder = config.work / FEATURES
    if not folder.is_dir():
        return StageState("features", "would run", "there are no features yet")
    reason = _why_stale(folder, inputs.fingerprints(), FeaturesStage().settings(config))
    roll = roll_of(config.schema_only(), None, None)
    if reason is None and (roll is None or roll.is_met_by(read_manifest(folder).facts)):
        return StageState("features", "up to date", "tables and schema are those of the last run")
    decision = decide(folder, config.schema_only(), inputs.events, roll)
    if decision.previous is None:
        return StageState("features", "would run", f"in full: {decision.reason}")
    new = len(decision.previous.new_files)
    moved = "the windows move, " if reason is None else ""
    return StageState("features", "would append", f"{moved}{new} new file{'' if new == 1 else 's'} of events")


def _later(config: Config, stage: Stage) -> StageState:
    try:
        inputs = stage.inputs(config)
    except ArtifactError as err:
        return StageState(stage.title, "would run", str(err))
    reason = _why_stale(config.work / stage.folder, inputs, stage.settings(config))
    if reason is None:
        return StageState(stage.title, "up to date", "its inputs and settings are those of the last run")
    return StageState(stage.title, "would run", reason)


def _why_stale(folder: Path, inputs: dict[str, str], settings: dict[str, Any]) -> str | None:
    """Why an artifact is not what a run would write; None if it is. Unlike the stages' own look it removes nothing."""
    try:
        manifest = read_manifest(folder)
        check_files(folder, manifest, verify=False)
    except ArtifactError as err:
        return f"there is no {folder.name} yet" if not folder.is_dir() else str(err)
    return _difference(manifest, inputs, settings)


def _difference(manifest: Manifest, inputs: dict[str, str], settings: dict[str, Any]) -> str | None:
    changed = sorted(
        name for name in inputs.keys() | manifest.inputs.keys() if inputs.get(name) != manifest.inputs.get(name)
    )
    if changed:
        return f"changed: {', '.join(changed)}"
    before, now = manifest.config, plain_config(settings)
    keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f"settings changed: {', '.join(keys)}" if keys else None
