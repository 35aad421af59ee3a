"""The types ``float64`` and ``bool``."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.plain import (
    Converted,
    bools,
    converted,
    is_number,
    nulls,
    unconvertible,
    without,
)
from pipelines.contracts.conversion.texts import Cells, cast_all, present

_TRUE = ("true", "t", "yes", "y", "1", "1.0")
_FALSE = ("false", "f", "no", "n", "0", "0.0")
# Every form of a finite float; plain decimals are recognised without it.
_FLOAT = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"


def to_floats(source: pa.Array, decimal: str) -> Converted:
    """Numbers, booleans as 0 and 1, decimals and text; NaN is missing, infinity wrong."""
    types = pa.types
    kind = source.type
    if types.is_string(kind):
        return _floats_of_texts(source, decimal)
    if types.is_decimal(kind):  # By its text: Arrow's own cast is not rounded correctly.
        return _floats_of_texts(source.cast(pa.string()), ".")
    if types.is_boolean(kind):
        source = source.cast(pa.int8())
    if not is_number(source.type):
        return unconvertible(source, pa.float64())
    return _finite(nulls(source), source.cast(pa.float64(), safe=False))


def _finite(null: Bools, values: pa.Array) -> Converted:
    finite = pc.is_finite(values)
    if pc.all(finite).as_py() is not False:
        return converted(null, values)
    null = null | bools(pc.is_nan(values))
    return converted(null, pc.if_else(finite, values, pa.scalar(None, pa.float64())))


def _floats_of_texts(texts: pa.Array, decimal: str) -> Converted:
    values = _if_all_are_finite(texts) if decimal == "." else None
    if values is None:
        texts = present(texts)
        values = _if_all_are_finite(texts) if decimal == "." else None
    null = nulls(texts)
    if values is not None:
        return converted(null, values)
    if decimal != ".":
        texts = without(texts, bools(pc.match_substring(texts, ".")))
        texts = pc.replace_substring(texts, decimal, ".")
    return _finite(null, without(texts, ~_are_floats(texts)).cast(pa.float64()))


def _if_all_are_finite(texts: pa.Array) -> pa.Array | None:
    """Arrow reads ``inf`` and ``nan(1)`` as well; its other forms are ours."""
    values = cast_all(texts, pa.float64())
    return values if values is not None and pc.all(pc.is_finite(values)).as_py() is not False else None


def _are_floats(texts: pa.Array) -> Bools:
    cells = Cells(texts)
    digits, points = cells.digits, cells.count(cells.are("."))
    signed = (cells.at(0) == ord("-")) | (cells.at(0) == ord("+"))
    plain: Bools = (digits >= 1) & (points <= 1) & (digits + points + signed == cells.lengths)
    others = np.flatnonzero(~plain)
    plain[others] = bools(pc.match_substring_regex(texts.take(pa.array(others)), _FLOAT))
    return plain


def to_bools(source: pa.Array) -> Converted:
    """Booleans, the numbers 0 and 1, and text."""
    types = pa.types
    kind = source.type
    if types.is_boolean(kind):
        return converted(nulls(source), source)
    if types.is_string(kind):
        texts = present(source)
        lower = pc.ascii_lower(texts)
        true, false = (bools(pc.is_in(lower, value_set=pa.array(words))) for words in (_TRUE, _FALSE))
        return converted(nulls(texts), pa.array(true, mask=~(true | false)))
    if not (is_number(kind) or types.is_decimal(kind)):
        return unconvertible(source, pa.bool_())
    numbers = to_floats(source, ".")
    values = np.asarray(numbers.values.fill_null(np.nan), np.float64)
    return converted(numbers.null, pa.array(values == 1, mask=(values != 0) & (values != 1)))
