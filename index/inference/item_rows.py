"""Rows of an items table by their number: of a table in memory, or of a file without reading all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.arrays import Int64

# Rows of a group of ``items.parquet``: what is read for one row.
GROUP_ROWS = 1 << 16
# Rows up to here are cut out one by one; of more, whole columns are gathered.
_FEW_ROWS = 256


def write_items(table: pa.Table, file: Path) -> None:
    """Writes a table in groups of ``GROUP_ROWS``."""
    pq.write_table(table, file, row_group_size=GROUP_ROWS)


def taken(table: pa.Table, rows: Int64) -> pa.Table:
    """``[n]`` rows of a table, in their order; a few without a copy of anything else."""
    if len(rows) > _FEW_ROWS:
        return table.take(pa.array(rows))
    parts = [table.slice(row, 1) for row in rows.tolist()]
    return pa.concat_tables([table.schema.empty_table(), *parts]).combine_chunks()


def read_rows(file: Path, rows: Int64) -> pa.Table:
    """``[n]`` rows of a Parquet file, in their order; only the row groups that have them are read."""
    with pq.ParquetFile(file) as opened:
        sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
        firsts = np.cumsum([0, *sizes])
        group_of_row = np.searchsorted(firsts, rows, side="right") - 1
        needed = np.unique(group_of_row)
        table = opened.read_row_groups(needed.tolist(), use_threads=False)
    starts = np.cumsum([0, *(sizes[group] for group in needed)])[:-1]
    place = np.searchsorted(needed, group_of_row)
    within = np.asarray(rows, np.int64) - firsts[group_of_row]
    return taken(table, (starts[place] + within).astype(np.int64) if len(needed) else within)
