"""The nightly job: ``towerline refresh``. Tables to a published version, stage by stage.

Reads the configuration; writes the artifacts below the run's folder and a version in the registry. One refresh at a
time holds the run's lock. Each stage's artifact is there whole or not at all, and says by its manifest what it was made
from: a stage whose inputs and configuration are unchanged is skipped, and so a killed refresh goes on from the last
good stage. ``refresh.json`` tells what the last refresh did.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from index.publishing.gates import Verdict
from index.publishing.publish import Options, Publication
from index.publishing.publish import run as publish
from index.registry.registry import Registry
from index.registry.store import file_lock
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import is_current, open_artifact, read_manifest, write_durably
from pipelines.progress import SILENT, Progress
from towerline.commands.config import Config

if TYPE_CHECKING:
    from towers.training.warm_start import WarmStart

FEATURES, MODEL, EMBEDDINGS, BUNDLE = "features", "model", "embeddings", "bundle"
REPORT_FILE = "refresh.json"
_LOCK_FILE = ".refresh.lock"

Outcome = Literal["ran", "reused"]


@dataclass(frozen=True)
class Stage:
    """What became of one stage."""

    name: str
    outcome: Outcome
    seconds: float
    fingerprint: str


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did. ``version``: live at its end. ``published``: whether this refresh put it there."""

    version: str | None
    published: bool
    stages: tuple[Stage, ...]
    verdicts: tuple[Verdict, ...]
    report: Path


@dataclass(frozen=True)
class Call:
    """How one refresh is run.

    beam_args: for Beam, unchanged. progress: shows the stages. force_reason, dry_run: as ``publishing.Options``.
    """

    beam_args: tuple[str, ...] = ()
    progress: Progress = SILENT
    force_reason: str | None = None
    dry_run: bool = False


def run(
    config: Config,
    *,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
    force_reason: str | None = None,
    dry_run: bool = False,
) -> Refreshed:
    """Runs what is not up to date, from the tables to CURRENT.

    Args:
        config: the whole configuration; artifacts go below ``config.work``.
        beam_args: for Beam, unchanged.
        progress: shows each stage, and one line per gate.
        force_reason: publish against failed gates, and say why.
        dry_run: let the gates decide, publish nothing.

    Raises:
        TowerlineError: another refresh holds the lock for longer than ``refresh.lock_wait_minutes``, or a stage failed;
            what was live stays live, and the next refresh goes on from the last good stage.
        GateError: a gate failed.
    """
    call = Call(tuple(beam_args), progress, force_reason, dry_run)
    config.work.mkdir(parents=True, exist_ok=True)
    with file_lock(config.work / _LOCK_FILE, 60.0 * config.refresh.lock_wait_minutes):
        return _run(config, call)


def _run(config: Config, call: Call) -> Refreshed:
    started = datetime.datetime.now(datetime.UTC).isoformat()
    stages = []
    for number, (name, stage) in enumerate(_STAGES, start=1):
        call.progress.stage(number, len(_STAGES) + 1, name)
        done = stage(config, call)
        call.progress.line(
            f"{done.name}: {'up to date' if done.outcome == 'reused' else f'done in {done.seconds:.1f} s'}"
        )
        stages.append(done)
    # Deltas from the moment on at which the tables were read are not in them.
    since = started if stages[0].outcome == "ran" else read_manifest(config.work / FEATURES).created_at
    call.progress.stage(len(_STAGES) + 1, len(_STAGES) + 1, "publish")
    publication = _publish(config, call, since)
    live = Registry(config.registry).current_or_none()
    file = config.work / REPORT_FILE
    done_all = Refreshed(live, publication.version is not None, tuple(stages), publication.verdicts, file)
    write_durably(file, json.dumps(_plain(done_all, started), indent=2).encode())
    if config.refresh.evaluate and live is not None:
        _evaluate(config, call)
    return done_all


def _plain(refreshed: Refreshed, started: str) -> dict[str, Any]:
    return {**asdict(refreshed), "report": str(refreshed.report.name), "started_at": started}


def _stage(name: str, path: Path, *, current: bool, work: Callable[[], object]) -> Stage:
    begun = time.perf_counter()
    if not current:
        work()
    fingerprint = read_manifest(path).fingerprint
    return Stage(name, "reused" if current else "ran", time.perf_counter() - begun, fingerprint)


def _features(config: Config, call: Call) -> Stage:
    from pipelines.features import job as features

    schema, path = config.schema_only(), config.work / FEATURES
    inputs, settings = features.Inputs.find(schema).fingerprints(), schema.model_dump(mode="json")
    current = is_current(
        path, kind=features.KIND, format_version=features.FORMAT_VERSION, inputs=inputs, config=settings
    )
    return _stage(
        FEATURES,
        path,
        current=current,
        work=lambda: features.run(
            schema, path, call.beam_args, progress=call.progress, previous=path if path.is_dir() else None
        ),
    )


def _train(config: Config, call: Call) -> Stage:
    path, features = config.work / MODEL, config.work / FEATURES
    made_with = {"towers": config.towers.model_dump(mode="json", exclude={"tune"}), "seed": config.seed}
    inputs = {FEATURES: read_manifest(features).fingerprint}

    def work() -> None:
        from towerline.commands.hard_negatives import mine
        from towers.training import job as training

        mined, warm = mine(config, features, call.progress), _warm_start(config, made_with, call.progress)
        training.run(features, config.towers, path, seed=config.seed, progress=call.progress, mined=mined, warm=warm)

    current = is_current(path, kind="model", format_version=1, inputs=inputs, config=made_with)
    return _stage(MODEL, path, current=current, work=work)


def _warm_start(config: Config, made_with: dict[str, Any], progress: Progress) -> WarmStart | None:
    """The live version's model to go on from; None where this night trains in full."""
    from towers.training.warm_start import WarmStart

    if not config.refresh.warm_nights:
        return None
    path = config.work / MODEL
    try:
        reason = _why_full(config, path, made_with)
    except ArtifactError as err:
        reason = str(err)
    if reason is not None:
        progress.line(f"train: in full, because {reason}")
        return None
    warm = WarmStart(path, config.refresh.warm_epochs)
    progress.line(f"train: goes on from the live model, night {warm.nights()} of {config.refresh.warm_nights}")
    return warm


def _why_full(config: Config, path: Path, made_with: dict[str, Any]) -> str | None:
    """Why the night cannot go on from the model at ``path``; None where it can.

    Raises:
        ArtifactError: the model or the live version is missing or damaged.
    """
    from towers.training.warm_start import nights_of

    registry = Registry(config.registry)
    if registry.current_or_none() is None:
        return "nothing is live yet"
    model = open_artifact(path, kind="model").manifest
    if registry.open(verify=False).bundle.manifest.inputs[MODEL] != model.fingerprint:
        return "the last model is not the live one"
    if model.config != made_with:
        return "[towers] or the seed changed"
    if _features_of(path) != _features_of(config.work / FEATURES):
        return "the schema changed"
    nights = nights_of(model)
    return f"{nights} nights have gone on from the last full training" if nights >= config.refresh.warm_nights else None


def _features_of(artifact: Path) -> dict[str, Any]:
    """What the towers' inputs depend on."""
    schema = json.loads((artifact / "schema.json").read_text())
    return {name: schema[name] for name in ("features", "history", "actions")}


def _embed(config: Config, call: Call) -> Stage:
    path, model, features = (config.work / name for name in (EMBEDDINGS, MODEL, FEATURES))
    inputs = {name: read_manifest(config.work / name).fingerprint for name in (MODEL, FEATURES)}

    def work() -> None:
        from index.building import embedding_job as embed

        embed.run(model, features, path, call.beam_args, progress=call.progress)

    current = is_current(path, kind="embeddings", format_version=1, inputs=inputs, config={})
    return _stage(EMBEDDINGS, path, current=current, work=work)


def _build(config: Config, call: Call) -> Stage:
    from index.building import job as build
    from index.registry.bundle import FORMAT_VERSION, KIND

    path = config.work / BUNDLE
    inputs = {name: read_manifest(config.work / name).fingerprint for name in (EMBEDDINGS, MODEL, FEATURES)}
    settings = build.config_of(config.index, config.retriever)
    current = is_current(path, kind=KIND, format_version=FORMAT_VERSION, inputs=inputs, config=settings)
    parts = (config.work / EMBEDDINGS, config.work / MODEL, config.work / FEATURES)
    return _stage(
        BUNDLE,
        path,
        current=current,
        work=lambda: build.run(
            *parts, config.index, path, retriever=config.retriever, beam_args=call.beam_args, progress=call.progress
        ),
    )


def _publish(config: Config, call: Call, since: str) -> Publication:
    """Publishes, unless this very bundle was published before.

    A version that was rolled back is not put back by the next refresh of unchanged tables; ``towerline publish`` does.
    """
    registry, bundle, progress = Registry(config.registry), config.work / BUNDLE, call.progress
    fingerprint = read_manifest(bundle).fingerprint
    known = [version for version in registry.versions() if version.fingerprint == fingerprint]
    if known and not call.dry_run and registry.current_or_none() is not None:
        if known[-1].live:
            progress.line(f"publish: up to date, {known[-1].name} is live")
        else:
            progress.line(
                f"publish: {known[-1].name} was published before and is not live: somebody rolled it back. "
                "It stays so; `towerline publish` makes it live again."
            )
        return Publication(None, (), forced=False)
    options = Options(call.dry_run, call.force_reason, config.refresh.keep_versions, since)
    publication = publish(bundle, config.work / FEATURES, config.registry, config.gates, options, progress=progress)
    progress.line(
        f"publish: {publication.version} is live" if publication.version else "publish: dry run, nothing moved"
    )
    return publication


def _evaluate(config: Config, call: Call) -> None:
    from index import evaluation

    features = config.work / FEATURES
    if not features.exists():
        raise ArtifactError(f"{features}: missing. Run `towerline features`.")
    evaluation.run(config.registry, features, config.evaluation, config.work, progress=call.progress)


_STAGES = (("features", _features), ("train", _train), ("embed", _embed), ("build", _build))
