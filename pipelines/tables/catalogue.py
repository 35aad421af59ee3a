"""The catalogue: the items table, checked and sorted by id, so that an item's place is its row.

Without an items table the catalogue is every item that an event names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import DatasetSchema
from pipelines.tables.column_types import TableTypes
from pipelines.tables.entity_checks import EntityChecker, entity_columns
from pipelines.tables.files import SourceFile
from pipelines.tables.readers import Shard, plan_shards, read_shard
from pipelines.tables.rejects.checks import REJECTS, counts_by_reason, malformed_rejects
from pipelines.tables.rejects.multi_line import MultiLineCells, MultiLineCount
from pipelines.tables.rejects.thresholds import TableCounts, examples_of
from pipelines.tables.rejects.typed_columns import ids_of

# Where a row comes from, while the table is read.
_FILE, _ROW = "__file__", "__row__"


@dataclass(frozen=True)
class Items:
    """The catalogue's raw columns, sorted by id; ``id_column`` is int64 or string, unique, without nulls."""

    table: pa.Table
    id_column: str
    rejects: pa.Table
    counts: TableCounts
    multi_line: tuple[MultiLineCells, ...] = ()

    @property
    def ids(self) -> pa.Array:
        """Item ids in row order."""
        column = self.table[self.id_column]
        return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def read_items(schema: DatasetSchema, files: Sequence[SourceFile], types: TableTypes) -> Items:
    """Reads and checks the items table.

    Args:
        schema: the data set's.
        files: the table's.
        types: of its columns.

    Raises:
        SchemaError: it cannot be read, has no rows, lacks a column, or names an id twice.
    """
    source, name = schema.tables.items, schema.id_column("item")
    assert source is not None
    columns = entity_columns(schema, "item", types.columns)
    checker = EntityChecker(schema, "item", types.only(columns))
    tables, rejects, rows = (
        [_placed(checker.layout.empty_table(), 0, np.zeros(0, np.int64))],
        [REJECTS.empty_table()],
        0,
    )
    multi_line = MultiLineCount("items")
    for shard in plan_shards(files, source, "items"):
        number = files.index(shard.file)
        for batch in read_shard(shard, source, columns, types.kinds):
            accepted = checker.check(batch)
            tables.append(_placed(accepted.table, number, accepted.rows))
            rejects += [accepted.rejects, malformed_rejects(batch, "items")]
            multi_line.add(batch)
            rows += batch.rows
    refused = pa.concat_tables(rejects)
    counts = TableCounts(rows, counts_by_reason(refused), examples_of(refused))
    if rows == 0:
        raise SchemaError("tables.items: expected at least one item, found an empty table.")
    return Items(_sorted(pa.concat_tables(tables), name, files), name, refused, counts, tuple(multi_line))


def _placed(table: pa.Table, file: int, rows: Int64) -> pa.Table:
    """The table with the places of its rows: number of the file, row in it."""
    files = pa.repeat(pa.scalar(file, pa.int32()), len(table))
    return table.append_column(_FILE, files).append_column(_ROW, pa.array(rows, pa.int64()))


def _sorted(table: pa.Table, name: str, files: Sequence[SourceFile]) -> pa.Table:
    ids = table[name].combine_chunks()
    order = as_sorted(ids)
    table, ids = table.take(pa.array(order)), ids.take(pa.array(order))
    twice = np.flatnonzero(np.asarray(pc.equal(ids[1:], ids[:-1]), dtype=bool)) if len(ids) > 1 else np.zeros(0, int)
    if len(twice):
        first = int(twice[0])
        pair = sorted(zip(*(table[column].slice(first, 2).to_pylist() for column in (_FILE, _ROW)), strict=True))
        where = " and ".join(f"{files[file].url} row {row}" for file, row in pair)
        raise SchemaError(
            f"tables.items: expected each {name} once, {len(twice)} rows repeat one, the first "
            f"{ids[first].as_py()!r} in {where}. Remove the duplicates."
        )
    return table.drop_columns([_FILE, _ROW])


def items_of_events(
    schema: DatasetSchema, shards: Sequence[Shard], types: TableTypes, known: pa.Array | None = None
) -> Items:
    """The catalogue of a data set without an items table: one column, the ids that events name, and those known.

    Args:
        schema: the data set's.
        shards: of the events.
        types: of their columns.
        known: ids that are in the catalogue in any case.
    """
    source, name = schema.tables.events, schema.tables.events.item_id
    kind = types.kinds[name]
    found = pa.array([], kind.arrow) if known is None else known
    for shard in shards:
        for batch in read_shard(shard, source, [name], types.kinds):
            ids = ids_of(batch.table[name], kind, source.decimal)
            found = pc.unique(pa.concat_arrays([found, pc.drop_null(ids)]))
    table = pa.table({name: found.take(pa.array(as_sorted(found)))})
    return Items(table, name, REJECTS.empty_table(), TableCounts(len(table), {}))
