"""Events of unknown items: left out, counted apart from rejects, and kept by user and item below ``unknown/``.

What is kept lets a later run that appends count again without forgotten users, and see that an item has come into the
catalogue. Without an items table no item is unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import write_parquet
from pipelines.contracts.schema import Window
from pipelines.features.task import Job
from pipelines.tables.erasure.forgotten import Forgotten

_FOLDER = "unknown"


def write_unknown(tables: Sequence[pa.Table], job: Job, number: int) -> None:
    """Writes one shard's events of unknown items, in columns of ``unknown_schema``."""
    if any(len(table) for table in tables):
        path = Path(job.out) / _FOLDER / f"events-{job.first_shard + number:06d}.parquet"
        write_parquet(_without_texts(pa.concat_tables(tables), job.forgotten), path)


def read_unknown(directory: Path, window: Window | None = None) -> pa.Table | None:
    """All events of unknown items of an artifact, those inside a window where one is given; None if it has none.

    Raises:
        ArtifactError: a file cannot be read.
    """
    folder = directory / _FOLDER
    try:
        tables = [pq.ParquetFile(path).read() for path in sorted(folder.glob("events-*.parquet"))]
        # An older version did not write their times.
        whole = pa.concat_tables(tables, promote_options="default") if tables else None
    except (OSError, pa.ArrowException) as err:
        raise ArtifactError(f"{folder}: cannot be read ({err}). Run `towerline features` again.") from err
    return whole if whole is None or window is None else of_window(whole, window)


def of_window(unknown: pa.Table, window: Window) -> pa.Table:
    """Events of unknown items that lie inside a window."""
    inside = pc.less(unknown["time"], window.end)
    if window.history_from is not None:
        inside = pc.and_(inside, pc.greater_equal(unknown["time"], window.history_from))
    return unknown.filter(inside)


def carry_unknown(before: Path, after: Path, forgotten: Forgotten) -> None:
    """Takes over what the artifact ``before`` has, without forgotten users."""
    table = read_unknown(before)
    if table is None:
        return
    kept = ~forgotten.holds(table["user_id"].combine_chunks())
    table = _without_texts(table.filter(pa.array(kept)), forgotten)
    if len(table):
        write_parquet(table, after / _FOLDER / "events-000000.parquet")


def _without_texts(table: pa.Table, forgotten: Forgotten) -> pa.Table:
    """The same without item ids that name a forgotten user."""
    ids = table["item_id"].combine_chunks()
    if len(forgotten) == 0:
        return table
    encoded = ids.dictionary_encode()
    texts = encoded.dictionary.cast(pa.string()).to_pylist()
    names = np.array([forgotten.holds_text(text) for text in texts] + [False], bool)
    hidden = names[np.asarray(encoded.indices.fill_null(len(texts)))]
    kept = pc.if_else(pa.array(hidden), pa.scalar(None, ids.type), ids)
    return table.set_column(table.column_names.index("item_id"), "item_id", kept)
