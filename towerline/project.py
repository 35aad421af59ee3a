"""A project: one data set's TOML, its run folder and its registry, with all that can be done with them."""

from __future__ import annotations

import datetime
import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from pipelines.contracts.manifest import MANIFEST_FILE
from pipelines.progress import SILENT, Progress
from towerline.config import Config, load_config
from towerline.jobs.extras import extras_named

if TYPE_CHECKING:
    from index.building.forecast import Forecast
    from index.evaluation.reports import Comparison, EvaluationReport
    from index.publishing.publish import Publication
    from index.registry.delta_writer import Applied
    from index.registry.registry import Version
    from index.retrieval.retriever import Retriever
    from pipelines.features.reporting.data_summary import DataSummary
    from pipelines.tables.erasure.forget_list import ForgetList
    from towerline.jobs.check.job import CheckResult
    from towerline.jobs.erasure.outcome import ForgetOutcome
    from towerline.jobs.erasure.report import ErasureReport
    from towerline.jobs.extras import Need
    from towerline.jobs.refresh import Refreshed
    from towerline.jobs.replay.summary import Replay

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def _job(
    method: Callable[Concatenate[Project, Parameters], Result],
) -> Callable[Concatenate[Project, Parameters], Result]:
    """A method that names the extra of a missing library, and shows that it is at work from its imports on."""

    @functools.wraps(method)
    def run(self: Project, /, *arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        with extras_named(), self.progress.waiting(method.__name__.replace("_", "-")):
            return method(self, *arguments, **named)

    return run


def open_project(
    config: str | Path,
    *,
    overrides: Sequence[str] = (),
    work: str | Path | None = None,
    registry: str | None = None,
    events: Any = None,
    items: Any = None,
    users: Any = None,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Project:
    """Opens a project.

    Args:
        config: the data set's TOML.
        overrides: ``key.of.section=value`` each, as ``--set`` of the command line.
        work: the run's folder; None is ``paths.work`` of the TOML, or ``runs/<dataset name>``.
        registry: the registry's folder or URL; None is ``paths.registry``, or ``<work>/registry``.
        events, items, users: frames in place of the tables' files: anything with ``__arrow_c_stream__`` (Arrow, Polars,
            pandas 2.2 or newer). They are written to ``<work>/tables`` as Parquet, unless the same rows are there.
        beam_args: options of Beam for every job; none runs inside this process.
        progress: where progress is shown, such as ``towerline.Progress(sys.stderr)``; silent by default.

    Raises:
        ConfigError: the TOML is missing or wrong; the message says where.
        SchemaError: a frame cannot be read or written.
    """
    path, folder = Path(config), None if work is None else Path(work)
    given = {"events": events, "items": items, "users": users}
    frames = {name: frame for name, frame in given.items() if frame is not None}
    # The TOML says where the run's folder is, so that it is read before the frames' files are there.
    loaded = load_config(path, overrides, folder, registry, tables={name: Path(name) for name in frames})
    if frames:
        from towerline.jobs.frames import write_frames

        files = write_frames(frames, loaded.work)
        loaded = load_config(path, overrides, folder, registry, tables=files)
    return Project(loaded, tuple(beam_args), progress)


def _moment_of(as_of: str | datetime.date | None) -> datetime.datetime | None:
    from pipelines.contracts.schema.window import as_of_moment

    return None if as_of is None else as_of_moment(as_of)


@dataclass(frozen=True)
class Project:
    """What the verbs of the command line do, as methods. Made by ``towerline.open``.

    Every method raises ``TowerlineError`` with place and remedy where something is wrong, and leaves what is published
    as it was. A method that needs a library of an extra names the extra where it is missing.
    """

    config: Config
    beam_args: tuple[str, ...] = ()
    progress: Progress = SILENT

    @property
    def work(self) -> Path:
        """The run's folder."""
        return self.config.work

    @_job
    def check(self, *, sample: int | None = None) -> CheckResult:
        """Everything that a refresh would refuse, found in seconds and without writing anything.

        Args:
            sample: events to read at most; None reads all of up to 5 M events, and 2 M of more.
        """
        from towerline.jobs.check import job

        return job.run(self.config, sample=sample, progress=self.progress)

    @_job
    def features(
        self,
        *,
        previous: str | Path | None = None,
        forget: str | Path | None = None,
        remember: str | Path | None = None,
        as_of: str | datetime.date | None = None,
    ) -> Path:
        """Tables to features, with Beam. Returns the artifact's manifest.

        Args:
            previous: an earlier features folder; only events that it has not read are read.
            forget: a file of user ids to erase, one per line. The features keep the list, as digests, for later runs.
            remember: a file of user ids to take off that list.
            as_of: with rolling windows, the day at whose start (UTC) they end, to reproduce a past night: a date, or a
                time, as text or not. None: the day after the newest event's.
        """
        return self._run(
            "features",
            previous=None if previous is None else Path(previous),
            forget=self._users(forget),
            remember=self._users(remember),
            as_of=_moment_of(as_of),
        )

    def _users(self, file: str | Path | None) -> ForgetList:
        from towerline.jobs.erasure.outcome import read_list

        return read_list(None if file is None else Path(file), self.config.schema_only())

    def forget_outcome(self, forget: str | Path) -> ForgetOutcome:
        """How many users of a list the last features were made without.

        Args:
            forget: the file that ``features`` or ``refresh`` was given.
        """
        from pipelines.contracts.manifest import read_manifest
        from towerline.jobs.erasure.outcome import ForgetOutcome

        return ForgetOutcome.of(self._users(forget), read_manifest(self.work / "features").facts["forgotten"])

    def data_summary(self) -> DataSummary:
        """What the last features job found in the tables: counts, joins, rejects with examples, drift.

        Raises:
            ArtifactError: there are no features yet, or they cannot be read.
        """
        from pipelines.features.reporting.artifact_summary import summary_of

        return summary_of(self.work / "features")

    @_job
    def train(self) -> Path:
        """Features to a user tower and an item tower, with TensorFlow. Returns the artifact's manifest."""
        return self._run("train")

    @_job
    def embed(self) -> Path:
        """Model and items to item vectors, with Beam. Returns the artifact's manifest."""
        return self._run("embed")

    @_job
    def build(self) -> Path:
        """Item vectors to a bundle, its search tuned to the recall target. Returns the artifact's manifest."""
        return self._run("build")

    def _run(self, verb: Need, **options: Any) -> Path:
        """Runs a verb's stages, with rolling windows the backtest's and then the night's. Returns the last manifest."""
        from towerline.jobs.check.preflight import require
        from towerline.jobs.stages import StageCall, stages_of

        require(self.config, (verb,), previous=options.get("previous"))
        stages = [stage for stage in stages_of(self.config) if stage.verb == verb]
        for stage in stages:
            stage.run(StageCall(self.config, self.beam_args, self.progress, **options))
        return self.work / stages[-1].folder / MANIFEST_FILE

    @_job
    def forecast(self, *, items: int | None = None, dim: int | None = None) -> Forecast:
        """Predicts memory, disk and time of a build, and builds nothing.

        Args:
            items: number of items to plan for; None takes the embeddings'.
            dim: length of a vector to plan for; None takes the embeddings'.
        """
        from index.building import job
        from towerline.jobs.stages import EMBEDDINGS, published_chain

        embeddings = self.work / published_chain(self.config).folder(EMBEDDINGS)
        return job.plan(embeddings, self.config.index, items=items, dim=dim, progress=self.progress)

    @_job
    def publish(self, *, force_reason: str | None = None, dry_run: bool = False) -> Publication:
        """Publishes the built bundle, if the gates let it pass.

        Args:
            force_reason: publish against a failed gate; the reason is recorded.
            dry_run: let the gates decide, and publish nothing.
        """
        from index.publishing.publish import Options
        from towerline.jobs.refresh import publish_built

        keep = self.config.refresh.keep_versions
        options = Options(dry_run=dry_run, force_reason=force_reason, keep=keep)
        return publish_built(self.config, options, self.progress)

    @_job
    def refresh(
        self,
        *,
        force_reason: str | None = None,
        dry_run: bool = False,
        forget: str | Path | None = None,
        remember: str | Path | None = None,
        as_of: str | datetime.date | None = None,
    ) -> Refreshed:
        """The nightly job: runs the stages that are not up to date and publishes.

        Args:
            force_reason: publish against a failed gate; the reason is recorded.
            dry_run: let the gates decide, and publish nothing.
            forget: a file of user ids to erase, one per line, as in ``features``.
            remember: a file of user ids to take off the list of those.
            as_of: with rolling windows, the day at whose start (UTC) they end, as in ``features``.
        """
        from towerline.jobs import refresh
        from towerline.jobs.alerts.watch import watched
        from towerline.jobs.check.preflight import needs_of_night, require

        def night() -> Refreshed:
            require(self.config, needs_of_night(self.config))
            return refresh.run(
                self.config,
                beam_args=self.beam_args,
                progress=self.progress,
                force_reason=force_reason,
                dry_run=dry_run,
                forget=self._users(forget),
                remember=self._users(remember),
                as_of=_moment_of(as_of),
            )

        return night() if dry_run else watched(self.config, night)

    @_job
    def tune(self, *, trials: int = 20) -> Path:
        """Searches the ranges of ``[towers.tune]`` on validation recall. Returns a TOML with the best settings.

        Args:
            trials: settings to try in total, those of an earlier run included.
        """
        from towerline.jobs.hard_negatives import miner
        from towers.training import tuning

        out = self.work / "tuned.toml"
        tuning.run(
            self.work / "features",
            self.config.towers,
            out,
            trials=trials,
            seed=self.config.seed,
            progress=self.progress,
            mine=miner(self.config, self.work / "features", self.progress),
        )
        return out

    @_job
    def retriever(self, version: str | None = None) -> Retriever:
        """Opens the live version, or another one, for retrieval."""
        from index.retrieval.retriever import Retriever

        return Retriever.open(self.config.registry, version=version)

    @_job
    def versions(self) -> list[Version]:
        """The registry's versions, the oldest first."""
        from index.registry.registry import Registry

        return list(Registry(self.config.registry).versions())

    @_job
    def rollback(self, version: str | None = None) -> str:
        """Makes an older version live again and returns its name; None takes the newest one older than the live one."""
        from index.publishing import publish

        return publish.rollback(self.config.registry, version)

    @_job
    def apply_delta(self, items: Any) -> Applied:
        """Brings new, changed, removed and paused ads into the live version.

        Args:
            items: a table of ads in any form that the items table may have: a file, folder or glob, or a frame of
                Arrow, Polars or pandas; a column ``change`` may say remove, pause or resume.
        """
        from index.registry import delta_writer

        return delta_writer.apply(self.config.registry, items, progress=self.progress)

    @_job
    def compact(self) -> str:
        """Folds the deltas of the live version into a new one with a rebuilt index, and returns its name."""
        from index.building import compaction

        keep = self.config.refresh.keep_versions
        return compaction.run(self.config.registry, self.work / "compacted", keep=keep, progress=self.progress)

    @_job
    def candidates(self, *, k: int = 100, users: Any = None) -> Path:
        """Candidates for many users as Parquet, with Beam. Returns the artifact's manifest.

        Args:
            k: candidates per user.
            users: ids or raw records in any form that the users table may have: a file, folder or glob, or a frame of
                Arrow, Polars or pandas; None takes all users of the bundle.
        """
        from towerline.jobs import candidates

        out = self.work / "candidates"
        candidates.run(self.config.registry, out, k=k, users=users, beam_args=self.beam_args, progress=self.progress)
        return out / MANIFEST_FILE

    @_job
    def erasure_report(self, forget: str | Path) -> ErasureReport:
        """Which files of the run's folder and the registry still hold a trace of users to erase.

        Args:
            forget: a file of user ids to erase, one per line.
        """
        from towerline.jobs.erasure import report

        return report.run(self.config, self._users(forget))

    @_job
    def evaluate(self, version: str | None = None) -> EvaluationReport:
        """Evaluates the live version, or another one, on held-out events; writes report.json and report.html."""
        from index.evaluation.evaluate import evaluate
        from index.evaluation.reports import EvaluationReport

        path = evaluate(
            self.config.registry,
            self.work / "features",
            self.config.evaluation,
            self.work,
            version=version,
            progress=self.progress,
        )
        return EvaluationReport.model_validate(json.loads(path.read_bytes()))

    @_job
    def report(self) -> EvaluationReport:
        """The live version's evaluation: the last one while it is true, else a new one."""
        from index.evaluation.evaluate import current_report

        return current_report(
            self.config.registry,
            self.work / "features",
            self.config.evaluation,
            self.work,
            progress=self.progress,
        )

    @_job
    def replay_nights(self, first: datetime.date, nights: int, *, keep_going: bool = False) -> Replay:
        """Runs the nightly job through the past, below ``replay/``; writes replay.json and replay.html.

        The same call goes on where it was stopped.

        Args:
            first: the date of the first night, which sees the days before.
            nights: number of nights.
            keep_going: go on after a night that failed; one that a gate refused never ends the replay.
        """
        from towerline.jobs.check.preflight import needs_of_night, require
        from towerline.jobs.replay import job
        from towerline.jobs.replay.plan import Plan
        from towerline.jobs.replay.summary import Replay

        require(self.config, (*needs_of_night(self.config), "evaluate"))
        path = job.run(Plan(self.config, first, nights), keep_going=keep_going, progress=self.progress)
        return Replay.model_validate_json(path.read_bytes())

    @_job
    def compare(self, first: str, second: str) -> Comparison:
        """Compares two versions on the same users; writes compare.json and compare.html.

        Args:
            first: the version before.
            second: the version after; the gates judge it as if the first one were live.
        """
        from index.evaluation import compare
        from index.evaluation.reports import Comparison
        from index.publishing.gates import judge
        from towerline.jobs.refresh import night_features

        features, night = self.work / "features", night_features(self.config)
        path = compare.run(
            first,
            second,
            features,
            self.config.evaluation,
            lambda after, before: judge(after, before, features, self.config.gates, night=night),
            self.work,
            registry=self.config.registry,
            progress=self.progress,
        )
        return Comparison.model_validate(json.loads(path.read_bytes()))
