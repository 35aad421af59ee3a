"""Columns as one plain array, and what a conversion gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools


@dataclass(frozen=True)
class Converted:
    """A column after conversion, cell by cell.

    ``values`` has a null where ``null`` (missing) or ``wrong`` (not convertible) is true; no cell is both.
    ``out_of_range`` are the wrong cells that were understood: times outside of 1990 to 2100. All masks ``[n] bool``.
    """

    values: pa.Array
    null: Bools
    wrong: Bools
    out_of_range: Bools


def plain_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type of a column after ``plain_array``."""
    types = pa.types
    if isinstance(arrow_type, pa.BaseExtensionType):
        return plain_type(arrow_type.storage_type)
    if types.is_dictionary(arrow_type) or types.is_run_end_encoded(arrow_type):
        return plain_type(arrow_type.value_type)
    if types.is_large_string(arrow_type) or types.is_string_view(arrow_type):
        return pa.string()
    if types.is_large_binary(arrow_type) or types.is_binary_view(arrow_type):
        return pa.binary()
    return arrow_type


def parquet_type(arrow_type: pa.DataType) -> pa.DataType:
    """The type of the values in Parquet, which has one text type and one list type: without dictionaries and views."""
    types = pa.types
    if types.is_dictionary(arrow_type) or types.is_run_end_encoded(arrow_type):
        return parquet_type(arrow_type.value_type)
    if types.is_list(arrow_type) or types.is_large_list(arrow_type):
        return pa.list_(parquet_type(arrow_type.value_type))
    return arrow_type if isinstance(arrow_type, pa.BaseExtensionType) else plain_type(arrow_type)


def is_list(arrow_type: pa.DataType) -> bool:
    """Whether a type is a list, of fixed length or not."""
    types = pa.types
    return bool(types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type))


def is_number(arrow_type: pa.DataType) -> bool:
    """Whether a type is an integer, a float or a boolean."""
    types = pa.types
    return bool(types.is_integer(arrow_type) or types.is_floating(arrow_type) or types.is_boolean(arrow_type))


def plain_array(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """The column as one plain array: chunks joined, dictionaries decoded, large strings as strings."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # Arrow keeps several chunks where one would overflow its offsets.
        array = pa.concat_arrays(array.chunks)
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_dictionary(array.type):
        # Arrow cannot take from views: their texts become plain ones first.
        array = pa.DictionaryArray.from_arrays(array.indices, plain_array(array.dictionary)).dictionary_decode()
    plain = plain_type(array.type)
    return array if plain == array.type else array.cast(plain)


def without_views(column: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray | pa.Array:
    """The column with plain texts and bytes in place of views, also in lists: Arrow cannot take rows of views."""
    if "_view" not in str(column.type):
        return column
    array = plain_array(column)
    if is_list(array.type):
        array = array.cast(pa.list_(plain_type(array.type.value_type)))
    return array


def bools(array: pa.Array) -> Bools:
    """``[n] bool`` of a boolean array; a null counts as false."""
    return np.asarray(array.fill_null(False) if array.null_count else array, dtype=bool)


def nulls(array: pa.Array) -> Bools:
    """``[n] bool``: the nulls of an array."""
    return np.zeros(len(array), bool) if array.null_count == 0 else np.asarray(array.is_null(), dtype=bool)


def without(array: pa.Array, left_out: Bools) -> pa.Array:
    """The array with nulls where ``left_out`` (``[n] bool``) is true."""
    if not left_out.any():
        return array
    return pc.if_else(pa.array(left_out), pa.scalar(None, array.type), array)


def converted(null: Bools, values: pa.Array) -> Converted:
    """A conversion in which every null of ``values`` that is not ``null`` could not be converted."""
    return Converted(values, null, nulls(values) & ~null, np.zeros(len(values), bool))


def unconvertible(source: pa.Array, target: pa.DataType) -> Converted:
    """A conversion in which no cell could be converted."""
    return converted(nulls(source), pa.nulls(len(source), target))
