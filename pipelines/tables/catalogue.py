"""The catalogue: the items table, checked and sorted by id, so that an item's place is its row.

Without an items table the catalogue is every item that an event names.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import as_ids
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import DatasetSchema
from pipelines.tables.entity_checks import EntityChecker, entity_columns
from pipelines.tables.readers import Shard, SourceFile, arrow_schema, plan_shards, read_shard
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


def id_type(kinds: Sequence[pa.DataType], column: str) -> pa.DataType:
    """int64 where every file has integers, else string.

    Raises:
        SchemaError: a file's type can be no id.
    """
    plain = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    for kind in plain:
        fits = pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not (fits or pa.types.is_string_view(kind) or pa.types.is_null(kind) or pa.types.is_floating(kind)):
            raise SchemaError(f"column {column!r} has type {kind}; an id is an integer or a text. Change the column.")
    known = [kind for kind in plain if not pa.types.is_null(kind)]
    return pa.int64() if known and all(pa.types.is_integer(kind) for kind in known) else pa.string()


def unified_schema(files: Sequence[SourceFile], name: str) -> pa.Schema:
    """Columns and types that hold for all files of a table.

    Raises:
        SchemaError: a file cannot be read, or two files have a column of irreconcilable types.
    """
    schemas = [arrow_schema(file, name).remove_metadata() for file in files]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as err:
        raise SchemaError(
            f"tables.{name}: its files have a column of different types: {err}. Make them agree."
        ) from err


def read_items(schema: DatasetSchema, files: Sequence[SourceFile]) -> Items:
    """Reads and checks the items table.

    Raises:
        SchemaError: it cannot be read, has no rows, lacks a column, or names an id twice.
    """
    found = unified_schema(files, "items")
    columns = entity_columns(schema, "item", found.names)
    name = schema.id_column("item")
    kinds = pa.schema([found.field(column) for column in columns])
    checker = EntityChecker(schema, "item", id_type([kinds.field(name).type], name), kinds)
    tables, rejects, rows = [checker.layout.empty_table()], [REJECTS.empty_table()], 0
    for shard in plan_shards(files, "items"):
        for batch in read_shard(shard, columns, {}):
            accepted = checker.check(batch)
            tables.append(accepted.table)
            rejects.append(accepted.rejects)
            rejects.append(malformed_rejects(batch.malformed, "items", batch.file, batch.first_row))
            rows += len(batch.table) + len(batch.malformed)
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
        for batch in read_shard(shard, [name], {name: pa.string()}):
            ids = as_ids(batch.table[name], kind).values
            found = pc.unique(pa.concat_arrays([found, pc.drop_null(ids)]))
    table = pa.table({name: found.take(pa.array(as_sorted(found)))})
    return Items(table, name, REJECTS.empty_table(), TableCounts(len(table), {}))
