"""Partitions: the two halves of the features job that run on workers, as plain functions over files.

``ingest_*`` reads one shard of a raw table, checks it and spills it by partition; ``build_partition`` reads one
partition's spilled batches and writes its sequences, its users and what they say of the features. Memory is bounded by
one batch and by one partition, never by the data. Every file is written aside and renamed, under a name that its
content decides: a retried or doubled task writes the same again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.counting import window_counts
from pipelines.encode import count_column
from pipelines.entities import EntityChecker
from pipelines.errors import SchemaError
from pipelines.events import Catalogue, EventChecker, checked_schema, columns_of, moment
from pipelines.fitting import Moments, SideSummary, Summary, summarise
from pipelines.grouping import Grouped, group_events, keep_users, merge, with_last_out
from pipelines.hashing import partition_of
from pipelines.schema import CountFeature, DatasetSchema
from pipelines.sequences import part_name, read_part, write_part
from pipelines.tables import Batch, Shard, read_shard
from pipelines.validation import REJECTS, malformed_rejects

CATALOGUE_FILE = "catalogue.arrow"
USERS_SCHEMA_FILE = "users_schema.arrow"
FORGOTTEN_FILE = "forgotten.arrow"
REMAP_FILE = "remap.arrow"


@dataclass(frozen=True)
class Job:
    """What every worker is told. ``out`` and ``work`` must be on a file system that all workers see.

    ``as_of_us`` is the moment from which ``time_since`` and ``count`` features look back; ``user_type`` is int64 or
    string; ``previous`` the artifact of an earlier run whose sequences are merged in, ``bounds_moved`` whether their
    splits must be coded anew; ``first_shard`` the number of the first shard, above those of the earlier run.
    """

    schema_json: str
    out: str
    work: str
    partitions: int
    user_type: str
    as_of_us: int
    first_shard: int = 0
    late_before_us: int | None = None
    previous: str | None = None
    bounds_moved: bool = False

    @property
    def schema(self) -> DatasetSchema:
        """The data set's schema."""
        return _schema(self.schema_json)

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the user ids."""
        return pa.int64() if self.user_type == "int64" else pa.string()

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The item ids in row order."""
        return _catalogue(str(Path(self.work) / CATALOGUE_FILE))

    @functools.cached_property
    def forgotten(self) -> pa.Array | None:
        """Ids of users to forget, in the type of the user ids; None where there are none."""
        path = Path(self.work) / FORGOTTEN_FILE
        return _one(read_arrow(path)["user_id"]) if path.exists() else None

    @functools.cached_property
    def remap(self) -> npt.NDArray[np.int32] | None:
        """Each row of the previous run's catalogue in this one's; None where the two are the same."""
        path = Path(self.work) / REMAP_FILE
        return np.asarray(read_arrow(path)["row"], np.int32) if path.exists() else None

    @functools.cached_property
    def users_schema(self) -> pa.Schema | None:
        """Columns and types of the users table; None where there is none."""
        path = Path(self.work) / USERS_SCHEMA_FILE
        return pa.ipc.read_schema(pa.py_buffer(path.read_bytes())) if path.exists() else None

    @property
    def users_layout(self) -> pa.Schema:
        """Columns and types of the users as they are stored."""
        if self.users_schema is None:
            return pa.schema([(self.schema.id_column("user"), self.id_type)])
        return EntityChecker(self.schema, "user", self.id_type, self.users_schema).layout


@functools.lru_cache(maxsize=4)
def _schema(text: str) -> DatasetSchema:
    return DatasetSchema.model_validate_json(text)


@functools.lru_cache(maxsize=2)
def _catalogue(path: str) -> Catalogue:
    return Catalogue(read_arrow(Path(path))["item_id"].combine_chunks())


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` fill a file next to ``path``, then renames it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_arrow(table: pa.Table | Sequence[pa.Table], path: Path) -> None:
    """Writes tables of one schema as one Arrow file, a record batch for each table."""
    tables = [table] if isinstance(table, pa.Table) else list(table)

    def write(aside: Path) -> None:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, tables[0].schema) as writer:
            for one in tables:
                batches = one.combine_chunks().to_batches()
                writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=one.schema))

    write_aside(path, write)


def read_arrow(path: Path, batch: int | None = None) -> pa.Table:
    """Reads a file of ``write_arrow``: all of it, or one of its batches."""
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        if batch is None:
            return reader.read_all()
        return pa.Table.from_batches([reader.get_batch(batch)])


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a Parquet file aside and renames it."""
    write_aside(path, lambda aside: pq.write_table(table, aside))


def write_json(value: object, path: Path) -> None:
    """Writes a JSON file aside and renames it."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(value)))


@dataclass(frozen=True)
class Spilled:
    """A reference to one partition's batch in a spill file."""

    path: str
    table: str


def ingest_events(job: Job, number: int, shard: Shard) -> Iterator[tuple[int, Spilled]]:
    """Checks a shard of events and spills it; yields (partition, reference) for each batch that is not empty."""
    checker = EventChecker(job.schema, job.id_type, job.catalogue, job.late_before_us, job.forgotten)
    names = columns_of(job.schema)
    types = _text_columns(names)
    facts = _ShardFacts("events")
    for place, batch in enumerate(read_shard(shard, names, types)):
        checked = checker.check(batch)
        facts.add(batch, checked.rejects)
        facts.dropped += checked.dropped
        facts.see_times(checked.events["time"])
        yield from _spill(job, "events", number, place, checked.events)
    facts.write(job, number)


def ingest_users(job: Job, number: int, shard: Shard) -> Iterator[tuple[int, Spilled]]:
    """Checks a shard of users and spills it, like ``ingest_events``."""
    assert job.users_schema is not None
    checker = EntityChecker(job.schema, "user", job.id_type, job.users_schema, job.forgotten)
    facts = _ShardFacts("users")
    for place, batch in enumerate(read_shard(shard, job.users_schema.names, {})):
        accepted = checker.check(batch)
        facts.add(batch, accepted.rejects)
        table = accepted.table.rename_columns(
            ["user_id" if name == job.schema.id_column("user") else name for name in accepted.table.column_names]
        )
        yield from _spill(job, "users", number, place, table)
    facts.write(job, number)


def _text_columns(names: Sequence[str]) -> dict[str, pa.DataType]:
    """CSV columns of events are read as text and converted cell by cell: a wrong cell is a reject, not a failure."""
    return {name: pa.string() for name in names}


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

    def __init__(self, table: str) -> None:
        self._table = table
        self._rows = 0
        self._rejects: list[pa.Table] = []
        self._first: int | None = None
        self._last: int | None = None
        self.dropped = 0

    def add(self, batch: Batch, rejects: pa.Table) -> None:
        self._rows += len(batch.table) + len(batch.malformed)
        if len(rejects):
            self._rejects.append(rejects)
        if batch.malformed:
            self._rejects.append(malformed_rejects(batch.malformed, self._table, batch.file, batch.first_row))

    def see_times(self, times: pa.ChunkedArray) -> None:
        bounds = pc.min_max(times).as_py()
        if bounds["min"] is not None:
            self._first = bounds["min"] if self._first is None else min(self._first, bounds["min"])
            self._last = bounds["max"] if self._last is None else max(self._last, bounds["max"])

    def write(self, job: Job, number: int) -> None:
        rejects = pa.concat_tables(self._rejects) if self._rejects else REJECTS.empty_table()
        if len(rejects):
            write_parquet(rejects, Path(job.out) / "rejects" / f"{self._table}-{job.first_shard + number:06d}.parquet")
        facts = {
            "table": self._table,
            "rows": self._rows,
            "rejects": dict(Counter(rejects["reason"].to_pylist())),
            "dropped": self.dropped,
            "first": self._first,
            "last": self._last,
        }
        write_json(facts, Path(job.work) / "shards" / f"{self._table}-{number:06d}.json")


@dataclass(frozen=True)
class PartitionFacts:
    """What a partition adds to the whole. ``events`` counts by split; tables are sparse: rows that it saw."""

    users: int
    events: list[int]
    item_frequency: pa.Table
    item_counts: pa.Table
    summary: SideSummary

    def write(self, folder: Path) -> None:
        """Writes Arrow and JSON files below ``folder``."""
        write_arrow(self.item_frequency, folder / "item_frequency.arrow")
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
        write_json({"users": self.users, "events": self.events, "moments": moments}, folder / "facts.json")

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
        frequency, counts = (read_arrow(folder / f"{name}.arrow") for name in ("item_frequency", "item_counts"))
        return cls(facts["users"], facts["events"], frequency, counts, SideSummary(features))


def build_partition(job: Job, part: int, spilled: Sequence[Spilled]) -> PartitionFacts:
    """Builds one partition: writes its parts of ``sequences/`` and ``users/``, returns its facts."""
    schema = job.schema
    events = _read_spilled(spilled, "events", part, checked_schema(job.id_type))
    layout = job.users_layout.names
    users_schema = pa.schema(
        [
            field.with_name("user_id") if place == layout.index(schema.id_column("user")) else field
            for place, field in enumerate(job.users_layout)
        ]
    )
    profiles = _read_spilled(spilled, "users", part, users_schema)
    _refuse_twice(profiles["user_id"], schema)
    grouped = group_events(events, _one(profiles["user_id"]), leave_last_out=schema.split.leave_last_out)
    base = _previous_part(job, part)
    if base is not None:
        grouped = _merged(job, base, grouped, _one(profiles["user_id"]))
    target = Path(job.out) / "sequences" / part_name(part, job.partitions)
    untouched = job.remap is None and job.forgotten is None and not job.bounds_moved and len(events) == 0
    if base is not None and untouched and base.user_ids.equals(grouped.user_ids):
        write_aside(target, lambda aside: _link(Path(str(job.previous)) / "sequences" / target.name, aside))
    else:
        write_aside(target, lambda aside: write_part(grouped, aside))
    del events, base
    trained = grouped.splits == 0
    frequency = np.bincount(grouped.owners[trained], minlength=len(grouped.user_ids))
    users = _users_table(job, grouped, profiles)
    write_parquet(users, Path(job.out) / "users" / part_name(part, job.partitions))
    rows, counts = _counted(grouped.rows[trained], len(job.catalogue.item_ids))
    return PartitionFacts(
        users=len(grouped.user_ids),
        events=[int(number) for number in np.bincount(grouped.splits, minlength=3)],
        item_frequency=pa.table({"row": rows, "count": counts}),
        item_counts=_item_counts(job, grouped),
        summary=summarise(_fitted_features(schema), users, grouped.user_ids, frequency, job.as_of_us),
    )


def _previous_part(job: Job, part: int) -> Grouped | None:
    """The previous run's sequences of a partition, in this run's catalogue and split, without forgotten users."""
    if job.previous is None:
        return None
    base = read_part(Path(job.previous) / "sequences" / part_name(part, job.partitions))
    if job.forgotten is not None:
        base = keep_users(base, ~np.asarray(pc.is_in(base.user_ids, value_set=job.forgotten), dtype=bool))
    if job.remap is not None:
        base = dataclasses.replace(base, rows=job.remap[base.rows])
    split = job.schema.split
    if job.bounds_moved and split.valid_from is not None and split.test_from is not None:
        bounds = np.array([moment(split.valid_from), moment(split.test_from)])
        base = dataclasses.replace(base, splits=np.searchsorted(bounds, base.times, side="right").astype(np.int8))
    return base


def _merged(job: Job, base: Grouped, new: Grouped, profiled: pa.Array) -> Grouped:
    """Old and new events together; a user with neither events nor a profile any more leaves."""
    merged = merge(base, new)
    alive = (np.diff(merged.offsets) > 0) | np.asarray(pc.is_in(merged.user_ids, value_set=profiled), dtype=bool)
    merged = keep_users(merged, alive)
    return with_last_out(merged) if job.schema.split.leave_last_out else merged


def _link(source: Path, target: Path) -> None:
    """A second name for a file that nobody changes any more; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _counted(rows: npt.NDArray[np.int32], items: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct rows and how often each stands; by a table of all items unless that were much larger than the rows."""
    if items > 4 * len(rows) + 1_000_000:
        distinct, numbers = np.unique(rows, return_counts=True)
        return distinct, numbers
    table = np.bincount(rows, minlength=items)
    seen = np.flatnonzero(table)
    return seen.astype(np.int32), table[seen]


def _fitted_features(schema: DatasetSchema) -> tuple[Any, ...]:
    """User features, the id's own column being called user_id in the stored table."""
    own = schema.id_column("user")
    return tuple(
        feature.model_copy(update={"column": "user_id"}) if feature.source == own else feature
        for feature in schema.side("user")
    )


def _read_spilled(spilled: Sequence[Spilled], kind: str, part: int, schema: pa.Schema) -> pa.Table:
    paths = sorted(one.path for one in spilled if one.table == kind)
    tables = [read_arrow(Path(path), part) for path in paths]
    return pa.concat_tables([schema.empty_table(), *tables]).combine_chunks()


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays([*column.chunks, pa.array([], column.type)])


def _refuse_twice(ids: pa.ChunkedArray, schema: DatasetSchema) -> None:
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise SchemaError(
            f"tables.users: expected each {schema.id_column('user')} once, {twice[0].as_py()!r} stands several times "
            f"(and {len(twice) - 1} others in the same partition). Remove the duplicates."
        )


def _users_table(job: Job, grouped: Grouped, profiles: pa.Table) -> pa.Table:
    """The users' raw columns in the order of the sequences; nulls where a user has no profile."""
    places = pc.index_in(grouped.user_ids, value_set=_one(profiles["user_id"]))
    table = profiles.take(places).set_column(profiles.column_names.index("user_id"), "user_id", grouped.user_ids)
    own = np.arange(len(grouped.user_ids))
    for feature in job.schema.side("user"):
        if isinstance(feature, CountFeature):
            chosen = _counted_events(job, grouped, feature)
            for days in feature.window_days:
                counts = window_counts(grouped.owners[chosen], grouped.times[chosen], len(own), job.as_of_us, days)
                table = table.append_column(count_column(feature, days), pa.array(counts))
    return table


def _counted_events(job: Job, grouped: Grouped, feature: CountFeature) -> Any:
    """``[events] bool``: train events of the feature's action."""
    chosen = grouped.splits == 0
    if feature.action is not None:
        chosen = chosen & (grouped.actions == job.schema.action_names.index(feature.action))
    return chosen


def _item_counts(job: Job, grouped: Grouped) -> pa.Table:
    """(row, column, count) of the item side's count features in this partition."""
    parts = [
        pa.table(
            {"row": pa.array([], pa.int32()), "column": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
        )
    ]
    for feature in job.schema.side("item"):
        if isinstance(feature, CountFeature):
            chosen = _counted_events(job, grouped, feature)
            rows, places = np.unique(grouped.rows[chosen], return_inverse=True)
            for days in feature.window_days:
                counts = window_counts(places, grouped.times[chosen], len(rows), job.as_of_us, days)
                name = pa.repeat(count_column(feature, days), len(rows))
                parts.append(pa.table({"row": rows, "column": name, "count": counts}))
    return pa.concat_tables(parts)
