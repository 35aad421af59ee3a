"""The summary of a replay: ``replay.json``. Means over all days, differences with intervals, gates, costs.

The unit is a user-day. Users come back on several days, so that the bootstrap draws users with all their days.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.evaluation.measures.bootstrap import clustered_bootstrap, paired_bootstrap
from index.evaluation.sections.part import Bounds, Figure, Part
from pipelines.contracts.arrays import Float64
from towerline.jobs.replay.day_files import DayFiles
from towerline.jobs.replay.plan import Plan
from towerline.jobs.replay.rows import ARMS, PARTS, Arm, Measured, NightRow, PartName
from towerline.jobs.replay.state import State

_COMPARED: tuple[Arm, ...] = ("frozen", "weekly", "backtest")


class Worth(Part):
    """How much more the fresh versions find than another arm, per user-day, with its interval.

    users: number of users; user_days: number of their days with both values.
    """

    other: Arm
    part: PartName
    difference: Figure
    interval: Bounds
    users: int
    user_days: int


class DayWorth(Part):
    """The same on all ads for one day."""

    night: int
    other: Arm
    difference: Figure
    interval: Bounds


class GateRecord(Part):
    """What one gate said over all nights. least, most: of its figure; threshold: of the last night that had one."""

    gate: str
    passed: int
    failed: int
    skipped: int
    least: Figure
    most: Figure
    threshold: Figure


class Replay(Part):
    """``replay.json``.

    first: the date of the first night. nights: one row each. seconds: wall time of all runs of the command. recall: by
    arm and part over all days. worth: the fresh versions against the others. refused, failed: numbers of nights;
    false_alarms: refused nights whose bundle was not certainly worse on the next day than the version that stayed.
    rows_left_out: of the events table, because they have no sound id or time. has_items, has_users: whether there are
    such tables, which have no history. max_users: users asked per day, None for all.
    """

    dataset: str
    first: str
    seconds: float
    nights: tuple[NightRow, ...]
    recall: dict[Arm, dict[PartName, Measured]]
    worth: tuple[Worth, ...]
    by_day: tuple[DayWorth, ...]
    gates: tuple[GateRecord, ...]
    refused: int
    failed: int
    false_alarms: int
    rows_left_out: int
    has_items: bool
    has_users: bool
    max_users: int | None
    warm_nights: int

    def worth_of(self, other: Arm, part: PartName = "all") -> Worth | None:
        """The fresh versions against another arm; None if that was never asked."""
        found = [one for one in self.worth if (one.other, one.part) == (other, part)]
        return found[0] if found else None


def summarise(plan: Plan, state: State, days: DayFiles, users: Path) -> Replay:
    """Adds up the nights.

    Args:
        plan: of the replay.
        state: with the finished nights.
        days: the day files.
        users: the folder with the values of each day's users.
    """
    rows = state.nights
    values = _UserDays.read(users, rows)
    tables = plan.config.tables
    return Replay(
        dataset=plan.config.dataset.name,
        first=plan.first.isoformat(),
        seconds=round(state.seconds, 1),
        nights=rows,
        recall=values.recall(),
        worth=tuple(one for other in _COMPARED for part in PARTS if (one := values.worth(other, part)) is not None),
        by_day=tuple(one for row in rows for one in _of_day(users, row)),
        gates=gate_records(rows),
        refused=sum(row.outcome == "refused" for row in rows),
        failed=sum(row.outcome == "failed" for row in rows),
        false_alarms=sum(row.false_alarm is True for row in rows),
        rows_left_out=days.left_out,
        has_items=tables.items is not None,
        has_users=tables.users is not None,
        max_users=plan.config.replay.max_users,
        warm_nights=plan.config.refresh.warm_nights,
    )


def _file(users: Path, row: NightRow) -> Path:
    return users / f"{row.date}.parquet"


class _UserDays:
    """All user-days: the user of each, and a column of values per arm and part, NaN where there is none."""

    def __init__(self, users: npt.NDArray[np.int64], columns: dict[str, Float64]) -> None:
        self._users = users
        self._columns = columns

    @classmethod
    def read(cls, folder: Path, rows: tuple[NightRow, ...]) -> _UserDays:
        """Reads the values of each day's users."""
        tables = [pq.read_table(_file(folder, row)) for row in rows if row.users]
        if not tables:
            return cls(np.zeros(0, np.int64), {})
        whole = pa.concat_tables(tables, promote_options="default")
        users = np.asarray(pc.rank(whole["user_id"], tiebreaker="dense")).astype(np.int64)
        columns = {
            name: np.asarray(whole[name].cast(pa.float64()).fill_null(float("nan")))
            for name in whole.column_names
            if name != "user_id"
        }
        return cls(users, columns)

    def recall(self) -> dict[Arm, dict[PartName, Measured]]:
        """Means over all user-days."""
        found: dict[Arm, dict[PartName, Measured]] = {}
        for arm in ARMS:
            parts = {part: self._columns[f"{arm}_{part}"] for part in PARTS if f"{arm}_{part}" in self._columns}
            if parts:
                found[arm] = {part: self._mean(column) for part, column in parts.items()}
        return found

    def _mean(self, column: Float64) -> Measured:
        interval = clustered_bootstrap(column, self._users)[0]
        return Measured(recall=interval.mean, interval=(interval.low, interval.high), users=interval.users)

    def worth(self, other: Arm, part: PartName) -> Worth | None:
        """The fresh versions minus another arm."""
        if f"{other}_{part}" not in self._columns:
            return None
        change = self._columns[f"fresh_{part}"] - self._columns[f"{other}_{part}"]
        interval = clustered_bootstrap(change, self._users)[0]
        return Worth(
            other=other,
            part=part,
            difference=interval.mean,
            interval=(interval.low, interval.high),
            users=interval.users,
            user_days=int(np.isfinite(change).sum()),
        )


def _of_day(folder: Path, row: NightRow) -> list[DayWorth]:
    if not row.users or "fresh" not in row.measured:
        return []
    table = pq.read_table(_file(folder, row))
    found = []
    for other in _COMPARED:
        if f"{other}_all" in table.column_names:
            one = paired_bootstrap(np.asarray(table[f"{other}_all"]), np.asarray(table["fresh_all"]))
            bounds = (one.low, one.high)
            found.append(DayWorth(night=row.night, other=other, difference=one.difference, interval=bounds))
    return found


def gate_records(rows: tuple[NightRow, ...]) -> tuple[GateRecord, ...]:
    """What each gate said, in the order of its first verdict."""
    said: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for verdict in row.verdicts:
            said.setdefault(str(verdict["gate"]), []).append(verdict)
    return tuple(_record(gate, verdicts) for gate, verdicts in said.items())


def _record(gate: str, verdicts: list[dict[str, Any]]) -> GateRecord:
    figures = [verdict["measured"] for verdict in verdicts if verdict["measured"] is not None]
    thresholds = [verdict["threshold"] for verdict in verdicts if verdict["threshold"] is not None]
    counts = {
        outcome: sum(one["outcome"] == outcome for one in verdicts) for outcome in ("passed", "failed", "skipped")
    }
    return GateRecord(
        gate=gate,
        **counts,
        least=min(figures, default=None),
        most=max(figures, default=None),
        threshold=thresholds[-1] if thresholds else None,
    )
