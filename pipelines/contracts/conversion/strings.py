"""The type ``string``: text as it is; the canonical text of integers, booleans and floats."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion.plain import Converted, converted, nulls, unconvertible, without

# Floats hold every integer up to here.
EXACT = 2.0**53


def to_strings(source: pa.Array) -> Converted:
    """Text as it is, ``NA`` and blanks too; 3.0 reads ``3``, true ``true``; NaN is missing, infinity wrong."""
    types = pa.types
    kind = source.type
    if types.is_string(kind):
        return converted(nulls(source), source)
    if types.is_floating(kind):
        return _of_floats(source)
    if types.is_decimal(kind):
        return converted(nulls(source), _of_decimals(source))
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_temporal(kind):
        try:
            return converted(nulls(source), source.cast(pa.string()))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return unconvertible(source, pa.string())


def _of_floats(source: pa.Array) -> Converted:
    source = source.cast(pa.float32()) if pa.types.is_float16(source.type) else source
    null = nulls(source) | np.asarray(pc.is_nan(source).fill_null(False), dtype=bool)
    finite = pc.is_finite(source)
    values = pc.if_else(finite, source, pa.scalar(None, source.type))
    is_whole = pc.and_(pc.equal(values, pc.floor(values)), pc.less_equal(pc.abs(values), EXACT))
    whole = pc.if_else(is_whole, values, pa.scalar(None, source.type))
    texts = whole.cast(pa.int64()).cast(pa.string())
    return converted(null, pc.coalesce(texts, values.cast(pa.string())))


def _of_decimals(source: pa.Array) -> pa.Array:
    """``12.50`` reads ``12.5`` and ``5007.00`` ``5007``, as the same floats do."""
    texts = source.cast(pa.string())
    has_fraction = pc.and_(pc.match_substring(texts, "."), pc.invert(pc.match_substring(texts, "E")))
    shorter = pc.utf8_rtrim(pc.utf8_rtrim(texts, "0"), ".")
    texts = pc.if_else(has_fraction, shorter, texts)
    zero = pc.equal(source, pa.scalar(Decimal(0), source.type))
    return pc.if_else(zero, pa.scalar("0"), texts)


def decoded(source: pa.Array) -> pa.Array:
    """Bytes as texts, null where they are no UTF-8."""
    try:
        return source.cast(pa.string())
    except pa.ArrowInvalid:
        texts = [_text(value) for value in source.to_pylist()]
        return without(pa.array(texts, pa.string()), nulls(source))


def _text(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return None
