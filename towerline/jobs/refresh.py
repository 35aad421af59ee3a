"""The nightly job: ``towerline refresh``. Tables to a published version, stage by stage.

Reads the configuration; writes the artifacts below the run's folder and a version in the registry. With rolling
windows the stages run twice: for the backtest, and for what is published (docs/nightly.md). One refresh at a time holds
the run's lock. Each stage's artifact is there whole or not at all, and its manifest says what it was made from: a stage
whose inputs and configuration are unchanged is skipped, and so a killed refresh goes on from the last good stage.
``refresh.json`` says what the last refresh did.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from index.publishing.publish import Options, Publication
from index.publishing.publish import run as publish
from index.publishing.verdict import Verdict
from index.registry.registry import Registry
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import read_manifest, write_durably
from pipelines.drafts import sweep
from pipelines.locks import file_lock
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.kept_list import NOBODY
from towerline.config import Config
from towerline.jobs.erasure.outcome import ForgetOutcome
from towerline.jobs.stages import (
    BUNDLE,
    FEATURES,
    MODEL,
    NIGHT,
    FeaturesStage,
    Stage,
    StageCall,
    published_chain,
    stages_of,
)
from towerline.jobs.stages.warm_nights import warm_start

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
    forget list, where one was given. ``measured_by``: with rolling windows, which model a figure is of.
    """

    version: str | None
    published: bool
    stages: tuple[StageOutcome, ...]
    verdicts: tuple[Verdict, ...]
    report: Path
    forgotten: ForgetOutcome | None = None
    measured_by: dict[str, Any] | None = None


def run(
    config: Config,
    *,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
    force_reason: str | None = None,
    dry_run: bool = False,
    forget: ForgetList = NOBODY,
    remember: ForgetList = NOBODY,
    as_of: datetime.datetime | None = None,
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
        as_of: with rolling windows, the day at whose start (UTC) they end: reproduces a past night. None: the day after
            the newest event's.

    Raises:
        TowerlineError: another refresh holds the lock for longer than ``refresh.lock_wait_minutes``, or a stage failed;
            what was live stays live, and the next refresh goes on from the last good stage.
        ConfigError: ``as_of`` is given, and the windows do not roll.
        GateError: a gate failed.
    """
    call = StageCall(config, tuple(beam_args), progress, forget=forget, remember=remember, as_of=as_of)
    options = Options(dry_run, force_reason, config.refresh.keep_versions)
    config.work.mkdir(parents=True, exist_ok=True)
    with file_lock(config.work / _LOCK_FILE, 60.0 * config.refresh.lock_wait_minutes):
        for stage in stages_of(config):
            sweep(call.folder(stage.folder))
        return _run(call, options)


def _run(call: StageCall, options: Options) -> Refreshed:
    config, progress, stages = call.config, call.progress, stages_of(call.config)
    started = datetime.datetime.now(datetime.UTC).isoformat()
    outcomes = []
    forgotten: ForgetOutcome | None = None
    for number, stage in enumerate(stages, start=1):
        progress.stage(number, len(stages) + 1, stage.title)
        outcome = _outcome(stage, call)
        state = "up to date" if outcome.outcome == "reused" else f"done in {outcome.seconds:.1f} s"
        progress.line(f"{outcome.name}: {state}")
        if stage.folder == FEATURES:
            forgotten = _forget_outcome(call, outcome)
        outcomes.append(outcome)
    progress.stage(len(stages) + 1, len(stages) + 1, "publish")
    publication = _publish(config, options, progress)
    live = Registry(config.registry).current_or_none()
    file = config.work / REPORT_FILE
    refreshed = Refreshed(
        version=live,
        published=publication.version is not None,
        stages=tuple(outcomes),
        verdicts=publication.verdicts,
        report=file,
        forgotten=forgotten,
        measured_by=_measured_by(config),
    )
    write_durably(file, json.dumps(_plain(refreshed, started), indent=2).encode())
    if config.refresh.evaluate and live is not None:
        _evaluate(config, progress)
    return refreshed


def _measured_by(config: Config) -> dict[str, Any] | None:
    """Of a night with two models, which of them a figure is of."""
    if published_chain(config) is not NIGHT:
        return None
    found: dict[str, Any] = read_manifest(config.work / NIGHT.folder(BUNDLE)).facts["measured_by"]
    return found


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
    current = stage.is_current(call.config) and (not isinstance(stage, FeaturesStage) or stage.has_done(call))
    if not current:
        stage.run(_tonight(stage, call))
    fingerprint = read_manifest(path).fingerprint
    return StageOutcome(stage.folder, "reused" if current else "ran", time.perf_counter() - begun, fingerprint)


def _tonight(stage: Stage, call: StageCall) -> StageCall:
    """The call with what a night adds: features go on from the last ones, training from the live model."""
    if stage.folder == FEATURES:
        path = call.folder(FEATURES)
        return dataclasses.replace(call, previous=path if path.is_dir() else None)
    if stage.artifact == MODEL:
        return dataclasses.replace(call, warm=warm_start(stage.chain, call))
    return call


def _publish(config: Config, options: Options, progress: Progress) -> Publication:
    """Publishes, unless this very bundle was published before.

    A version that was rolled back is not put back by the next refresh of unchanged tables; ``towerline publish`` does.
    """
    registry, bundle = Registry(config.registry), config.work / published_chain(config).folder(BUNDLE)
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
    publication = publish_built(config, options, progress)
    progress.line(
        f"publish: {publication.version} is live" if publication.version else "publish: dry run, nothing moved"
    )
    return publication


def publish_built(config: Config, options: Options, progress: Progress = SILENT) -> Publication:
    """Publishes the bundle that was built last, if the gates let it pass; held-out events are asked of the backtest's.

    Raises:
        ArtifactError: the bundle, the features or the live version are missing or damaged.
        ConfigError: a force without a reason.
        GateError: a gate failed and no reason overrules it; CURRENT has not moved.
    """
    return publish(
        config.work / published_chain(config).folder(BUNDLE),
        config.work / FEATURES,
        config.registry,
        config.gates,
        options,
        night=night_features(config),
        progress=progress,
    )


def night_features(config: Config) -> Path | None:
    """With rolling windows, the features of all events; else None."""
    return config.work / NIGHT.folder(FEATURES) if published_chain(config) is NIGHT else None


def _evaluate(config: Config, progress: Progress) -> None:
    from index.evaluation.evaluate import evaluate

    features = config.work / FEATURES
    if not features.exists():
        raise ArtifactError(f"{features}: missing. Run `towerline features`.")
    evaluate(config.registry, features, config.evaluation, config.work, progress=progress)
