"""Replays the nightly job through the past: ``towerline replay-nights``.

Reads the tables and the configuration; writes day files, a run's folder, a registry, a state file, ``replay.json`` and
``replay.html`` below ``<work>/replay``. Night i is the nightly job on the events before its date; the events of the
date are what its version is then measured on.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.contracts.errors import ConfigError
from pipelines.contracts.manifest import MANIFEST_FILE, read_manifest, write_durably
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.schema.window import Window
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.kept_list import copy_of, kept_list, write_copy
from towerline.config import Config
from towerline.jobs.replay.asking import Asked, DayValues, ask, churn
from towerline.jobs.replay.day_files import DayFiles, cut
from towerline.jobs.replay.kept_versions import KeptVersions
from towerline.jobs.replay.night import Inside, NightRun, backtest_of, run_night
from towerline.jobs.replay.plan import Plan, require_rolling
from towerline.jobs.replay.rows import Arm, NightRow
from towerline.jobs.replay.state import State
from towerline.jobs.replay.summary import Replay, summarise
from towerline.jobs.replay.truth import DayTruth, truth_of
from towerline.jobs.stages import BACKTEST, FEATURES, NIGHT

REPLAY_JSON, REPLAY_HTML = "replay.json", "replay.html"
_USERS = "users"


def run(plan: Plan, *, keep_going: bool = False, progress: Progress = SILENT) -> Path:
    """Runs the nights that are not done yet and returns the path of ``replay.json``.

    Args:
        plan: which nights.
        keep_going: go on after a night that failed; one that a gate refused never ends the replay.
        progress: shows the nights.

    Raises:
        ConfigError: the data set cannot be replayed, the dates do not fit its events, or the folder holds another
            replay.
        TowerlineError: a night failed, and ``keep_going`` is not set; the next run begins with that night.
    """
    if plan.nights < 1:
        raise ConfigError(f"--nights: expected 1 or more, got {plan.nights}.")
    require_rolling(plan.config)
    state = State.open(plan.folder, plan.identity())
    clock = _Stopwatch()
    days = _prepared(plan, progress)
    plan.require_days(days)
    nights = _Nights(plan, days, keep_going, progress)
    with progress.bar(plan.nights, "nights", "nights", done=min(len(state.nights), plan.nights)) as bar:
        for night in range(len(state.nights), plan.nights):
            resumed = state.begun == night
            state = state.model_copy(update={"begun": night})
            state.write(plan.folder)
            row = nights.run(night, state, resumed=resumed)
            state = state.with_night(row, clock.lap())
            state.write(plan.folder)
            nights.kept.drop_others(state.versions)
            progress.line(line_of(row, plan.nights))
            bar.advance(1, left=_left(state, plan.nights))
    result = summarise(plan, state, days, _users_folder(plan))
    return _write(result, plan.folder)


class _Stopwatch:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap, or the start."""
        now = time.perf_counter()
        passed, self._since = now - self._since, now
        return passed


def _prepared(plan: Plan, progress: Progress) -> DayFiles:
    """The day files; users whom the data set's own nights have forgotten are in no night of the replay either."""
    forgotten = kept_list(plan.config.work / FEATURES)
    copied = copy_of(plan.work / FEATURES)
    if len(forgotten) and not copied.exists():
        plan.work.mkdir(parents=True, exist_ok=True)
        write_copy(forgotten, plan.work / FEATURES)
    return cut(plan.config.schema_only(), forgotten, plan.folder / "tables", progress=progress)


def _users_folder(plan: Plan) -> Path:
    return plan.folder / _USERS


def users_file(folder: Path, row: NightRow) -> Path:
    """The values of a night's users."""
    return folder / f"{row.date}.parquet"


@dataclass(frozen=True)
class _Nights:
    """Runs nights and measures them."""

    plan: Plan
    days: DayFiles
    keep_going: bool
    progress: Progress

    @property
    def kept(self) -> KeptVersions:
        """The versions that later nights are compared with."""
        return KeptVersions(self.plan.folder / "kept")

    def run(self, night: int, state: State, *, resumed: bool) -> NightRow:
        """One night, and the day after it."""
        day = self.plan.date(night)
        config = self.plan.config_of(self.days.show_before(day))
        inside, as_of = Inside(self.progress), self.plan.midnight(night)
        done = run_night(config, as_of, state.before, keep_going=self.keep_going, progress=inside)
        if done.version is not None:
            self.kept.keep(done.version, self.plan.registry)
        row = NightRow(
            night=night,
            date=day.isoformat(),
            outcome=done.outcome,
            error=done.error,
            version=done.version,
            resumed=resumed,
            stages=done.stages,
            seconds=round(done.seconds, 2),
            verdicts=done.verdicts,
        )
        begun = time.perf_counter()
        measured = self._measured(row, done, state.with_night(row, 0.0), config)
        return row.model_copy(update={**measured, "asking_seconds": round(time.perf_counter() - begun, 2)})

    def _measured(self, row: NightRow, done: NightRun, state: State, config: Config) -> dict[str, Any]:
        """Fields of the row: what each version finds of the day."""
        features = NewestFeatures.of(config.work)
        if features is None:
            return {}
        day = self.plan.date(row.night)
        schema: DatasetSchema = config.schema_only()
        truth = truth_of(schema, features.path, day, self.days.of(day), self.plan.config.replay.max_users)
        bundles = self._bundles(state, done)
        answers = {path: ask(truth, path, progress=self.progress) for path in dict.fromkeys(bundles.values())}
        values = DayValues(truth.user_ids, {arm: answers[path].recalls(truth) for arm, path in bundles.items()})
        _users_folder(self.plan).mkdir(exist_ok=True)
        values.write(users_file(_users_folder(self.plan), row))
        return {
            "stale_records": features.end < self.plan.midnight(row.night),
            "users": truth.num_users,
            "pairs": len(truth.truth.rows),
            "new_pairs": len(truth.new_truth.rows),
            "measured": values.measured(),
            "false_alarm": values.false_alarm(),
            "churn": self._churn(truth, state.nights, answers, bundles),
        }

    def _bundles(self, state: State, done: NightRun) -> dict[Arm, Path]:
        """What is asked: a bundle's directory by arm."""
        versions: dict[Arm, str | None] = {"fresh": done.version, "frozen": state.frozen, "weekly": state.weekly}
        bundles = {arm: self.kept.path(version) for arm, version in versions.items() if version is not None}
        backtest = backtest_of(bundles["fresh"]) if "fresh" in bundles else None
        if backtest is not None:
            bundles["backtest"] = backtest
        if done.refused is not None and (done.refused / MANIFEST_FILE).is_file():
            bundles["refused"] = done.refused
        return bundles

    def _churn(
        self, day: DayTruth, nights: tuple[NightRow, ...], answers: dict[Path, Asked], bundles: dict[Arm, Path]
    ) -> float | None:
        """Share of the answers that the version before does not give; None for the first version."""
        before = nights[-2].version if len(nights) > 1 else None
        if before is None or "fresh" not in bundles:
            return None
        path = self.kept.path(before)
        if path == bundles["fresh"]:
            return 0.0
        asked = answers[path] if path in answers else ask(day, path, progress=self.progress)
        return churn(asked, answers[bundles["fresh"]])


@dataclass(frozen=True)
class NewestFeatures:
    """The features whose events reach furthest. end: the moment before which they know all."""

    path: Path
    end: datetime.datetime

    @classmethod
    def of(cls, work: Path) -> NewestFeatures | None:
        """Those of the night before those of its backtest; None if there are none."""
        found = [
            cls(path, datetime.datetime.fromtimestamp(window.end / 1e6, datetime.UTC))
            for path in (work / chain.folder(FEATURES) for chain in (NIGHT, BACKTEST))
            if (path / MANIFEST_FILE).is_file() and (window := Window.of(read_manifest(path).facts)) is not None
        ]
        return max(found, key=lambda one: one.end, default=None)


def line_of(row: NightRow, nights: int) -> str:
    """A night in one line."""
    shown = [f"{name} {value:.4f}" for name in ("fresh", "frozen") if (value := row.recall(name)) is not None]
    recall = f"recall@100 of {row.users:,} users: {', '.join(shown)}" if shown else "nothing measured"
    error = "" if row.error is None else f" ({row.error.splitlines()[0][:120]})"
    return f"night {row.night + 1} of {nights}, {row.date}: {row.outcome}{error} in {row.seconds:.0f} s; {recall}"


def _left(state: State, nights: int) -> str:
    """Time left, from the mean of the latest nights; the first one trains in full and says little."""
    latest = (state.nights[1:] or state.nights)[-5:]
    seconds = sum(row.seconds + row.asking_seconds for row in latest) / len(latest)
    return f"{seconds * (nights - len(state.nights)) / 60.0:.0f} min"


def _write(result: Replay, folder: Path) -> Path:
    from towerline.jobs.replay.page import replay_page

    write_durably(folder / REPLAY_JSON, result.model_dump_json(indent=2).encode())
    write_durably(folder / REPLAY_HTML, replay_page(result).encode())
    return folder / REPLAY_JSON
