"""JSON columns: Python values from JSON to one Arrow array, each value with the JSON type it has.

Values of one JSON type become an array of it. Where several occur in a column each is converted to the column's kind on
its own, by the one conversion: 5, "5" and true do not depend on their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, STRING, ColumnType

_NULL, _WRONG, _LIST, _DIGITS = "null", "wrong", "list", "digits"
_ARROW = {"text": pa.string(), _DIGITS: pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}


@dataclass(frozen=True)
class JsonColumn:
    """An array, raw or of the column's kind; ``wrong`` are places of values that do not fit, null in ``values``."""

    values: pa.Array
    wrong: tuple[int, ...] = ()


def json_column(values: Sequence[Any], kind: ColumnType, decimal: str) -> JsonColumn:
    """One column.

    Args:
        values: of the lines, None where the key is missing.
        kind: what the column will be converted to.
        decimal: decimal mark of the numbers in texts.
    """
    groups = np.array([_group(value, kind) for value in values], dtype=object)
    wrong = np.flatnonzero(groups == _WRONG)
    found = sorted(set(groups) - {_NULL, _WRONG})
    if not found:
        return JsonColumn(pa.nulls(len(values), kind.arrow), tuple(wrong.tolist()))
    parts: list[pa.Array] = []
    order = np.full(len(values), -1)
    for group in found:
        places = np.flatnonzero(groups == group)
        part = _array([values[place] for place in places.tolist()], group, kind)
        wrong = np.concatenate([wrong, places[list(part.wrong)]])
        array = part.values
        if len(found) > 1:
            done = convert(array, kind, decimal=decimal)
            wrong = np.concatenate([wrong, places[done.wrong]])
            array = done.values
        order[places] = np.arange(len(places)) + sum(len(one) for one in parts)
        parts.append(array)
    taken = pa.concat_arrays(parts).take(pa.array(order, pa.int64(), mask=order < 0))
    return JsonColumn(taken, tuple(sorted(set(wrong.tolist()))))


def _group(value: object, kind: ColumnType) -> str:
    """What a value is in JSON; an integer beyond int64 goes by its digits, and in a column of floats as one."""
    match value:
        case None:
            return _NULL
        case bool():
            return "bool"
        case int():
            if not -(2**63) <= value < 2**63:
                return _DIGITS
            return "float" if kind.type == "float64" else "int"
        case float():
            return "float"
        case str():
            return "text" if _is_unicode(value) else _WRONG
        case list():
            return _LIST
        case _:
            return _WRONG


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _array(values: Sequence[Any], group: str, kind: ColumnType) -> JsonColumn:
    """Values of one group, none of them missing."""
    if group == _LIST:
        return _lists(values, kind)
    if group == _DIGITS:
        values = [str(value) for value in values]
    if group == "float":
        values = [float(value) for value in values]
    return JsonColumn(pa.array(values, _ARROW[group]))


def _lists(values: Sequence[list[Any]], kind: ColumnType) -> JsonColumn:
    inner = FLOAT64 if kind.type == "embedding" else INT64 if kind.of == "int64" else STRING
    elements = json_column([one for value in values for one in value], inner, ".")
    lengths = np.array([len(value) for value in values], np.int64)
    owners = np.repeat(np.arange(len(values)), lengths)
    wrong = np.unique(owners[list(elements.wrong)])
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = np.isin(np.arange(len(values)), wrong)
    return JsonColumn(pa.ListArray.from_arrays(pa.array(offsets), elements.values, mask=pa.array(mask)), tuple(wrong))
