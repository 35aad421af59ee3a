"""The summary of what was read, as the features job prints it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from pipelines.contracts.schema import SPLITS, Side, SplitName
from pipelines.features.reporting.data_summary import DataSummary, RejectCount
from pipelines.features.reporting.joins import MOST_SEARCHED, Joins, joins_with_examples
from pipelines.sequences.grouping import places_of
from pipelines.sequences.partition_users import Users
from towerline.jobs.check.rows import Rows


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
        windows=None if rows.window is None else str(rows.window),
        later=scaled(rows.dropped),
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
    grouped, profiled = rows.grouped, rows.profiled
    unknown: dict[Side, tuple[int, list[str]]] = {}
    known = {"item": rows.items.ids}
    if profiled is not None:
        known["user"] = profiled
        events = np.diff(grouped.offsets)
        strange = (places_of(grouped.user_ids, profiled) < 0) & (events > 0)
        unknown["user"] = (int(events[strange].sum()), _texts(grouped.user_ids.filter(pa.array(strange))))
    if rows.has_items:
        unknown["item"] = (len(rows.unknown), _texts(rows.unknown.drop_null().unique()))
    return joins_with_examples(len(grouped.rows), unknown, known.__getitem__)


def _texts(ids: pa.Array) -> list[str]:
    return list(ids.slice(0, MOST_SEARCHED).cast(pa.string()).to_pylist())
