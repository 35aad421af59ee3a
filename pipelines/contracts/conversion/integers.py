"""The type ``int64``: every integer from -2^63 to 2^63 - 1, as a number or as its canonical text."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int32
from pipelines.contracts.conversion.plain import Converted, bools, converted, nulls, unconvertible, without
from pipelines.contracts.conversion.strings import EXACT, to_strings
from pipelines.contracts.conversion.texts import Cells, cast_all, present

_DIGITS = 19
_LARGEST, _SMALLEST = "9223372036854775807", "-9223372036854775808"


def to_integers(source: pa.Array, decimal: str) -> Converted:
    """Integers of any width, whole floats up to 2^53, whole decimals, booleans as 0 and 1, and text."""
    types = pa.types
    kind = source.type
    if types.is_string(kind):
        return _of_texts(source, decimal)
    if types.is_decimal(kind):
        return _of_texts(to_strings(source).values, ".")
    if types.is_floating(kind):
        return _of_floats(source)
    if types.is_uint64(kind):
        fits = pc.less_equal(source, pa.scalar(2**63 - 1, pa.uint64()))
        return converted(nulls(source), pc.if_else(fits, source, pa.scalar(None, kind)).cast(pa.int64()))
    if types.is_integer(kind) or types.is_boolean(kind):
        return converted(nulls(source), source.cast(pa.int64()))
    return unconvertible(source, pa.int64())


def _of_floats(source: pa.Array) -> Converted:
    source = source.cast(pa.float64())
    null = nulls(source) | bools(pc.is_nan(source))
    is_whole = pc.and_(pc.equal(source, pc.floor(source)), pc.less_equal(pc.abs(source), EXACT))
    return converted(null, pc.if_else(is_whole, source, pa.scalar(None, pa.float64())).cast(pa.int64()))


def _of_texts(texts: pa.Array, decimal: str) -> Converted:
    values = if_all_are_canonical(texts)
    if values is None:
        texts = present(texts)
        values = if_all_are_canonical(texts)
    if values is None and decimal == ".":
        values = _if_all_have_a_zero_fraction(texts)
    if values is None:
        values = parsed(_without_zero_fraction(texts, decimal))
    return converted(nulls(texts), values)


def if_all_are_canonical(texts: pa.Array) -> pa.Array | None:
    """Texts -> int64; None if a text is not canonical.

    Arrow reads ``007`` and ``0x1F`` as well. A text without an x that is as long as its number's canonical text is that
    text: whatever else Arrow reads is longer.
    """
    values = cast_all(texts, pa.int64())
    if values is None:
        return None
    cells = Cells(texts)
    if any(bool((cells.data == np.uint8(ord(sign))).any()) for sign in "xX"):
        return None
    known = np.asarray(texts.is_valid(), dtype=bool) if texts.null_count else True
    return values if bool(((cells.lengths == _canonical_lengths(values)) | ~np.asarray(known)).all()) else None


def _canonical_lengths(values: pa.Array) -> Int32:
    """``[n] int32``: characters of each number's text; any number where it is null."""
    numbers = np.asarray(values.fill_null(0) if values.null_count else values, np.int64)
    # The absolute value of -2^63 is itself, which is 2^63 as an unsigned number.
    sizes = np.abs(numbers).view(np.uint64)
    lengths = 1 + (numbers < 0).astype(np.int8)
    largest, power = int(sizes.max(initial=0)), 10
    while power <= largest:
        lengths += sizes >= np.uint64(power)
        power *= 10
    return lengths.astype(np.int32)


def _if_all_have_a_zero_fraction(texts: pa.Array) -> pa.Array | None:
    """``5007.0`` in all cells, as pandas writes integers where some are missing."""
    floats = cast_all(texts, pa.float64())
    if floats is None or pc.any(pc.greater(pc.abs(floats), EXACT)).as_py():
        return None
    values = floats.cast(pa.int64(), safe=False)
    written = pc.binary_join_element_wise(values.cast(pa.string()), ".0", "")
    return values if pc.all(pc.equal(written, texts)).as_py() is not False else None


def _without_zero_fraction(texts: pa.Array, decimal: str) -> pa.Array:
    """``5007.0`` as ``5007``; any other text stays as it is."""
    cells = Cells(texts)
    marks = cells.are(decimal)
    if not marks.any():
        return texts
    digits, negative = cells.digits, cells.at(0) == ord("-")
    could_be = (cells.count(marks) == 1) & (digits + negative + 1 == cells.lengths)
    shorter = pc.utf8_rtrim(texts, "0")
    is_zero = bools(pc.ends_with(shorter, decimal)) & (Cells(shorter).lengths < cells.lengths) & could_be
    return pc.if_else(pa.array(is_zero), pc.utf8_rtrim(shorter, decimal), texts)


def parsed(texts: pa.Array) -> pa.Array:
    """Texts -> int64, null where a text is not the canonical form of an int64 (``-0`` is read as 0)."""
    cells = Cells(texts)
    digits, negative = cells.digits, cells.at(0) == ord("-")
    leading_zero = (cells.at(negative.astype(np.int32)) == ord("0")) & (digits > 1)
    fits = (digits >= 1) & (digits + negative == cells.lengths) & ~leading_zero & (digits <= _DIGITS)
    if (digits == _DIGITS).any():
        largest = pc.if_else(pa.array(negative), pa.scalar(_SMALLEST), pa.scalar(_LARGEST))
        fits &= (digits < _DIGITS) | bools(pc.less_equal(texts, largest))
    return without(texts, ~fits).cast(pa.int64())
