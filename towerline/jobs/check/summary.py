"""The summary of what was read, as the features job prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipelines.contracts.schema import SPLITS, Side, SplitName
from pipelines.features.reporting.data_summary import DataSummary, RejectCount, UnknownIds
from pipelines.features.reporting.joins import WARN_BELOW, Joins, example_pair
from pipelines.sequences.grouping import places_of
from pipelines.sequences.partition_users import Users
from towerline.jobs.check.rows import Rows

# Unknown ids among which a pair is searched that differs in spelling alone, as many as the job searches.
_SEARCHED = 1_000


def summary_of(rows: Rows) -> DataSummary:
    """The figures of what was read; those of a sample as estimates for the whole table."""
    joins = joins_of(rows)
    scaled = _scaled(rows.scale)
    return DataSummary(
        users=len(rows.grouped.user_ids),
        items=len(rows.items.table),
        events={name: scaled(number) for name, number in splits_of(rows).items()},
        new_users=Users.of(rows.grouped).new_in_test,
        new_items=_new_items(rows),
        rows={table: scaled(count.rows) if table == "events" else count.rows for table, count in rows.counts.items()},
        rejects=[
            RejectCount(table, reason, scaled(number) if table == "events" else number, count.examples.get(reason))
            for table, count in rows.counts.items()
            for reason, number in count.rejects.items()
        ],
        unknown={side: dataclasses.replace(one, events=scaled(one.events)) for side, one in joins.unknown.items()},
        joined=joins.share,
        multi_line=list(rows.multi_line),
        sample=None if rows.sample.is_whole else share_read(rows),
    )


def _scaled(scale: float) -> Callable[[int], int]:
    return lambda number: number if scale == 1.0 else round(number * scale)


def share_read(rows: Rows) -> str:
    """How much of the events was read: ``2.0 M of 20.1 M events``."""
    return f"{_number(rows.counts['events'].rows)} of {_number(rows.sample.events)} events"


def _number(number: int) -> str:
    return f"{number / 1e6:.1f} M" if number >= 1_000_000 else f"{number:,}"


def splits_of(rows: Rows) -> dict[SplitName, int]:
    """Accepted events by split."""
    counts = np.bincount(rows.grouped.splits, minlength=len(SPLITS))
    return {name: int(counts[code]) for code, name in enumerate(SPLITS)}


def _new_items(rows: Rows) -> int:
    grouped = rows.grouped
    test = grouped.splits == SPLITS.index("test")
    return len(np.setdiff1d(grouped.rows[test], grouped.rows[~test]))


def joins_of(rows: Rows) -> Joins:
    """How events join the tables, with an example of each side; where they join badly, one that the table resembles."""
    grouped = rows.grouped
    ids: dict[Side, tuple[list[str], pa.Array]] = {}
    unknown: dict[Side, UnknownIds] = {}
    if rows.profiled is not None:
        events = np.diff(grouped.offsets)
        strange = (places_of(grouped.user_ids, rows.profiled) < 0) & (events > 0)
        ids["user"] = (_texts(grouped.user_ids.filter(pa.array(strange))), rows.profiled)
        unknown["user"] = UnknownIds(int(events[strange].sum()), next(iter(ids["user"][0]), None))
    if rows.has_items:
        ids["item"] = (_texts(rows.unknown.drop_null().unique()), rows.items.ids)
        unknown["item"] = UnknownIds(len(rows.unknown), next(iter(ids["item"][0]), None))
    joins = Joins(len(grouped.rows), unknown)
    if joins.share is None or joins.share >= WARN_BELOW:
        return joins
    pairs = {side: example_pair(*pair) for side, pair in ids.items()}
    paired = {side: UnknownIds(one.events, *pairs[side]) for side, one in unknown.items()}
    return Joins(len(grouped.rows), paired)


def _texts(ids: pa.Array) -> list[str]:
    return list(ids.slice(0, _SEARCHED).cast(pa.string()).to_pylist())
