"""Totals: the sums of what the tasks of a features job counted, plus the counts of a previous run.

The tasks write small files below ``work`` (``PartitionFacts`` for partitions); they are read back here, together with
the previous run's manifest and items.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.files import read_arrow, write_arrow, write_json
from pipelines.contracts.kinds.summary import Moments, Summary
from pipelines.contracts.schema import SPLITS, DatasetSchema, SplitName, TableName, Window
from pipelines.contracts.schema.window import date_of
from pipelines.features.duplicates import DUPLICATE
from pipelines.features.fitting import SideSummary
from pipelines.features.increment import Previous
from pipelines.sequences.reader import load_items
from pipelines.tables.catalogue import Items
from pipelines.tables.rejects.place import Place
from pipelines.tables.rejects.thresholds import TableCounts, enforce_thresholds

_PLAIN = (
    "users",
    "events",
    "duplicates",
    "profiles",
    "nulls",
    "rewritten",
    "found",
    "new_users",
    "unknown",
    "unknown_users",
)
# Below the artifact: each item's events in valid and in test.
HELD_OUT_FILE = "item_held_out.arrow"


@dataclass(frozen=True)
class PartitionFacts:
    """What one partition adds to the totals.

    Written by the worker that built the partition, as small Arrow and JSON files; read back by the process that
    submitted the job. ``users`` is the number of its users; ``events`` (by split), ``duplicates`` and the tables count
    all its events, or only the new ones of a run that appends. Tables are sparse: they hold the rows that it saw.
    ``profiles`` is the number of its rows in the users table, ``nulls`` counts the nulls of each column there.
    ``rewritten`` says that its base of sequences is a file of this run; ``found`` are the places in ``Job.to_forget``
    of the users whom the previous run had. ``new_users`` counts its users with test events and none before, ``unknown``
    all its events of users without a row in the users table; ``unknown_users`` are some of these users' ids.
    """

    users: int
    events: list[int]
    item_frequency: pa.Table
    item_held_out: pa.Table
    item_counts: pa.Table
    summary: SideSummary
    duplicates: int
    profiles: int
    nulls: dict[str, int]
    rewritten: bool
    found: list[int]
    new_users: int
    unknown: int
    unknown_users: list[str]

    def write(self, folder: Path) -> None:
        """Writes Arrow and JSON files below ``folder``."""
        write_arrow(self.item_frequency, folder / "item_frequency.arrow")
        write_arrow(self.item_held_out, folder / "item_held_out.arrow")
        write_arrow(self.item_counts, folder / "item_counts.arrow")
        moments = {}
        for name, summary in self.summary.features.items():
            if summary.counts is not None:
                write_arrow(summary.counts, folder / f"counts.{name}.arrow")
            elif summary.sample is not None:
                write_arrow(summary.sample, folder / f"sample.{name}.arrow")
            elif summary.moments is not None:
                exact = summary.moments
                moments[name] = [exact.count, str(exact.total), str(exact.squares)]
        plain = {name: getattr(self, name) for name in _PLAIN}
        write_json({**plain, "moments": moments}, folder / "facts.json")

    @classmethod
    def read(cls, folder: Path) -> PartitionFacts:
        """Reads what ``write`` wrote."""
        facts = json.loads((folder / "facts.json").read_text())
        features = {
            name: Summary(moments=Moments(count, Fraction(total), Fraction(squares)))
            for name, (count, total, squares) in facts["moments"].items()
        }
        for kind in ("counts", "sample"):
            for path in folder.glob(f"{kind}.*.arrow"):
                features[path.name.split(".")[1]] = Summary(**{kind: read_arrow(path)})
        tables = {
            name: read_arrow(folder / f"{name}.arrow") for name in ("item_frequency", "item_held_out", "item_counts")
        }
        plain = {name: facts[name] for name in _PLAIN}
        return cls(summary=SideSummary(features), **tables, **plain)


@dataclass(frozen=True)
class Ingested:
    """What reading the tables found.

    ``counts`` by table; ``nulls`` by column of the events table; ``days`` are accepted events by day since the epoch;
    ``dropped`` events lay behind the split; ``multi_line`` describes
    cells over several lines (``MultiLineCells``); ``first`` and ``last`` are their times; ``found`` are the places in
    ``Job.to_forget`` of the users seen.
    """

    counts: dict[TableName, TableCounts]
    nulls: dict[str, int]
    days: dict[int, int]
    dropped: int
    multi_line: list[dict[str, Any]]
    first: int | None
    last: int | None
    found: frozenset[int] = frozenset()

    @classmethod
    def read(cls, folder: Path, items: Items) -> Ingested:
        """Adds up what the shards' tasks left in ``folder``."""
        facts = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
        counts: dict[TableName, TableCounts] = {"items": items.counts}
        tables: tuple[TableName, ...] = ("events", "users")
        for table in tables:
            own = [fact for fact in facts if fact["table"] == table]
            if own:
                reasons = _added([fact["rejects"] for fact in own])
                counts[table] = TableCounts(sum(fact["rows"] for fact in own), reasons)
        counts.setdefault("events", TableCounts(0, {}))
        events = [fact for fact in facts if fact["table"] == "events"]
        return cls(
            counts=counts,
            nulls=_added([fact["nulls"] for fact in events]),
            days={int(day): count for day, count in _added([fact["days"] for fact in events]).items()},
            dropped=sum(fact["dropped"] for fact in events),
            multi_line=[*map(vars, items.multi_line), *(cells for fact in facts for cells in fact["multi_line"])],
            first=min((fact["first"] for fact in events if fact["first"] is not None), default=None),
            last=max((fact["last"] for fact in events if fact["last"] is not None), default=None),
            found=frozenset(place for fact in facts for place in fact["found"]),
        )

    def with_duplicates(self, number: int) -> Ingested:
        """The same with this number of events rejected as duplicates."""
        if number == 0:
            return self
        events = self.counts["events"]
        rejects = _added([events.rejects, {DUPLICATE: number}])
        return _replaced(self, counts={**self.counts, "events": TableCounts(events.rows, rejects)})

    def after(self, facts: dict[str, Any], kept: dict[str, int] | None) -> Ingested:
        """What a full run would have found: a previous run's counts and this one's together.

        Args:
            facts: of the previous run's manifest.
            kept: its rejects by reason where some are gone; None where its own counts hold.
        """
        before, now = facts["tables"]["events"], self.counts["events"]
        reasons = _added([before["rejects"] if kept is None else kept, now.rejects])
        days = _added([{str(day): count for day, count in self.days.items()}, facts["days"]])
        return Ingested(
            counts={**self.counts, "events": TableCounts(before["rows"] + now.rows, reasons)},
            nulls=_added([facts["nulls"]["events"]["columns"], self.nulls]),
            days={int(day): count for day, count in days.items()},
            dropped=self.dropped + facts["dropped_after_test_until"],
            multi_line=[*self.multi_line, *(cells for cells in facts["multi_line"] if cells["table"] == "events")],
            first=min((time for time in (self.first, facts["first_time"]) if time is not None), default=None),
            last=max((time for time in (self.last, facts["last_time"]) if time is not None), default=None),
        )

    def require_fit(self, schema: DatasetSchema, examples: Mapping[tuple[TableName, str], Place]) -> None:
        """Checks that there are events, and few enough rejects; ``examples`` are rejects by table and reason.

        Raises:
            SchemaError: there are none, or too many.
        """
        if self.counts["events"].rows == 0:
            raise SchemaError("tables.events: expected at least one event, found an empty table. Check its path.")
        shown = {
            table: replace(count, examples={reason: place for (own, reason), place in examples.items() if own == table})
            for table, count in self.counts.items()
        }
        enforce_thresholds(shown, schema)

    def in_window(self, window: Window, days: dict[int, int]) -> Ingested:
        """The same with all accepted events by day (``days``), of which those after the window's end count as dropped.

        ``days`` holds the days before the window too: the job reads their events and leaves them out.
        """
        later = sum(count for day, count in days.items() if day * US_PER_DAY >= window.end)
        return _replaced(self, days=days, dropped=later)


def _replaced(ingested: Ingested, **changes: Any) -> Ingested:
    return Ingested(**{**vars(ingested), **changes})


def _added(counts: Sequence[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def events_by_split(parts: Sequence[PartitionFacts], previous: Previous | None) -> list[int]:
    """Events of train, valid and test; ``previous`` where the parts counted only what is new."""
    before = [0] * len(SPLITS) if previous is None else [int(previous.facts["counts"][name]) for name in SPLITS]
    return [before[split] + sum(part.events[split] for part in parts) for split in range(len(SPLITS))]


def require_split(events: Sequence[int], ingested: Ingested, window: Window | None = None) -> None:
    """Checks that train and test have events; with rolling windows valid too, unless all events are train.

    Raises:
        SchemaError: one has none.
    """
    needed: tuple[SplitName, ...] = ("train", "test")
    if window is not None:
        needed = ("train",) if window.is_whole else SPLITS
    empty = [name for name, count in zip(SPLITS, events, strict=True) if count == 0 and name in needed]
    if not empty:
        return
    numbers = ", ".join(f"{name} {number}" for name, number in zip(SPLITS, events, strict=True))
    found = f"[split]: expected events in {' and '.join(empty)}, found none ({numbers})"
    if window is None:
        raise SchemaError(
            f"{found}; events run from {ingested.first} to {ingested.last} (microseconds UTC, or the order). Move the "
            "bounds or correct the column."
        )
    raise SchemaError(
        f"{found}. The windows: {window}; {_range(ingested, window)} (UTC). Choose a date with --as-of that has events "
        "in each window before it, or change valid_days, test_days and history_days."
    )


def _range(ingested: Ingested, window: Window) -> str:
    """The dates of the events, those after the windows apart."""
    days = [day for day in ingested.days if day * US_PER_DAY < window.end]
    later = f"{ingested.dropped} events are later" if ingested.dropped else ""
    if not days:
        return later or "there are no events"
    earlier = f"the events before the end are of {date_of(min(days) * US_PER_DAY)} to {date_of(max(days) * US_PER_DAY)}"
    return f"{earlier}, {later}" if later else earlier


def item_frequency(
    items: int, parts: Sequence[PartitionFacts], previous: Previous | None, remap: pa.Array | None
) -> Int64:
    """``[items] int64``: each row's events in train.

    Args:
        items: size of the catalogue.
        parts: what the partitions counted.
        previous: the run whose counts go in, where the parts counted only what is new.
        remap: each row of its catalogue in this one; None where the two are the same.
    """
    frequency = _carried(items, None if previous is None else previous.vocabulary.item_frequency, remap)
    for part in parts:
        frequency[np.asarray(part.item_frequency["row"])] += np.asarray(part.item_frequency["count"])
    return frequency


def item_held_out(
    items: int, parts: Sequence[PartitionFacts], previous: Previous | None, remap: pa.Array | None
) -> pa.Table:
    """Each row's events in ``valid`` and in ``test``, ``[items] int64``; arguments as of ``item_frequency``."""
    before = None if previous is None else read_arrow(previous.dir / HELD_OUT_FILE)
    columns = {}
    for name in ("valid", "test"):
        counts = _carried(items, None if before is None else np.asarray(before[name], np.int64), remap)
        for part in parts:
            own = part.item_held_out.filter(pc.equal(part.item_held_out["split"], name))
            counts[np.asarray(own["row"])] += np.asarray(own["count"])
        columns[name] = counts
    return pa.table(columns)


def new_items(frequency: Int64, held_out: pa.Table) -> int:
    """Items with test events that have neither a train nor a valid event."""
    valid, test = (np.asarray(held_out[name], np.int64) for name in ("valid", "test"))
    return int(((test > 0) & (valid == 0) & (frequency == 0)).sum())


def with_item_counts(
    schema: DatasetSchema,
    table: pa.Table,
    parts: Sequence[PartitionFacts],
    previous: Previous | None,
    remap: pa.Array | None,
) -> pa.Table:
    """The items with the columns of their count features; ``previous`` and ``remap`` as in ``item_frequency``."""
    names = [name for feature in schema.counts("item") for name in feature.raw_columns]
    if not names:
        return table
    found = pa.concat_tables([part.item_counts for part in parts])
    before = None if previous is None else load_items(previous.dir)
    for name in names:
        own = found.filter(pc.equal(found["column"], name))
        counts = _carried(len(table), None if before is None else np.asarray(before[name], np.int64), remap)
        np.add.at(counts, np.asarray(own["row"]), np.asarray(own["count"]))
        table = table.append_column(name, pa.array(counts))
    return table


def _carried(items: int, before: Int64 | None, remap: pa.Array | None) -> Int64:
    """``[items] int64``: earlier counts at their rows of this catalogue; a fresh array."""
    counts = np.zeros(items, np.int64)
    if before is not None:
        counts[slice(None) if remap is None else np.asarray(remap)] = before
    return counts
