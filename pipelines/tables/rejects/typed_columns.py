"""Typed columns: the columns of a batch converted to their types; a row with a cell that does not fit is rejected."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import Converted, convert, expected, plain_array
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.conversion.plain import without
from pipelines.tables.column_types import TableTypes
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects.checks import Checks

# An id longer than this is a mistake of the table (a shifted column, a whole line read as one cell).
MAX_ID_LENGTH = 1_024
_RANGE = "a moment from 1990-01-01 to before 2100-01-01"


class TypedColumns:
    """Converts columns of one batch, and marks in ``checks`` the rows with a cell that does not fit.

    Args:
        batch: raw or typed cells.
        types: the types of the table's columns.
        decimal: the decimal mark in texts.
        checks: what is wrong with the batch.
    """

    def __init__(self, batch: TableBatch, types: TableTypes, decimal: str, checks: Checks) -> None:
        self._raw = batch.table
        self._types = types
        self._decimal = decimal
        self._checks = checks
        self._read: dict[str, pa.Array] = {}

    def id(self, name: str) -> pa.Array:
        """``[rows]`` ids, null where a cell is none; rows without one and over-long ids are marked."""
        kind = self._types.kinds[name]
        read = _without_empty(convert(self._raw[name], kind, decimal=self._decimal))
        self._checks.reject(read.null, "null", name, f"an id: {expected(kind)}")
        self._reject_wrong(read, name, kind)
        if kind.type == "string":
            lengths = np.asarray(pc.fill_null(pc.binary_length(read.values), 0), np.int64)
            self._checks.reject(lengths > MAX_ID_LENGTH, "length", name, f"an id of at most {MAX_ID_LENGTH:,} bytes")
        self._read[name] = read.values
        return read.values

    def value(self, name: str, *, required: bool = False) -> pa.Array:
        """``[rows]`` values of the column's type, null where a cell is missing or does not fit.

        required: rows without a value are marked, too.
        """
        if name not in self._read:
            kind = self._types.kinds.get(name)
            self._read[name] = self._kept(name) if kind is None else self._converted(name, kind, required=required)
        return self._read[name]

    def as_they_are(self, name: str) -> pa.Array:
        """``value`` for a column that the TOML does not name: no moment is too early or too late."""
        kind = self._types.kinds.get(name)
        column = plain_array(self._raw[name])
        if kind is None or kind.type != "timestamp" or not pa.types.is_temporal(column.type):
            return self.value(name)
        try:
            return column.cast(kind.arrow, safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return self.value(name)

    def _converted(self, name: str, kind: ColumnType, *, required: bool) -> pa.Array:
        read = convert(self._raw[name], kind, decimal=self._decimal)
        if required:
            self._checks.reject(read.null, "null", name, expected(kind))
        self._reject_wrong(read, name, kind)
        return read.values

    def _reject_wrong(self, read: Converted, name: str, kind: ColumnType) -> None:
        self._checks.reject(read.out_of_range, "range", name, _RANGE)
        self._checks.reject(read.wrong, "type", name, expected(kind))

    def _kept(self, name: str) -> pa.Array:
        """A column of a Parquet type that no declared type expresses: as it is."""
        column, wanted = plain_array(self._raw[name]), self._types.kept[name]
        return column if column.type == wanted else column.cast(wanted)


def _without_empty(read: Converted) -> Converted:
    if not pa.types.is_string(read.values.type):
        return read
    empty = np.asarray(pc.fill_null(pc.equal(pc.binary_length(read.values), 0), False), dtype=bool)
    if not empty.any():
        return read
    return Converted(without(read.values, empty), read.null | empty, read.wrong, read.out_of_range)


def ids_of(column: pa.Array | pa.ChunkedArray, kind: ColumnType, decimal: str = ".") -> pa.Array:
    """The ids of a column alone: null where a cell is missing, empty, over-long or none."""
    values = _without_empty(convert(column, kind, decimal=decimal)).values
    if kind.type != "string":
        return values
    lengths = np.asarray(pc.fill_null(pc.binary_length(values), 0), np.int64)
    return without(values, lengths > MAX_ID_LENGTH)
