"""The catalogue: the items table, checked and sorted by id, so that an item's place is its row.

Without an items table the catalogue is every item that an event names.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import as_ids, as_numbers, as_times
from pipelines.contracts.conversion.column_type import STRING
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import DatasetSchema, TableName
from pipelines.tables.column_types import named_columns
from pipelines.tables.entity_checks import EntityChecker, entity_columns
from pipelines.tables.files import SourceFile
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import Shard, file_schema, plan_shards, read_shard
from pipelines.tables.rejects import REJECTS, TableCounts, malformed_rejects


@dataclass(frozen=True)
class Items:
    """The catalogue's raw columns, sorted by id; ``id_column`` is int64 or string, unique, without nulls."""

    table: pa.Table
    id_column: str
    rejects: pa.Table
    counts: TableCounts

    @property
    def ids(self) -> pa.Array:
        """Item ids in row order."""
        column = self.table[self.id_column]
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def unified_schema(schema: DatasetSchema, table: TableName, files: Sequence[SourceFile]) -> pa.Schema:
    """Columns and types that hold for all files of a table.

    Raises:
        SchemaError: a file cannot be read, or two files have a column of irreconcilable types.
    """
    source = getattr(schema.tables, table)
    schemas = [file_schema(file, source, table, named_columns(schema, table)) for file in files]
    if any(file.is_text for file in files):
        kinds = schema.column_types(table, text=True)
        names = dict.fromkeys(name for found in schemas for name in found.names)
        return pa.schema([(name, kinds.get(name, STRING).arrow) for name in names])
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
        raise SchemaError(
            f"tables.{table}: its files have a column of different types: {err}. Make them agree."
        ) from err


def typed(batch: TableBatch, layout: pa.Schema, id_column: str) -> TableBatch:
    """The batch, the texts of its columns in the types of ``layout``; what does not fit is null."""
    columns = {name: batch.table[name] for name in batch.table.column_names}
    for name, column in columns.items():
        wanted = layout.field(name).type
        if name == id_column or column.type == wanted or not pa.types.is_string(column.type):
            continue
        if pa.types.is_timestamp(wanted):
            columns[name] = as_times(column).values.cast(wanted)
        elif pa.types.is_list(wanted):
            columns[name] = pa.array(
                [None if text is None else json.loads(text) for text in column.to_pylist()], wanted
            )
        else:
            columns[name] = as_numbers(column).values.cast(wanted)
    return dataclasses.replace(batch, table=pa.table(columns))


def read_items(schema: DatasetSchema, files: Sequence[SourceFile], kind: pa.DataType) -> Items:
    """Reads and checks the items table.

    Raises:
        SchemaError: it cannot be read, has no rows, lacks a column, or names an id twice.
    """
    assert schema.tables.items is not None
    found = unified_schema(schema, "items", files)
    columns = entity_columns(schema, "item", found.names)
    name = schema.id_column("item")
    kinds = pa.schema([found.field(column) for column in columns])
    checker = EntityChecker(schema, "item", kind, kinds)
    tables, rejects, rows = [checker.layout.empty_table()], [REJECTS.empty_table()], 0
    for shard in plan_shards(files, "items"):
        for batch in read_shard(shard, schema.tables.items, columns, schema.column_types("items", text=True)):
            accepted = checker.check(typed(batch, kinds, name))
            tables.append(accepted.table)
            rejects.append(accepted.rejects)
            rejects.append(malformed_rejects(batch, "items"))
            rows += batch.rows
    refused = pa.concat_tables(rejects)
    counts = TableCounts(rows, dict(Counter(refused["reason"].to_pylist())))
    return Items(_sorted(pa.concat_tables(tables), name, rows), name, refused, counts)


def _sorted(table: pa.Table, name: str, rows: int) -> pa.Table:
    if rows == 0:
        raise SchemaError("tables.items: expected at least one item, found an empty table.")
    ids = table[name].combine_chunks()
    order = as_sorted(ids)
    table = table.take(pa.array(order))
    ids = ids.take(pa.array(order))
    twice = np.flatnonzero(np.asarray(pc.equal(ids[1:], ids[:-1]), dtype=bool)) if len(ids) > 1 else np.zeros(0, int)
    if len(twice):
        raise SchemaError(
            f"tables.items: expected each {name} once, {len(twice)} rows repeat one, the first "
            f"{ids[int(twice[0])].as_py()!r}. Remove the duplicates."
        )
    return table


def items_of_events(
    schema: DatasetSchema, shards: Sequence[Shard], kind: pa.DataType, known: pa.Array | None = None
) -> Items:
    """The catalogue of a data set without an items table: one column, the ids that events name, and those known."""
    name = schema.tables.events.item_id
    found = pa.array([], kind) if known is None else known
    for shard in shards:
        for batch in read_shard(shard, schema.tables.events, [name], {}):
            ids = as_ids(batch.table[name], kind).values
            found = pc.unique(pa.concat_arrays([found, pc.drop_null(ids)]))
    table = pa.table({name: found.take(pa.array(as_sorted(found)))})
    return Items(table, name, REJECTS.empty_table(), TableCounts(len(table), {}))
