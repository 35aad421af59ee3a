"""The one conversion of single values: of requests, command lines and forget lists, by the same rules as columns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion.column_type import TIMESTAMP, ColumnType
from pipelines.contracts.conversion.columns import convert
from pipelines.contracts.conversion.plain import plain_array
from pipelines.contracts.conversion.timestamps.times import to_microseconds
from pipelines.contracts.errors import SchemaError

_INT64 = range(-(2**63), 2**63)
_EXPECTED = {
    "string": "a text, integer or boolean",
    "int64": "an integer from -2^63 to 2^63 - 1 (text with leading zeros needs the type string)",
    "float64": "a finite number",
    "bool": "true or false (or yes, no, 1, 0)",
    "list": 'a list, or an array in brackets such as ["a", "b"]',
    "embedding": "a list of numbers, or an array of them in brackets such as [0.1, 0.2]",
}
_FORMS = (
    "such as 2026-01-31, 2026-01-31 12:30, 2026-01-31T12:30:15.123456Z, "
    "2026-01-31 12:30:15+05:30 or 2026-01-31 12:30:15 UTC"
)
_TIMES = f"a time from 1990 to 2099, {_FORMS}"


def expected(kind: ColumnType, column: str = "COLUMN", table: str = "TABLE") -> str:
    """What a cell of this type may be, as an error names it, with the line of the TOML that would declare more."""
    if kind.type == "timestamp":
        if kind.unit is None:
            unit = f'[tables.{table}.types] {column} = {{ type = "timestamp", unit = "s" }}'
            return f"{_TIMES} (integers need a unit: {unit})"
        return f"{_TIMES}, or a number of unit {kind.unit}"
    if kind.separator is not None:
        return f"a list, or text cut by {kind.separator!r}" + (", of numbers" if kind.type == "embedding" else "")
    if kind.type in ("list", "embedding"):
        separator = f'[tables.{table}.types] {column} = {{ type = "{kind.type}", separator = "|" }}'
        of = " of integers" if kind.of == "int64" else ""
        return f"{_EXPECTED[kind.type]}{of} (other lists in text need a separator: {separator})"
    return _EXPECTED[kind.type]


def convert_value(value: object, kind: ColumnType, what: str) -> Any:
    """Converts one value: int, str, float, bool, int microseconds UTC (timestamp) or list; None where it is missing.

    Args:
        value: a Python or NumPy value, or its text.
        kind: the type to convert to.
        what: the value as an error names it, such as ``--user``.

    Raises:
        SchemaError: the value does not fit the type; the message says what was expected.
    """
    if value is None or (kind.type == "string" and type(value) is str):
        return value
    if kind.type == "int64" and type(value) is int and value in _INT64:
        return value
    converted = convert_cell(value, kind, what)
    return (converted.cast(pa.int64()) if kind.type == "timestamp" else converted)[0].as_py()


def time_us(value: object, what: str, kind: ColumnType = TIMESTAMP) -> int:
    """A moment of any year as microseconds UTC: a bound to compare times with.

    Raises:
        SchemaError: the value is no time, or an integer and ``kind`` declares no unit.
    """
    array = _as_array(value)
    done = None if array is None else to_microseconds(plain_array(array), kind, ".")
    if done is None or done.values[0].as_py() is None:
        raise SchemaError(f"{what}: expected a time, {_FORMS}, got {_shown(value)}")
    return int(done.values[0].as_py())


def convert_cell(value: object, kind: ColumnType, what: str, column: str = "COLUMN") -> pa.Array:
    """``convert_value`` as a column of one cell, of type ``kind.arrow``.

    Raises:
        SchemaError: the value does not fit the type.
    """
    array = _as_array(value)
    done = None if array is None else convert(array, kind)
    if done is None or done.wrong[0]:
        raise SchemaError(f"{what}: expected {expected(kind, column)}, got {_shown(value)}")
    return done.values


def _as_array(value: object) -> pa.Array | None:
    """``[1]`` the value; None where Arrow has no type for it."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    try:
        if isinstance(value, int) and value not in _INT64:
            value = str(value)
        return pa.array([value])
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except ValueError:  # Python does not write integers of more than some thousand digits.
        return f"a value of type {type(value).__name__}, too long to show"
