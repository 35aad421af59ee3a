"""Duplicates: events of a user that repeat another in everything: item, time, action and value.

They are counted, and rejected if the schema says so. Works on sorted sequences, in which they are adjacent.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.files import write_parquet
from pipelines.features.task import Job
from pipelines.sequences.grouping import Grouped, keep_events
from pipelines.sequences.repeats import known_already, repeats
from pipelines.tables.rejects.checks import RECORDS_PER_BATCH, REJECTS

DUPLICATE = "duplicate:event"


@dataclass(frozen=True)
class Unique:
    """The events to store, and the number of duplicates, kept or not.

    ``repeats`` are ``[events]``: the duplicates that are kept; ``across``: one of them repeats an event that was there
    before.
    """

    events: Grouped
    duplicates: int
    repeats: npt.NDArray[np.bool_]
    across: bool


def unique(job: Job, part: int, old: Grouped | None, new: Grouped) -> Unique:
    """Finds duplicates among new events and, if ``old`` is given, of events that were there before.

    If the schema rejects them they are left out and written to ``rejects/``.
    """
    again = repeats(new, by_split=by_split(job))
    across = False
    if old is not None:
        known = known_already(old, new, by_split=by_split(job))
        again, across = again | known, bool(known.any())
    duplicates = int(again.sum())
    if duplicates == 0 or job.schema.validation.duplicates == "keep":
        return Unique(new, duplicates, again, across)
    name = f"events-duplicates-{job.first_shard:06d}-{part:05d}.parquet"
    write_parquet(_rejects(job, new, np.flatnonzero(again)), Path(job.out) / "rejects" / name)
    kept = keep_events(new, ~again)
    return Unique(kept, duplicates, np.zeros(len(kept.rows), bool), across=False)


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


def days_of(rejects: pa.Table) -> Counter[int]:
    """Duplicates among rejects by day since the epoch; those whose time is not known are left out."""
    texts = rejects.filter(pc.equal(rejects["reason"], DUPLICATE))["value"].drop_null().to_numpy()
    return Counter((texts.astype("datetime64[us]").astype(np.int64) // US_PER_DAY).tolist())
