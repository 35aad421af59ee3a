"""Ingestion: one shard of a raw table is read, checked, and spilled by partition.

Reads a shard; writes its accepted rows as Arrow batches by user's partition, its rejects and its counts. Memory is
bounded by one batch, never by the data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.files import read_arrow, write_arrow, write_json, write_parquet
from pipelines.contracts.hashing import partition_of
from pipelines.contracts.schema import TableName
from pipelines.features.reporting.unknown import write_unknown
from pipelines.features.task import SHARDS_FOLDER, Job
from pipelines.sequences.segments import joined
from pipelines.tables.entity_checks import EntityChecker
from pipelines.tables.erasure.reject_traces import without_users
from pipelines.tables.event_checks import EventChecker
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import Shard, read_shard
from pipelines.tables.rejects.checks import REJECTS, counts_by_reason, malformed_rejects
from pipelines.tables.rejects.multi_line import MultiLineCount


@dataclass(frozen=True)
class Spilled:
    """A reference to one partition's batch in a spill file."""

    path: str
    table: str


def ingest_events(job: Job, number: int, shard: Shard) -> Iterator[tuple[int, Spilled]]:
    """Checks a shard of events and spills it; yields (partition, reference) for each batch that is not empty."""
    source, types = job.schema.tables.events, job.events_types
    checker = EventChecker(job.schema, types, job.catalogue, job.late_before_us, job.forgotten)
    facts = _ShardFacts("events", by_day=source.time is not None)
    for place, batch in enumerate(read_shard(shard, source, types.columns, types.kinds)):
        checked = checker.check(batch)
        facts.add(batch, checked.rejects)
        facts.dropped += checked.dropped
        facts.unknown.append(checked.unknown)
        facts.found |= job.found([checked.forgotten, joined(checked.events["user_id"])])
        facts.see_times(checked.events["time"])
        yield from _spill(job, "events", number, place, checked.events)
    facts.write(job, number)


def ingest_users(job: Job, number: int, shard: Shard) -> Iterator[tuple[int, Spilled]]:
    """Checks a shard of users and spills it, like ``ingest_events``."""
    source, types = job.schema.tables.users, job.users_types
    assert source is not None
    assert types is not None
    checker = EntityChecker(job.schema, "user", types, job.forgotten)
    facts = _ShardFacts("users")
    for place, batch in enumerate(read_shard(shard, source, types.columns, types.kinds)):
        accepted = checker.check(batch)
        facts.add(batch, accepted.rejects)
        facts.found |= job.found([accepted.forgotten, accepted.ids])
        yield from _spill(job, "users", number, place, accepted.table.rename_columns(job.users_layout.names))
    facts.write(job, number)


def _spill(job: Job, kind: str, number: int, place: int, table: pa.Table) -> Iterator[tuple[int, Spilled]]:
    if len(table) == 0:
        return
    partitions = partition_of(table["user_id"].combine_chunks(), job.partitions)
    order = np.argsort(partitions, kind="stable")  # A radix sort for 16 bits.
    bounds = np.concatenate([[0], np.cumsum(np.bincount(partitions, minlength=job.partitions))])
    moved = table.take(pa.array(order)).combine_chunks()
    path = Path(job.work) / "spill" / f"{kind}-{number:06d}-{place:06d}.arrow"
    write_arrow([moved.slice(bounds[part], bounds[part + 1] - bounds[part]) for part in range(job.partitions)], path)
    for part in np.flatnonzero(np.diff(bounds)):
        yield int(part), Spilled(str(path), kind)


class _ShardFacts:
    """Counts of one shard, and its rejects."""

    def __init__(self, table: TableName, *, by_day: bool = False) -> None:
        self._table = table
        self._by_day = by_day
        self._days: Counter[int] = Counter()
        self._nulls: Counter[str] = Counter()
        self._rows = 0
        self._rejects: list[pa.Table] = []
        self._first: int | None = None
        self._last: int | None = None
        self._multi_line = MultiLineCount(table)
        self.dropped = 0
        self.unknown: list[pa.Table] = []
        self.found: set[int] = set()

    def add(self, batch: TableBatch, rejects: pa.Table) -> None:
        self._rows += batch.rows
        self._multi_line.add(batch)
        self._nulls.update({name: batch.table[name].null_count for name in batch.table.column_names})
        if len(rejects):
            self._rejects.append(rejects)
        if batch.malformed:
            self._rejects.append(malformed_rejects(batch, self._table))

    def see_times(self, times: pa.ChunkedArray) -> None:
        bounds = pc.min_max(times).as_py()
        if bounds["min"] is not None:
            if self._by_day:
                self._days.update(_day_counts(np.asarray(times), bounds["min"] // US_PER_DAY))
            self._first = bounds["min"] if self._first is None else min(self._first, bounds["min"])
            self._last = bounds["max"] if self._last is None else max(self._last, bounds["max"])

    def write(self, job: Job, number: int) -> None:
        write_unknown(self.unknown, job, number)
        rejects = pa.concat_tables(self._rejects) if self._rejects else REJECTS.empty_table()
        user = job.schema.tables.events.user_id if self._table == "events" else job.schema.id_column("user")
        rejects = without_users(rejects, job.forgotten, user, job.id_type)
        if len(rejects):
            write_parquet(rejects, Path(job.out) / "rejects" / f"{self._table}-{job.first_shard + number:06d}.parquet")
        facts = {
            "table": self._table,
            "rows": self._rows,
            "rejects": counts_by_reason(rejects),
            "dropped": self.dropped,
            "multi_line": [vars(cells) for cells in self._multi_line],
            "found": sorted(self.found),
            "first": self._first,
            "last": self._last,
            "days": self._days,
            "nulls": self._nulls,
        }
        write_json(facts, Path(job.work) / SHARDS_FOLDER / f"{self._table}-{number:06d}.json")


def _day_counts(times: npt.NDArray[np.int64], first: int) -> dict[int, int]:
    """Events by day since the epoch; ``first`` is the earliest day."""
    counts = np.bincount(times // US_PER_DAY - first)
    return {first + int(place): int(counts[place]) for place in np.flatnonzero(counts)}


def read_spilled(spilled: Sequence[Spilled], kind: str, part: int, schema: pa.Schema) -> pa.Table:
    """One partition's rows of a table, from all batches that were spilled."""
    paths = sorted(one.path for one in spilled if one.table == kind)
    tables = [read_arrow(Path(path), part) for path in paths]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()
