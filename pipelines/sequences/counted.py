"""Counted: the events that a partition counts, and what is counted of them.

A full run counts all its events. A run that appends counts its new events, and those of the days that a bound has
crossed since the previous run: for these it takes off what they counted then. So a night adds one day and drops one,
and every count is the previous run's plus the partitions' sums.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.arrays import Bools, Int8, Int32, Int64
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.kinds import CountFeature
from pipelines.contracts.schema import SPLITS, DatasetSchema, Window
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.partition_users import Users

# The split of an event that a run does not use.
UNUSED = -1


@dataclass(frozen=True)
class Use:
    """How a run uses events: their ``splits`` ([events] int8, or UNUSED), and the moment that it looks back from."""

    splits: Int8
    as_of_us: int


@dataclass(frozen=True)
class Counted:
    """Events to be counted, [events] each: place of the user (-1: gone), row of the item, action, time.

    ``now`` is how this run uses them; ``before`` how the previous run did, None where it had none of them.
    """

    places: Int64
    rows: Int32
    actions: Int8
    times: Int64
    now: Use
    before: Use | None = None

    @classmethod
    def all_of(cls, grouped: Grouped, as_of_us: int) -> Counted:
        """All events of sequences; the places are those of its users."""
        return cls(grouped.owners, grouped.rows, grouped.actions, grouped.times, Use(grouped.splits, as_of_us))

    @property
    def by_split(self) -> list[int]:
        """Events of train, valid and test, those of before taken off."""
        return [self._sum(_of_split(split)) for split in range(len(SPLITS))]

    def repeats(self, repeats: Bools) -> int:
        """How many of the events in use are repeats (``[events]``), those of before taken off."""
        return self._sum(lambda use: repeats & (use.splits != UNUSED))

    def _sum(self, chosen: Callable[[Use], Bools]) -> int:
        now = int(chosen(self.now).sum())
        return now if self.before is None else now - int(chosen(self.before).sum())

    def by_user(self, users: int, chosen: Callable[[Use], Bools]) -> Int64:
        """``[users] int64``: chosen events of each user, those of before taken off."""
        there = self.places >= 0
        counts = np.bincount(self.places[chosen(self.now) & there], minlength=users)
        if self.before is not None:
            counts = counts - np.bincount(self.places[chosen(self.before) & there], minlength=users)
        return counts.astype(np.int64)

    def by_item(self, items: int, chosen: Callable[[Use], Bools]) -> tuple[Int32, Int64]:
        """Rows, each once, and the chosen events of each, those of before taken off."""
        rows = self.rows[chosen(self.now)]
        gone = self.rows[:0] if self.before is None else self.rows[chosen(self.before)]
        if items > 4 * (len(rows) + len(gone)) + 1_000_000:  # A table of all items would be much larger than the rows.
            distinct, places = np.unique(np.concatenate([rows, gone]), return_inverse=True)
            seen, counts = _difference(places[: len(rows)], places[len(rows) :], len(distinct))
            return distinct[seen], counts
        seen, counts = _difference(rows, gone, items)
        return seen.astype(np.int32), counts

    def added_to(self, users: Users) -> Users:
        """The users with these events counted; ``places`` are theirs."""
        return Users(
            users.ids,
            users.events + self.by_user(len(users.ids), lambda use: use.splits != UNUSED),
            users.train + self.by_user(len(users.ids), lambda use: use.splits == 0),
            users.valid + self.by_user(len(users.ids), lambda use: use.splits == 1),
        )


def _difference(more: npt.NDArray[np.integer], less: npt.NDArray[np.integer], size: int) -> tuple[Int64, Int64]:
    """Numbers below ``size``, and how much more often each is among ``more`` than among ``less``, where it differs."""
    table = np.bincount(more, minlength=size)
    if len(less):
        table = table - np.bincount(less, minlength=size)
    seen = np.flatnonzero(table)
    return seen, table[seen].astype(np.int64)


def _of_split(split: int) -> Callable[[Use], Bools]:
    return lambda use: use.splits == split


def splits_in(window: Window, times: Int64) -> Int8:
    """``[n] int8``: the split of events at these times, or UNUSED outside the window."""
    splits = np.searchsorted(np.array([window.valid_from, window.test_from, window.end]), times, side="right")
    outside = splits == len(SPLITS)
    if window.history_from is not None:
        outside |= times < window.history_from
    return np.where(outside, UNUSED, splits).astype(np.int8)


def held_out(counted: Counted, items: int) -> pa.Table:
    """(row, split, count) of valid and test."""
    parts = [
        pa.table(
            {"row": pa.array([], pa.int32()), "split": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
        )
    ]
    for code, name in enumerate(SPLITS[1:], start=1):
        rows, counts = counted.by_item(items, _of_split(code))
        parts.append(pa.table({"row": rows, "split": pa.repeat(name, len(rows)), "count": counts}))
    return pa.concat_tables(parts)


def item_counts(schema: DatasetSchema, counted: Counted, items: int, *, by_moment: bool) -> pa.Table:
    """(row, column, count) of the item side's count features; ``by_moment`` as in ``in_count_window``."""
    parts = [
        pa.table(
            {"row": pa.array([], pa.int32()), "column": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
        )
    ]
    for feature in schema.counts("item"):
        for days, name in zip(feature.window_days, feature.raw_columns, strict=True):
            rows, counts = counted.by_item(items, in_count_window(schema, counted, feature, days, by_moment=by_moment))
            parts.append(pa.table({"row": rows, "column": pa.repeat(name, len(rows)), "count": counts}))
    return pa.concat_tables(parts)


def in_count_window(
    schema: DatasetSchema, counted: Counted, feature: CountFeature, days: int, *, by_moment: bool
) -> Callable[[Use], npt.NDArray[np.bool_]]:
    """``[events] bool`` of a use: the events of the feature's action in its window that are not held out.

    ``by_moment``: where the split is a moment, all events before the test window count: what validates is history by
    then, and training counts again as of each example's moment.
    """
    limit = SPLITS.index("test" if by_moment else "valid")
    of_action: Bools | bool = True
    if feature.action is not None:
        of_action = counted.actions == schema.action_names.index(feature.action)

    def chosen(use: Use) -> Bools:
        return in_last_days(counted.times, use.as_of_us, days) & (use.splits >= 0) & (use.splits < limit) & of_action

    return chosen


def in_last_days(times: Int64, moment_us: int, days: int) -> Bools:
    """``[events] bool``: ``moment - days <= time < moment``, so that what happens at the moment itself never counts."""
    return (times < moment_us) & (times >= moment_us - days * US_PER_DAY)
