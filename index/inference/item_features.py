"""The raw columns that item features are encoded from, by row: what a version knows of an ad that an upsert changes.

Writes and reads ``item_features.arrow`` of a bundle: Arrow IPC, compressed by record batch, so that a row is read
without the table. The file stays open: once it is, it may be removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.schema import DatasetSchema

# Rows of a record batch: the unit that a look-up decompresses.
_BATCH_ROWS = 16_384


def feature_columns(schema: DatasetSchema) -> tuple[str, ...]:
    """The raw columns that the item features of a schema read, each once; the id column, of which a version has the
    ids, is left out."""
    names = dict.fromkeys(name for feature in schema.side("item") for name in feature.raw_columns)
    return tuple(name for name in names if name != schema.id_column("item"))


def write_item_features(schema: pa.Schema, tables: Iterable[pa.Table], file: Path) -> None:
    """Writes the columns of ``schema``; the tables follow each other, place = row. Without columns nothing is to be
    said of a row."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    held = schema.empty_table()
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, schema, options=options) as writer:
        for table in tables if schema.names else ():
            held = pa.concat_tables([held, table.cast(schema)])
            while len(held) >= _BATCH_ROWS:
                writer.write_batch(_batch(held.slice(0, _BATCH_ROWS)))
                held = held.slice(_BATCH_ROWS)
        if len(held):
            writer.write_batch(_batch(held))


def _batch(table: pa.Table) -> pa.RecordBatch:
    return table.combine_chunks().to_batches()[0]


class ItemFeatures:
    """The columns of one version. Not safe to call from several threads at once."""

    def __init__(self, file: Path) -> None:
        """Opens the file.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        try:
            self._reader = pa.ipc.open_file(pa.memory_map(str(file)))
        except (OSError, pa.ArrowException) as err:
            raise ArtifactError(f"{file}: the items' features cannot be read ({err}). Build the bundle again.") from err

    @property
    def schema(self) -> pa.Schema:
        """The columns."""
        return self._reader.schema

    def take(self, rows: npt.NDArray[np.int64]) -> pa.Table:
        """The columns of ``[n]`` rows, in their order."""
        if not self.schema.names:
            return self.schema.empty_table()
        batches, places = np.divmod(np.asarray(rows, np.int64), _BATCH_ROWS)
        parts = [self.schema.empty_table()]
        order = np.zeros(len(rows), np.int64)
        taken = 0
        for batch in np.unique(batches).tolist():
            own = np.flatnonzero(batches == batch)
            part = self._reader.get_batch(batch).take(pa.array(places[own]))
            parts.append(pa.Table.from_batches([part]))
            order[own] = np.arange(taken, taken + len(own))
            taken += len(own)
        return pa.concat_tables(parts).combine_chunks().take(pa.array(order))
