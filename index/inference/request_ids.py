"""Ids as callers give them, brought to the catalogue's type by the one conversion of the pipelines.

A number and its text are the same id. What can be no id of the type (another text, a fraction, a truth value, nothing)
is refused by place; whether an id is in the catalogue is not asked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import convert, convert_value
from pipelines.contracts.conversion.column_type import INT64, STRING, ColumnType
from pipelines.contracts.errors import SchemaError

IdsLike: TypeAlias = Sequence[Any] | npt.NDArray[Any] | pa.Array | pa.ChunkedArray
_INT64 = np.dtype(np.int64)
_ARROW = (pa.Array, pa.ChunkedArray)
_TRUTHS = frozenset({bool, np.bool_})


def one_id(value: object, kind: ColumnType, what: str) -> int | str:
    """One id in its type.

    Raises:
        SchemaError: it can be no id of this type; ``what`` names the argument.
    """
    if isinstance(value, pa.Scalar):
        value = value.as_py()
    elif isinstance(value, np.generic):
        value = value.item()
    # Cells of a table may be true and false for 1 and 0; as an id in a request they are a mistake.
    read = None if kind.type == "int64" and isinstance(value, bool) else convert_value(value, kind, what)
    if read is None or read == "":
        raise SchemaError(f"{what}: expected an id of type {kind.type}, got {value!r:.80}")
    assert isinstance(read, int | str)
    return read


def num_ids(given: IdsLike, what: str) -> int:
    """Number of ids.

    Raises:
        SchemaError: not a list.
    """
    try:
        return len(given)
    except TypeError as err:
        raise _not_flat(given, what) from err


def int64_ids(given: IdsLike, what: str) -> Int64:
    """``[n] int64`` ids. Lists of int and arrays of int64 are read as they are, in a microsecond or two.

    Raises:
        SchemaError: not a flat list, or a value is no int64 id; ``what`` names the argument.
    """
    try:
        numbers = np.asarray(given)
    except (ValueError, OverflowError, TypeError):
        return np.array(_converted(given, INT64, what), np.int64)
    if numbers is given and numbers.ndim != 1:
        raise _not_flat(given, what)
    if numbers.dtype == _INT64 and numbers.ndim == 1:
        # NumPy takes a truth value among integers for 0 or 1.
        if numbers is given or isinstance(given, _ARROW) or _TRUTHS.isdisjoint(map(type, given)):
            return numbers
    elif numbers is given and numbers.dtype.kind == "i":
        return numbers.astype(np.int64)
    return np.array(_converted(given, INT64, what), np.int64)


def text_ids(given: IdsLike, what: str) -> Sequence[str]:
    """Ids as texts. Lists of str are read as they are.

    Raises:
        SchemaError: not a flat list, or a value is no id; ``what`` names the argument.
    """
    if type(given) is list and set(map(type, given)) == {str} and "" not in given:
        return given
    return _converted(given, STRING, what)


def _converted(given: IdsLike, kind: ColumnType, what: str) -> Sequence[Any]:
    """The ids in their type: as a column at once or, where that fails, one by one to find and name the wrong one."""
    column = _as_column(given)
    if column is not None and not (pa.types.is_nested(column.type) or pa.types.is_boolean(column.type)):
        read = convert(column, kind)
        if not (read.null.any() or read.wrong.any() or (kind is STRING and pc.any(pc.equal(read.values, "")).as_py())):
            ids: list[Any] = read.values.to_pylist()
            return ids
    return [_flat_id(value, kind, f"{what}[{place}]") for place, value in enumerate(given)]


def _as_column(given: IdsLike) -> pa.Array | pa.ChunkedArray | None:
    """The ids as a column; None if they are of several types."""
    if isinstance(given, pa.Array | pa.ChunkedArray):
        return given
    try:
        if isinstance(given, np.ndarray):
            return pa.array(given)
        # Arrow takes NumPy's truth values among integers for 0 and 1.
        return pa.array(list(given)) if _TRUTHS.isdisjoint(map(type, given)) else None
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return None


def _flat_id(value: object, kind: ColumnType, what: str) -> int | str:
    if isinstance(value, list | tuple | np.ndarray | set | dict | pa.ListScalar):
        raise SchemaError(f"{what}: expected one id, got {value!r:.80}. Give a flat list.")
    return one_id(value, kind, what)


def _not_flat(given: object, what: str) -> SchemaError:
    return SchemaError(f"{what}: expected a flat list of ids, got {given!r:.80}")
