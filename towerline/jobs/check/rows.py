"""Rows: what the features job would find in the rows of the tables, in memory.

Uses the job's own checks and grouping, so that what it would refuse is refused here with the same words. Reads the
items and the users whole, and the events whole or a sample of them. Writes nothing.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import DatasetSchema, TableName, Window
from pipelines.features.duplicates import DUPLICATE
from pipelines.features.partitions import refuse_twice
from pipelines.features.planning import Inputs, Survey, catalogue_of
from pipelines.features.reporting.unknown import of_window
from pipelines.features.task import roll_of
from pipelines.sequences.grouping import Grouped, alive, group_events, in_window, keep_events, since, with_last_out
from pipelines.sequences.repeats import repeats
from pipelines.sequences.segments import joined
from pipelines.tables.catalogue import Items
from pipelines.tables.entity_checks import EntityChecker
from pipelines.tables.erasure.kept_list import kept_list
from pipelines.tables.event_checks import EventChecker, ItemLookup, checked_schema, unknown_schema
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import read_shard
from pipelines.tables.rejects.checks import REJECTS, counts_by_reason, malformed_rejects
from pipelines.tables.rejects.multi_line import MultiLineCells, MultiLineCount
from pipelines.tables.rejects.thresholds import TableCounts, examples_of
from towerline.config import Config
from towerline.jobs.check.sampling import Sample, choose
from towerline.jobs.stages import FEATURES


@dataclass
class _Read:
    """What reading one table has found so far."""

    table: TableName
    rows: int = 0
    rejects: list[pa.Table] = field(default_factory=list)
    multi_line: MultiLineCount = field(init=False)

    def __post_init__(self) -> None:
        self.multi_line = MultiLineCount(self.table)

    def add(self, batch: TableBatch, rejects: pa.Table) -> None:
        """Adds a batch and what was rejected of it, without the whole records."""
        self.rows += batch.rows
        self.multi_line.add(batch)
        for part in (rejects, malformed_rejects(batch, self.table)):
            if len(part):
                self.rejects.append(part.drop_columns("record"))

    def counts(self, further: dict[str, int] | None = None) -> TableCounts:
        """Rows, rejects by reason (``further`` among them), and an example of each."""
        rejects = pa.concat_tables([REJECTS.empty_table().drop_columns("record"), *self.rejects])
        return TableCounts(self.rows, {**counts_by_reason(rejects), **(further or {})}, examples_of(rejects))


@dataclass(frozen=True)
class _Users:
    """The ids of the users table, ascending, None without one, and what reading it has found."""

    ids: pa.Array | None
    read: _Read


@dataclass(frozen=True)
class Rows:
    """What the rows hold.

    grouped: the accepted events by user, users without events included. counts: by table. unknown: the item of each
    event whose item is in no table. profiled: ids of the users table, ascending, None without one. has_items: whether
    there is an items table. dropped: events at or after ``split.test_until``, or after rolling windows. older: events
    before ``split.history_days``. window: the rolling windows of a run now; None where they do not roll.
    """

    grouped: Grouped
    items: Items
    counts: dict[TableName, TableCounts]
    unknown: pa.Array
    profiled: pa.Array | None
    has_items: bool
    sample: Sample
    dropped: int
    multi_line: tuple[MultiLineCells, ...]
    older: int = 0
    window: Window | None = None

    @property
    def scale(self) -> float:
        """Events of the table per event that was read."""
        read = self.counts["events"].rows
        return 1.0 if self.sample.is_whole or read == 0 else max(self.sample.events / read, 1.0)


def read_rows(config: Config, inputs: Inputs, wanted: int | None) -> Rows:
    """Reads the tables as the features job would.

    Args:
        config: the whole configuration.
        inputs: the files; their contents need not be hashed.
        wanted: events to read at most; None as in ``sampling.choose``.

    Raises:
        SchemaError: what the job would refuse while it reads.
        ArtifactError: the list of forgotten users cannot be read.
    """
    schema = config.schema_only()
    survey = Survey.of(schema, inputs)
    sample = choose(inputs.events, schema.tables.events, survey.events, wanted)
    items = _catalogue(schema, inputs, survey, sample)
    users = _read_users(config, schema, survey)
    return _read_events(config, schema, survey, sample, items, users)


def _catalogue(schema: DatasetSchema, inputs: Inputs, survey: Survey, sample: Sample) -> Items:
    """The items table; without one the items that the events read name."""
    if inputs.items is not None or sample.is_whole:
        return catalogue_of(schema, inputs, survey, None)
    return catalogue_of(schema, inputs, dataclasses.replace(survey, events=sample.shards), None)


def _read_users(config: Config, schema: DatasetSchema, survey: Survey) -> _Users:
    """Ids and counts of the users table.

    Raises:
        SchemaError: a file cannot be read, or a user is there twice.
    """
    source, types, read = schema.tables.users, survey.types.get("users"), _Read("users")
    if source is None or types is None:
        return _Users(None, read)
    checker = EntityChecker(schema, "user", types, kept_list(config.work / FEATURES))
    ids = [checker.layout.empty_table().column(source.user_id)]
    for shard in survey.users:
        for batch in read_shard(shard, source, types.columns, types.kinds):
            accepted = checker.check(batch)
            read.add(batch, accepted.rejects)
            ids.append(accepted.table[source.user_id])
    whole = pa.chunked_array([chunk for column in ids for chunk in column.chunks], type=ids[0].type)
    refuse_twice(whole, schema)
    found = joined(whole)
    return _Users(found.take(pa.array(as_sorted(found))), read)


def _read_events(
    config: Config, schema: DatasetSchema, survey: Survey, sample: Sample, items: Items, users: _Users
) -> Rows:
    source, types, read = schema.tables.events, survey.types["events"], _Read("events")
    checker = EventChecker(schema, types, ItemLookup(items.ids), forgotten=kept_list(config.work / FEATURES))
    events = [checked_schema(types.kinds[source.user_id].arrow).empty_table()]
    unknown, dropped = [unknown_schema(events[0].schema.field("user_id").type, items.ids.type).empty_table()], 0
    for shard in sample.shards:
        for batch in sample.batches(shard, source, types.columns, types.kinds):
            checked = checker.check(batch)
            read.add(batch, checked.rejects)
            events.append(checked.events)
            unknown.append(checked.unknown)
            dropped += checked.dropped
    profiled = events[0]["user_id"].combine_chunks() if users.ids is None else users.ids
    last_out = schema.split.leave_last_out
    grouped = group_events(pa.concat_tables(events).combine_chunks(), profiled, leave_last_out=last_out)
    window, strange = _window_now(schema, grouped), pa.concat_tables(unknown)
    older = later = 0
    if window is not None:
        recent = since(grouped, window.history_from)
        older, later = len(grouped.times) - len(recent.times), int((grouped.times >= window.end).sum())
        grouped, strange = recent, of_window(strange, window)
    grouped, duplicates = _without_duplicates(grouped, schema)
    if window is not None:
        grouped = alive(in_window(grouped, window), profiled)
    counts: dict[TableName, TableCounts] = {"items": items.counts, "events": read.counts(duplicates)}
    if users.ids is not None:
        counts["users"] = users.read.counts()
    return Rows(
        grouped=grouped,
        items=items,
        counts=counts,
        unknown=joined(strange["item_id"]),
        profiled=users.ids,
        has_items=schema.tables.items is not None,
        sample=sample,
        dropped=dropped + later,
        multi_line=(*items.multi_line, *read.multi_line, *users.read.multi_line),
        older=older,
        window=window,
    )


def _window_now(schema: DatasetSchema, grouped: Grouped) -> Window | None:
    """The rolling windows of a run that begins now; None where the windows do not roll."""
    roll = roll_of(schema, None, None)
    if roll is None:
        return None
    end = roll.end_after(np.unique(grouped.times // US_PER_DAY).tolist())
    return schema.split.window(roll.clock_us if end is None else end)


def _without_duplicates(grouped: Grouped, schema: DatasetSchema) -> tuple[Grouped, dict[str, int]]:
    """The events without exact duplicates where the schema rejects these, and their number as rejects."""
    if schema.validation.duplicates == "keep":
        return grouped, {}
    again = repeats(grouped, by_split=schema.split.column is not None)
    kept = keep_events(grouped, ~again)
    number = int(again.sum())
    kept = with_last_out(kept) if schema.split.leave_last_out and number else kept
    return kept, {DUPLICATE: number} if number else {}
