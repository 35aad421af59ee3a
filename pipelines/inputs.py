"""Inputs: the files of the three tables, and what can be told of them before any row is read.

Reads footers and headers of the tables; the events themselves only where no items table names the catalogue, or where
no bound of the split says up to when features look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import fingerprint_of
from pipelines.contracts.schema import DatasetSchema
from pipelines.features.increment import Previous
from pipelines.tables.catalogue import Items, id_type, items_of_events, read_items, unified_schema
from pipelines.tables.conversion import as_times
from pipelines.tables.entity_checks import entity_columns
from pipelines.tables.event_checks import columns_of, moment
from pipelines.tables.readers import (
    Shard,
    SourceFile,
    arrow_schema,
    find_files,
    plan_shards,
    read_shard,
    require_columns,
)

# Events a partition: about 100 MB of Arrow and NumPy at the peak of its worker.
EVENTS_PER_PARTITION = 1_000_000
# Bytes of a CSV or JSONL file that stand for one event, where no footer counts them.
_BYTES_PER_TEXT_EVENT = 40
_MAX_PARTITIONS = 4_096


@dataclass(frozen=True)
class Inputs:
    """The files of the three tables; None where the schema has no such table."""

    events: tuple[SourceFile, ...]
    items: tuple[SourceFile, ...] | None
    users: tuple[SourceFile, ...] | None

    @classmethod
    def find(cls, schema: DatasetSchema) -> Inputs:
        """Lists the files.

        Raises:
            SchemaError: a path matches nothing or cannot be reached.
        """
        tables = schema.tables
        return cls(
            find_files(tables.events, "events"),
            None if tables.items is None else find_files(tables.items, "items"),
            None if tables.users is None else find_files(tables.users, "users"),
        )

    def fingerprints(self) -> dict[str, str]:
        """One fingerprint a table, of names' order, sizes and edges of its files."""
        named = {"events": self.events, "items": self.items, "users": self.users}
        return {
            name: fingerprint_of([file.fingerprint for file in files])
            for name, files in named.items()
            if files is not None
        }


@dataclass(frozen=True)
class Survey:
    """What footers and headers say: shards to read, types of the ids, columns of the users table (None without one)."""

    events: tuple[Shard, ...]
    users: tuple[Shard, ...]
    user_type: pa.DataType
    item_type: pa.DataType
    users_schema: pa.Schema | None

    @classmethod
    def of(cls, schema: DatasetSchema, inputs: Inputs) -> Survey:
        """Looks at every file of events and users.

        Raises:
            SchemaError: a file cannot be read or lacks a column, or a column cannot be what the schema says.
        """
        table = schema.tables.events
        kinds = [checked_columns(file, columns_of(schema), schema) for file in inputs.events]
        user_kinds = [kind.field(table.user_id).type for kind in kinds]
        users_schema = None
        if inputs.users is not None:
            found = unified_schema(inputs.users, "users")
            users_schema = pa.schema([found.field(name) for name in entity_columns(schema, "user", found.names)])
            user_kinds.append(found.field(schema.id_column("user")).type)
        return cls(
            events=tuple(plan_shards(inputs.events, "events")),
            users=tuple(plan_shards(inputs.users, "users")) if inputs.users is not None else (),
            user_type=id_type(user_kinds, table.user_id),
            item_type=id_type([kind.field(table.item_id).type for kind in kinds], table.item_id)
            if inputs.items is None
            else pa.null(),
            users_schema=users_schema,
        )

    @property
    def partitions(self) -> int:
        """How many partitions a full run cuts the users into."""
        events = sum(
            shard.rows if shard.rows is not None else shard.file.bytes // _BYTES_PER_TEXT_EVENT for shard in self.events
        )
        return min(max(-(-events // EVENTS_PER_PARTITION), 1), _MAX_PARTITIONS)

    def new_events(self, previous: Previous | None) -> tuple[Shard, ...]:
        """The shards of events that a previous run has not read."""
        if previous is None:
            return self.events
        new = {file.url for file in previous.new_files}
        return tuple(shard for shard in self.events if shard.file.url in new)


def checked_columns(file: SourceFile, names: Sequence[str], schema: DatasetSchema) -> pa.Schema:
    """The file's columns, having checked that it has those the job reads and that the order column can be one.

    Raises:
        SchemaError: it cannot be read, lacks a column, or its order column is of another type than the schema says.
    """
    found = arrow_schema(file, "events")
    require_columns(found, names, file, "events")
    table = schema.tables.events
    kind = found.field(table.order_column).type if table.order_column is not None else None
    kind = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
    if table.time is not None and kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaError(
            f"tables.events.time: expected a timestamp, a date or ISO text in column {table.time!r} of {file.url}, got "
            f'{kind}. Convert it, or give order = "{table.time}" in place of time.'
        )
    if table.order is not None and kind is not None and pa.types.is_temporal(kind):
        raise SchemaError(
            f"tables.events.order: expected integers in column {table.order!r} of {file.url}, got {kind}. "
            f'Give time = "{table.order}" in place of order.'
        )
    return found


def catalogue_of(schema: DatasetSchema, inputs: Inputs, survey: Survey, previous: Previous | None) -> Items:
    """The catalogue: the items table, or without one every item that events name, those of a previous run included.

    Raises:
        SchemaError: the items table cannot be read, has no rows, lacks a column, or names an id twice.
    """
    if inputs.items is not None:
        return read_items(schema, inputs.items)
    known = None if previous is None else previous.vocabulary.item_ids
    if known is not None and known.type != survey.item_type:
        known, previous = None, None
    return items_of_events(schema, survey.new_events(previous), survey.item_type, known)


def as_of_us(schema: DatasetSchema, survey: Survey, previous: Previous | None) -> int:
    """The moment features look back from, the index's own: where the test window begins, else after the last event."""
    table = schema.tables.events
    if table.time is None:
        return 0
    if schema.split.test_from is not None:
        return moment(schema.split.test_from)
    last = 0 if previous is None else int(previous.facts["as_of_us"])
    for shard in survey.new_events(previous):
        for batch in read_shard(shard, [table.time], {table.time: pa.string()}):
            found = pc.max(as_times(batch.table[table.time]).values).as_py()
            last = max(last, 0 if found is None else found + 1)
    return last
