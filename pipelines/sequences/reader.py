"""Sequences: the reader of a features directory.

Reads ``sequences/`` (whose files ``pipelines.sequences.segments`` knows), ``items/``, ``users/`` and their encoded
twins. Imports neither Beam, TensorFlow nor ScaNN.

Users stand in the order of their ids, whatever the number of parts: results do not depend on how the job was cut.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.arrays import Int32, Int64
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import SPLITS, DatasetSchema, Side, SplitName
from pipelines.sequences.segments import Partition, joined, part_name, write_part

__all__ = ["Histories", "Sequences", "Truth", "encoded_table", "load_encoded", "load_items", "load_users", "part_name"]
__all__ += ["write_part"]


PADDING = -1
# Columns of ``users/`` that no table has: the user's events, and those in train.
EVENTS_COLUMN, TRAIN_COLUMN = "__events__", "__train__"
_EVENT_COLUMNS = ("rows", "times", "actions", "values", "splits")


@dataclass(frozen=True)
class Truth:
    """Held-out events: those of user ``u`` are ``rows[offsets[u]:offsets[u + 1]]``, in the order of time.

    ``offsets`` [users + 1] int64; ``rows`` [held out] int32; ``times`` int64, ``actions`` int8, ``values`` float32
    alike.
    """

    offsets: Int64
    rows: Int32
    times: Int64
    actions: npt.NDArray[np.int8]
    values: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Histories:
    """The latest events before a split: oldest first, left-aligned, padding after the newest.

    ``rows`` [users, history] int32, -1 in the padding; ``times`` int64 and ``actions`` int8 alike, 0 in the padding;
    ``lengths`` [users] int64.
    """

    rows: Int32
    times: Int64
    actions: npt.NDArray[np.int8]
    lengths: Int64


@dataclass(frozen=True)
class Sequences:
    """All users' events in CSR form: those of user ``u`` are ``offsets[u]:offsets[u + 1]``, in the order of time.

    ``user_ids`` [users], ascending, one for each row of the users table; ``offsets`` [users + 1] int64; ``rows`` int32
    (place in the catalogue), ``times`` int64 (microseconds UTC, or the order), ``actions`` int8, ``values`` float32,
    ``splits`` int8 (0 train, 1 valid, 2 test), each [events].
    """

    user_ids: pa.Array
    offsets: Int64
    rows: Int32
    times: Int64
    actions: npt.NDArray[np.int8]
    values: npt.NDArray[np.float32]
    splits: npt.NDArray[np.int8]

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
        offsets, places = _gathered(np.concatenate([[0], np.cumsum(counts)]), order)
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _EVENT_COLUMNS}
        del parts
        if places is not None:
            columns = {name: column[places] for name, column in columns.items()}
            user_ids = user_ids.take(pa.array(order))
        return cls(user_ids=user_ids, offsets=offsets, **columns)

    @property
    def num_users(self) -> int:
        """Number of users, those without events counted in."""
        return len(self.user_ids)

    @functools.cached_property
    def owners(self) -> Int32:
        """``[events] int32``: the place of each event's user."""
        return np.repeat(np.arange(self.num_users, dtype=np.int32), np.diff(self.offsets))

    def truth(self, split: SplitName, schema: DatasetSchema) -> Truth:
        """The events held out in a split, of actions that weigh something."""
        weighs = np.array(schema.action_weights) > 0
        held = np.flatnonzero((self.splits == SPLITS.index(split)) & weighs[self.actions])
        counts = np.bincount(self.owners[held], minlength=self.num_users)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Truth(offsets, self.rows[held], self.times[held], self.actions[held], self.values[held])

    def histories(self, split: SplitName, max_length: int) -> Histories:
        """What is known of each user before a split: the latest ``max_length`` events of the earlier splits."""
        known = np.flatnonzero(self.splits < SPLITS.index(split))
        counts = np.bincount(self.owners[known], minlength=self.num_users)
        ends = np.cumsum(counts)
        # Place counted from the oldest event kept; negative for those that fall out.
        skipped = np.maximum(counts - max_length, 0)
        places = np.arange(len(known)) - np.repeat(ends - counts + skipped, counts)
        kept = places >= 0
        owners, places, events = self.owners[known][kept], places[kept], known[kept]
        shape = (self.num_users, max_length)
        rows, times = np.full(shape, PADDING, np.int32), np.zeros(shape, np.int64)
        actions = np.zeros(shape, np.int8)
        rows[owners, places] = self.rows[events]
        times[owners, places] = self.times[events]
        actions[owners, places] = self.actions[events]
        return Histories(rows, times, actions, np.minimum(counts, max_length))


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
    table = table.drop_columns([name for name in (EVENTS_COLUMN, TRAIN_COLUMN) if name in table.column_names])
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
    """Encoded features as a table: one column a feature, FixedSizeList where a row has several numbers."""
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


def _gathered(offsets: Int64, order: Int64) -> tuple[Int64, Int64 | None]:
    """Offsets of the users in another order, and the places of their events; None where nothing moves."""
    if (np.diff(order) > 0).all():
        return offsets, None
    counts = np.diff(offsets)[order]
    moved = np.concatenate([[0], np.cumsum(counts)])
    return moved, np.repeat(offsets[order] - moved[:-1], counts) + np.arange(moved[-1])
