"""Parquet: row groups as they are, in the file's own types."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.formats.undecodable import without_undecodable


def row_group_sizes(handle: Any) -> list[int]:
    """Rows of each row group, by the footer."""
    metadata = pq.read_metadata(handle)
    return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def read_row_groups(
    handle: Any, url: str, columns: Sequence[str], groups: Sequence[int], first_row: int, rows_per_batch: int
) -> Iterator[TableBatch]:
    """Reads row groups, in batches of at most ``rows_per_batch`` rows.

    Args:
        handle: the file.
        url: its name.
        columns: those wanted; the batches have those of them that the file has.
        groups: numbers of the row groups, ascending.
        first_row: place in the file of the first row of the first group.
        rows_per_batch: the memory bound.
    """
    reader = pq.ParquetFile(handle)
    names = reader.schema_arrow.names
    columns = [name for name in columns if name in names]
    rows = sum(reader.metadata.row_group(group).num_rows for group in groups)
    if rows <= rows_per_batch:
        table = reader.read_row_groups(list(groups), columns=columns) if groups else reader.schema_arrow.empty_table()
        yield without_undecodable(TableBatch(table.select(columns), url, first_row))
        return
    for part in reader.iter_batches(rows_per_batch, row_groups=list(groups), columns=columns):
        table = pa.Table.from_batches([part]).select(columns)
        yield without_undecodable(TableBatch(table, url, first_row))
        first_row += part.num_rows
