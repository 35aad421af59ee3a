"""Duplicates: events of a user that repeat another in everything: item, time, action and value.

They are counted, and rejected if the schema says so. Works on sorted sequences, in which they are adjacent.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.files import write_parquet
from pipelines.features.task import Job
from pipelines.sequences.grouping import Grouped, bisect, keep_events, places_of
from pipelines.tables.rejects.checks import RECORDS_PER_BATCH, REJECTS

DUPLICATE = "duplicate:event"


@dataclass(frozen=True)
class Unique:
    """The events to store, and the number of duplicates, kept or not."""

    events: Grouped
    duplicates: int


def unique(job: Job, part: int, old: Grouped | None, new: Grouped) -> Unique:
    """Finds duplicates among new events and, if ``old`` is given, of events that were there before.

    If the schema rejects them they are left out and written to ``rejects/``.
    """
    again = repeats(new, by_split=by_split(job))
    if old is not None:
        again |= known_already(old, new, by_split=by_split(job))
    duplicates = int(again.sum())
    if duplicates == 0 or job.schema.validation.duplicates == "keep":
        return Unique(new, duplicates)
    name = f"events-duplicates-{job.first_shard:06d}-{part:05d}.parquet"
    write_parquet(_rejects(job, new, np.flatnonzero(again)), Path(job.out) / "rejects" / name)
    return Unique(keep_events(new, ~again), duplicates)


def by_split(job: Job) -> bool:
    """Whether events of two splits differ: true if a column of the table holds the split."""
    return job.schema.split.column is not None


def _rejects(job: Job, grouped: Grouped, places: npt.NDArray[np.int64]) -> pa.Table:
    """Duplicates as rejects; in a sorted sequence the file and the row are no longer known."""
    table, shown = job.schema.tables.events, places[:RECORDS_PER_BATCH]
    ids = job.catalogue.item_ids.take(pa.array(grouped.rows[shown])).to_pylist()
    users = grouped.user_ids.take(pa.array(grouped.owners[shown])).to_pylist()
    times = grouped.times[places]
    times = times.astype("datetime64[us]").astype(str) if table.time is not None else times
    name = table.order_column or "order"
    records = [
        json.dumps({table.user_id: user, table.item_id: item, name: time}, default=str)
        for user, item, time in zip(users, ids, times[: len(shown)].tolist(), strict=True)
    ]
    rows = len(places)
    return pa.table(
        {
            "table": pa.repeat("events", rows),
            "file": pa.nulls(rows, pa.string()),
            "row": pa.nulls(rows, pa.int64()),
            "reason": pa.repeat(DUPLICATE, rows),
            "column": pa.repeat(name, rows),
            "value": pa.array(times.astype(str)),
            "expected": pa.repeat("no other event of the user with the same item, time, action and value", rows),
            "record": pa.array(records + [None] * (rows - len(records)), pa.string()),
        },
        schema=REJECTS,
    )


def without_older(rejects: pa.Table, moment_us: int) -> pa.Table:
    """Rejects without the duplicates of events before a moment; for events that have a time."""
    is_duplicate = np.asarray(pc.equal(rejects["reason"], DUPLICATE))
    texts = rejects["value"].filter(pa.array(is_duplicate)).to_numpy()
    times = texts.astype("datetime64[us]")
    kept = np.ones(len(rejects), bool)
    # A time that names a forgotten user has been taken out: nobody knows how old the event is.
    kept[is_duplicate] = (times.astype(np.int64) >= moment_us) | np.isnat(times)
    return rejects.filter(pa.array(kept))


def repeats(grouped: Grouped, *, by_split: bool) -> npt.NDArray[np.bool_]:
    """``[events] bool``: exact duplicates of the event before them; the canonical order makes them adjacent.

    ``by_split``: events of two splits differ, because a column of the table holds the split.
    """
    found = np.zeros(len(grouped.rows), bool)
    owners = grouped.owners
    after = np.flatnonzero((grouped.times[1:] == grouped.times[:-1]) & (owners[1:] == owners[:-1])) + 1
    for column in _identity(grouped, by_split):
        after = after[column[after] == column[after - 1]]
    found[after] = True
    return found


def known_already(base: Grouped, new: Grouped, *, by_split: bool) -> npt.NDArray[np.bool_]:
    """``[events] bool`` for ``new``: whether ``base`` has an exact duplicate; ``by_split`` as in ``repeats``."""
    places = places_of(new.user_ids, base.user_ids)[new.owners]
    known = np.flatnonzero(places >= 0)
    low, high = base.offsets[places[known]], base.offsets[places[known] + 1]
    at = bisect(base.times, low, high, new.times[known] - 1)  # The first event of the moment.
    found = np.zeros(len(new.rows), bool)
    while len(known):
        inside = at < high
        known, at, high = known[inside], at[inside], high[inside]
        same_time = base.times[at] == new.times[known]
        known, at, high = known[same_time], at[same_time], high[same_time]
        equal = np.ones(len(known), bool)
        for old, column in zip(_identity(base, by_split), _identity(new, by_split), strict=True):
            equal &= old[at] == column[known]
        found[known[equal]] = True
        known, at, high = known[~equal], at[~equal] + 1, high[~equal]
    return found


def _identity(grouped: Grouped, by_split: bool) -> list[npt.NDArray[Any]]:
    columns: list[npt.NDArray[Any]] = [grouped.rows, grouped.actions, grouped.values]
    return [*columns, grouped.splits] if by_split else columns
