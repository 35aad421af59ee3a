"""The types ``list`` and ``embedding``: several values in a cell, as a list or as text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.arrays_in_text import split_arrays
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.conversion.integers import to_integers
from pipelines.contracts.conversion.numbers import to_floats
from pipelines.contracts.conversion.plain import (
    Converted,
    converted,
    is_list,
    is_number,
    nulls,
    plain_array,
    unconvertible,
)
from pipelines.contracts.conversion.strings import to_strings
from pipelines.contracts.conversion.texts import present


def to_lists(source: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    """Lists of any length, text cut by the type's ``separator``, or arrays in brackets.

    A cell with a value that does not fit is wrong as a whole. Of texts cut by a separator only an empty cell is
    missing, as of strings: ``NA`` may be one of the values. Missing values stay in the list as nulls, infinite ones in
    an embedding as they are.
    """
    if is_list(source.type):
        value_type = source.type.value_type
        if pa.types.is_null(value_type):  # Arrow casts lists of nulls to shorter ones.
            source, value_type = source.cast(pa.list_(pa.string())), pa.string()
        lists = source if pa.types.is_list(source.type) else source.cast(pa.list_(value_type))
        return _of_lists(lists, nulls(source), kind, ".")
    if not pa.types.is_string(source.type):
        return unconvertible(source, kind.arrow)
    of_texts = kind.separator is not None and kind.arrow.value_type == pa.string()
    texts = _not_empty(source) if of_texts else present(source)
    null = nulls(texts)
    if kind.separator is None:
        return _of_lists(split_arrays(texts, at_blanks=kind.type == "embedding"), null, kind, ".")
    if kind.separator.isspace() and kind.type == "embedding":
        return _of_lists(pc.utf8_split_whitespace(texts), null, kind, decimal)
    return _of_lists(pc.split_pattern(texts, kind.separator), null, kind, decimal)


def _not_empty(texts: pa.Array) -> pa.Array:
    """The texts, empty ones null."""
    return pc.if_else(pc.equal(texts, ""), pa.scalar(None, pa.string()), texts)


def _of_lists(lists: pa.Array, null: Bools, kind: ColumnType, decimal: str) -> Converted:
    values = plain_array(pc.list_flatten(lists))
    lengths = np.asarray(pc.list_value_length(lists).fill_null(0), np.int64)
    owners = np.repeat(np.arange(len(lists)), lengths)
    inner = _values(values, kind, decimal)
    wrong = np.bincount(owners, inner.wrong, len(lists)) > 0
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    mask = pa.array(wrong | nulls(lists))
    arrays = pa.ListArray.from_arrays(pa.array(offsets), inner.values, mask=mask)
    return converted(null, arrays)


def _values(values: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    if pa.types.is_null(values.type):
        return converted(np.ones(len(values), bool), pa.nulls(len(values), kind.arrow.value_type))
    if kind.type == "list":
        return to_integers(values, decimal) if kind.of == "int64" else to_strings(values)
    if is_number(values.type) and not pa.types.is_boolean(values.type):
        return converted(nulls(values), values.cast(pa.float32(), safe=False))
    numbers = to_floats(values, decimal)
    return Converted(numbers.values.cast(pa.float32()), numbers.null, numbers.wrong, numbers.out_of_range)
