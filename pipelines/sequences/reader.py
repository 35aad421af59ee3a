"""Sequences: the reader of a features directory.

Reads ``sequences/`` (whose files ``pipelines.sequences.segments`` knows), ``items/``, ``users/`` and their encoded
twins. Imports neither Beam, TensorFlow nor ScaNN.

Users are in the order of their ids, whatever the number of parts: results do not depend on how the job was cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import Side, Window
from pipelines.sequences.event_lists import EventLists, offsets_of
from pipelines.sequences.segments import Partition, joined, part_name, write_part

__all__ = ["Sequences", "encoded_table", "load_encoded", "load_items", "load_users", "part_name"]
__all__ += ["write_part"]


# Columns of ``users/`` that no table has: the user's events, and those in train and in valid.
EVENTS_COLUMN, TRAIN_COLUMN, VALID_COLUMN = "__events__", "__train__", "__valid__"
_EVENT_COLUMNS = ("rows", "times", "actions", "values", "splits")


@dataclass(frozen=True)
class Sequences:
    """All users and their events: ``user_ids`` [users], ascending, one for each row of the users table.

    ``window``: what is used and held out, where the windows roll.
    """

    user_ids: pa.Array
    events: EventLists
    window: Window | None = None

    @classmethod
    def open(cls, features_dir: Path) -> Sequences:
        """Reads all parts below ``features_dir/sequences``.

        Raises:
            ArtifactError: there are none, or one cannot be read.
        """
        partitions = Partition.list(features_dir / "sequences")
        if not partitions:
            raise _no_parts(features_dir / "sequences")
        parts = [partition.read() for partition in partitions]
        user_ids = pa.concat_arrays([part.user_ids for part in parts])
        order = as_sorted(user_ids)
        counts = np.concatenate([np.diff(part.offsets) for part in parts])
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _EVENT_COLUMNS}
        del parts
        events, window = EventLists(offsets_of(counts), **columns), partitions[0].layout.window
        if (np.diff(order) > 0).all():
            return cls(user_ids, events, window)
        return cls(user_ids.take(pa.array(order)), events.of_users(order), window)

    @property
    def num_users(self) -> int:
        """Number of users, including those without events."""
        return len(self.user_ids)


def load_items(features_dir: Path) -> pa.Table:
    """The catalogue's raw columns; place = row.

    Raises:
        ArtifactError: no part can be read.
    """
    return _read_parts(features_dir / "items", None)


def load_users(features_dir: Path) -> pa.Table:
    """The users' raw columns, in the order of ``Sequences.user_ids``; a user without a users row has nulls.

    Raises:
        ArtifactError: no part can be read.
    """
    table = _read_parts(features_dir / "users", None)
    table = table.drop_columns(
        [name for name in (EVENTS_COLUMN, TRAIN_COLUMN, VALID_COLUMN) if name in table.column_names]
    )
    return table.take(pa.array(as_sorted(joined(table["user_id"]))))


def load_encoded(features_dir: Path, side: Side) -> dict[str, npt.NDArray[Any]]:
    """Encoded features by name, in the order of the catalogue or of ``Sequences.user_ids``.

    Shapes and types as ``pipelines.contracts.encoding`` says.

    Raises:
        ArtifactError: no part can be read.
    """
    table = _read_parts(features_dir / f"{side}s_encoded", None)
    if side == "user":
        order = as_sorted(joined(_read_parts(features_dir / "users", ["user_id"])["user_id"]))
        table = table.take(pa.array(order)) if len(table.column_names) else table
    return {name: _matrix(table[name]) for name in table.column_names if name != ROW_COLUMN}


# Keeps the number of rows where a side has no features at all.
ROW_COLUMN = "__row__"


def encoded_table(encoded: dict[str, npt.NDArray[Any]], rows: int) -> pa.Table:
    """Encoded features as a table: one column per feature, FixedSizeList if a row has several numbers."""
    columns: dict[str, pa.Array] = {ROW_COLUMN: pa.array(np.arange(rows, dtype=np.int32))}
    for name, values in encoded.items():
        flat = pa.array(values.reshape(-1))
        columns[name] = flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.table(columns)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    array = joined(column)
    if pa.types.is_fixed_size_list(array.type):
        return np.asarray(array.flatten()).reshape(len(array), array.type.list_size)
    return np.asarray(array)


def _no_parts(folder: Path) -> ArtifactError:
    return ArtifactError(f"{folder}: expected parts of a features artifact, found none. Run `towerline features`.")


def _read_parts(folder: Path, columns: list[str] | None) -> pa.Table:
    files = sorted(folder.glob("part-*.parquet"))
    if not files:
        raise _no_parts(folder)
    try:
        tables = [pq.ParquetFile(file).read(columns=columns) for file in files]
    except (OSError, pa.ArrowException) as err:
        raise ArtifactError(f"{folder}: cannot be read ({err}). Run `towerline features` again.") from err
    return pa.concat_tables(tables)
