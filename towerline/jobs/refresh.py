"""The nightly job: ``towerline refresh``. Tables to a published version, stage by stage.

Reads the configuration; writes the artifacts below the run's folder and a version in the registry. One refresh at a
time holds the run's lock. Each stage's artifact is there whole or not at all, and its manifest says what it was made
from: a stage whose inputs and configuration are unchanged is skipped, and so a killed refresh goes on from the last
good stage. ``refresh.json`` says what the last refresh did.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.publishing.publish import Options, Publication
from index.publishing.publish import run as publish
from index.publishing.verdict import Verdict
from index.registry.registry import Registry
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact, read_manifest, write_durably
from pipelines.drafts import sweep
from pipelines.features.kept_list import NOBODY
from pipelines.locks import file_lock
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.forget_list import ForgetList
from towerline.config import Config
from towerline.jobs.erasure.outcome import ForgetOutcome
from towerline.jobs.stages import (
    BUNDLE,
    FEATURES,
    FEATURES_STAGE,
    MODEL,
    STAGES,
    TRAIN_STAGE,
    Stage,
    StageCall,
)

if TYPE_CHECKING:
    from towers.training.warm_start import WarmStart

REPORT_FILE = "refresh.json"
_LOCK_FILE = ".refresh.lock"

Outcome = Literal["ran", "reused"]


@dataclass(frozen=True)
class StageOutcome:
    """What became of one stage. name: of its folder."""

    name: str
    outcome: Outcome
    seconds: float
    fingerprint: str


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did.

    ``version``: live at its end. ``published``: whether this refresh put it there. ``forgotten``: what became of the
    forget list, where one was given.
    """

    version: str | None
    published: bool
    stages: tuple[StageOutcome, ...]
    verdicts: tuple[Verdict, ...]
    report: Path
    forgotten: ForgetOutcome | None = None


def run(
    config: Config,
    *,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
    force_reason: str | None = None,
    dry_run: bool = False,
    forget: ForgetList = NOBODY,
    remember: ForgetList = NOBODY,
) -> Refreshed:
    """Runs what is not up to date, from the tables to CURRENT.

    Args:
        config: the whole configuration; artifacts go below ``config.work``.
        beam_args: for Beam, unchanged.
        progress: shows each stage, and one line per gate.
        force_reason: publish against failed gates, and say why.
        dry_run: let the gates decide, publish nothing.
        forget: users to erase. The features run again unless they are made without all of these users already.
        remember: users to take off the list of those to erase.

    Raises:
        TowerlineError: another refresh holds the lock for longer than ``refresh.lock_wait_minutes``, or a stage failed;
            what was live stays live, and the next refresh goes on from the last good stage.
        GateError: a gate failed.
    """
    call = StageCall(config, tuple(beam_args), progress, forget=forget, remember=remember)
    options = Options(dry_run, force_reason, config.refresh.keep_versions)
    config.work.mkdir(parents=True, exist_ok=True)
    with file_lock(config.work / _LOCK_FILE, 60.0 * config.refresh.lock_wait_minutes):
        for stage in STAGES:
            sweep(call.folder(stage.folder))
        return _run(call, options)


def _run(call: StageCall, options: Options) -> Refreshed:
    config, progress = call.config, call.progress
    started = datetime.datetime.now(datetime.UTC).isoformat()
    outcomes = []
    forgotten: ForgetOutcome | None = None
    for number, stage in enumerate(STAGES, start=1):
        progress.stage(number, len(STAGES) + 1, stage.verb)
        outcome = _outcome(stage, call)
        state = "up to date" if outcome.outcome == "reused" else f"done in {outcome.seconds:.1f} s"
        progress.line(f"{outcome.name}: {state}")
        if stage is FEATURES_STAGE:
            forgotten = _forget_outcome(call, outcome)
        outcomes.append(outcome)
    progress.stage(len(STAGES) + 1, len(STAGES) + 1, "publish")
    publication = _publish(config, options, progress)
    live = Registry(config.registry).current_or_none()
    file = config.work / REPORT_FILE
    refreshed = Refreshed(live, publication.version is not None, tuple(outcomes), publication.verdicts, file, forgotten)
    write_durably(file, json.dumps(_plain(refreshed, started), indent=2).encode())
    if config.refresh.evaluate and live is not None:
        _evaluate(config, progress)
    return refreshed


def _forget_outcome(call: StageCall, features: StageOutcome) -> ForgetOutcome | None:
    """What became of the forget list, if there is one; also shown."""
    if not len(call.forget):
        return None
    facts = read_manifest(call.folder(FEATURES)).facts["forgotten"]
    done = ForgetOutcome.of(call.forget, facts) if features.outcome == "ran" else ForgetOutcome.before_all(call.forget)
    call.progress.line(done.line)
    return done


def _plain(refreshed: Refreshed, started: str) -> dict[str, Any]:
    forgotten = None if refreshed.forgotten is None else refreshed.forgotten.as_fact()
    plain = asdict(dataclasses.replace(refreshed, forgotten=None))
    return {**plain, "forgotten": forgotten, "report": str(refreshed.report.name), "started_at": started}


def _outcome(stage: Stage, call: StageCall) -> StageOutcome:
    """Runs the stage where its artifact is not current."""
    begun = time.perf_counter()
    path = call.folder(stage.folder)
    current = stage.is_current(call.config) and (stage is not FEATURES_STAGE or FEATURES_STAGE.has_done(call))
    if not current:
        stage.run(_tonight(stage, call))
    fingerprint = read_manifest(path).fingerprint
    return StageOutcome(stage.folder, "reused" if current else "ran", time.perf_counter() - begun, fingerprint)


def _tonight(stage: Stage, call: StageCall) -> StageCall:
    """The call with what a night adds: features go on from the last ones, training from the live model."""
    if stage is FEATURES_STAGE:
        path = call.folder(FEATURES)
        return dataclasses.replace(call, previous=path if path.is_dir() else None)
    if stage is TRAIN_STAGE:
        return dataclasses.replace(call, warm=_warm_start(call))
    return call


def _warm_start(call: StageCall) -> WarmStart | None:
    """The live version's model to go on from; None where this night trains in full."""
    from towers.training.warm_start import WarmStart

    config, progress = call.config, call.progress
    if not config.refresh.warm_nights:
        return None
    path = config.work / MODEL
    try:
        reason = _why_full(config, path)
    except ArtifactError as err:
        reason = str(err)
    if reason is not None:
        progress.line(f"train: in full, because {reason}")
        return None
    warm = WarmStart(path, config.refresh.warm_epochs)
    progress.line(f"train: goes on from the live model, night {warm.nights()} of {config.refresh.warm_nights}")
    return warm


def _why_full(config: Config, path: Path) -> str | None:
    """Why the night cannot go on from the model at ``path``; None where it can.

    Raises:
        ArtifactError: the model or the live version is missing or damaged.
    """
    from towers.training.warm_start import FORGOTTEN_USERS, forgotten_users, nights_of

    registry = Registry(config.registry)
    if registry.current_or_none() is None:
        return "nothing is live yet"
    model = open_artifact(path, kind="model").manifest
    if registry.open(verify=False).bundle.manifest.inputs[MODEL] != model.fingerprint:
        return "the last model is not the live one"
    if model.config != TRAIN_STAGE.settings(config):
        return "[towers] or the seed changed"
    if _features_of(path) != _features_of(config.work / FEATURES):
        return "the schema changed"
    if forgotten_users(read_manifest(config.work / FEATURES)) != model.facts.get(FORGOTTEN_USERS, 0):
        return "the list of forgotten users changed, and the last model has learned from their events"
    nights = nights_of(model)
    return f"{nights} nights have gone on from the last full training" if nights >= config.refresh.warm_nights else None


def _features_of(artifact: Path) -> dict[str, Any]:
    """What the towers' inputs depend on."""
    schema = json.loads((artifact / "schema.json").read_text())
    return {name: schema[name] for name in ("features", "history", "actions")}


def _publish(config: Config, options: Options, progress: Progress) -> Publication:
    """Publishes, unless this very bundle was published before.

    A version that was rolled back is not put back by the next refresh of unchanged tables; ``towerline publish`` does.
    """
    registry, bundle = Registry(config.registry), config.work / BUNDLE
    fingerprint = read_manifest(bundle).fingerprint
    known = [version for version in registry.versions() if version.fingerprint == fingerprint]
    if known and not options.dry_run and registry.current_or_none() is not None:
        if known[-1].live:
            progress.line(f"publish: up to date, {known[-1].name} is live")
        else:
            progress.line(
                f"publish: {known[-1].name} was published before and is not live: somebody rolled it back. "
                "It stays so; `towerline publish` makes it live again."
            )
        return Publication(None, (), forced=False)
    publication = publish(bundle, config.work / FEATURES, config.registry, config.gates, options, progress=progress)
    progress.line(
        f"publish: {publication.version} is live" if publication.version else "publish: dry run, nothing moved"
    )
    return publication


def _evaluate(config: Config, progress: Progress) -> None:
    from index.evaluation.evaluate import evaluate

    features = config.work / FEATURES
    if not features.exists():
        raise ArtifactError(f"{features}: missing. Run `towerline features`.")
    evaluate(config.registry, features, config.evaluation, config.work, progress=progress)
