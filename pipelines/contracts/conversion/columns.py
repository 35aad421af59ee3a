"""The one conversion of columns: the cells of any table, of any format, to the type that is declared for them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.conversion.integers import to_integers
from pipelines.contracts.conversion.lists import to_lists
from pipelines.contracts.conversion.numbers import to_bools, to_floats
from pipelines.contracts.conversion.plain import Converted, converted, nulls, plain_array
from pipelines.contracts.conversion.strings import decoded, to_strings
from pipelines.contracts.conversion.timestamps.times import to_moments


def convert(column: pa.Array | pa.ChunkedArray, kind: ColumnType, *, decimal: str = ".") -> Converted:
    """Converts a column cell by cell. A cell that does not fit is marked; nothing is raised for it.

    Args:
        column: of any type; chunks, dictionaries, large strings and string views count as what they hold.
        kind: the type to convert to; the values are of ``kind.arrow``.
        decimal: the decimal mark in texts.

    Raises:
        ConfigError: the machine's time zone database does not have the declared ``timezone``.
    """
    source = plain_array(column)
    if pa.types.is_binary(source.type):
        return _of_bytes(source, kind, decimal)
    if pa.types.is_null(source.type):
        return converted(np.ones(len(source), bool), pa.nulls(len(source), kind.arrow))
    match kind.type:
        case "string":
            return to_strings(source)
        case "int64":
            return to_integers(source, decimal)
        case "float64":
            return to_floats(source, decimal)
        case "bool":
            return to_bools(source)
        case "timestamp":
            return to_moments(source, kind, decimal)
        case _:
            return to_lists(source, kind, decimal)


def _of_bytes(source: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    """Some writers of Parquet do not mark text as text. Bytes that are no UTF-8 are wrong."""
    texts = decoded(source)
    done = convert(texts, kind, decimal=decimal)
    undecoded = nulls(texts) & ~nulls(source)
    return Converted(done.values, done.null & ~undecoded, done.wrong | undecoded, done.out_of_range)
