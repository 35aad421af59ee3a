"""The type ``timestamp``: moments as microseconds UTC, of timestamps, dates, numbers with a unit, and ISO text.

A time without a zone is read in the declared time zone, by default UTC. Where clocks go back, a time that occurs twice
is the earlier one; where they go forward, a time that is left out is the moment of the change.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion.column_type import MOMENT, ColumnType
from pipelines.contracts.conversion.integers import if_all_are_canonical, parsed, to_integers
from pipelines.contracts.conversion.plain import Converted, converted, is_number, nulls, unconvertible, without
from pipelines.contracts.conversion.texts import Cells, cast_all, present
from pipelines.contracts.conversion.timestamps.iso import parse_iso, with_offsets_joined
from pipelines.contracts.conversion.timestamps.local_times import EARLIEST_US, LATEST_US, US_PER_DAY, localised

# Microseconds before 1990 and after 2100 in place of all that an int64 cannot hold; a day of room for time zones.
_BEFORE, _AFTER = -(2**61), 2**61
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_DIGITS_OF_FRACTION = {"s": 6, "ms": 3, "us": 0, "ns": 0}  # Of a decimal number: those down to microseconds.
# Lengths of "2026-02-01", "2026-02-01 12:30" and "2026-02-01 12:30:15Z". Arrow takes "2026-02-01 12" too, which is none
# of our forms: shorter texts are left to our own parser.
_DATE, _MINUTES, _ZONED = 10, 16, 20


def to_moments(source: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    """Times of any form -> timestamp[us, UTC]; those outside of 1990 to 2100 are wrong and ``out_of_range``."""
    read = to_microseconds(source, kind, decimal)
    values = np.asarray(read.values.fill_null(EARLIEST_US), np.int64)
    outside = (values < EARLIEST_US) | (values >= LATEST_US)
    numbers = without(read.values, outside)
    return Converted(numbers.cast(MOMENT), read.null, nulls(numbers) & ~read.null, outside)


def to_microseconds(source: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    """Times of any form and any year -> int64 microseconds UTC."""
    types = pa.types
    if types.is_timestamp(source.type):
        numbers = _microseconds(source.cast(pa.int64()), source.type.unit)
        return converted(nulls(source), numbers if source.type.tz else localised(numbers, kind.timezone))
    if types.is_date64(source.type):
        return converted(nulls(source), localised(_microseconds(source.cast(pa.int64()), "ms"), kind.timezone))
    if types.is_date32(source.type):
        days = source.cast(pa.int32()).cast(pa.int64())
        return converted(nulls(source), localised(_multiplied(days, US_PER_DAY), kind.timezone))
    if types.is_string(source.type):
        return _of_texts(source, kind, decimal)
    if not (is_number(source.type) or types.is_decimal(source.type)) or types.is_boolean(source.type):
        return unconvertible(source, pa.int64())
    if kind.unit is None:
        return converted(to_integers(source, decimal).null, pa.nulls(len(source), pa.int64()))
    return _of_numbers(source, kind.unit)


def _of_numbers(numbers: pa.Array, unit: str) -> Converted:
    is_floating = pa.types.is_floating(numbers.type)
    if is_floating and not _DIGITS_OF_FRACTION[unit]:
        numbers = pc.floor(numbers)
    integers = to_integers(numbers, ".")
    values = _microseconds(integers.values, unit)
    if integers.wrong.any() and is_floating:
        values = pc.coalesce(values, _of_floats(without(numbers, ~integers.wrong), unit))
    if integers.wrong.any() and pa.types.is_decimal(numbers.type):
        values = pc.coalesce(values, _of_fractions(without(numbers, ~integers.wrong).cast(pa.string()), unit, "."))
    return converted(integers.null, values)


def _of_floats(numbers: pa.Array, unit: str) -> pa.Array:
    """Floats of a unit -> int64 microseconds: the shortest decimal that is the float, rounded down."""
    per_number = 1_000_000 / _PER_SECOND[unit]
    floats = np.asarray(numbers.cast(pa.float64()).fill_null(0.0), np.float64)
    floats = np.clip(floats, _BEFORE / per_number, _AFTER / per_number)
    nearest = np.rint(floats * per_number)
    nearest -= nearest / per_number > floats
    return pa.array(nearest.astype(np.int64), mask=nulls(numbers))


def _of_fractions(texts: pa.Array, unit: str, decimal: str) -> pa.Array:
    """``1769949015.123`` of a unit -> int64 microseconds, rounded down; null where a text is no such number."""
    digits = _DIGITS_OF_FRACTION[unit]
    parts = pc.extract_regex(texts, rf"^(?P<whole>0|[1-9][0-9]{{0,18}}){re.escape(decimal)}(?P<fraction>[0-9]+)$")
    whole = _microseconds(parsed(pc.struct_field(parts, "whole")), unit)
    if not digits:
        return whole
    fraction = pc.utf8_slice_codeunits(pc.utf8_rpad(pc.struct_field(parts, "fraction"), digits, "0"), 0, digits)
    return pc.add(whole, fraction.cast(pa.int64()))


def _microseconds(numbers: pa.Array, unit: str) -> pa.Array:
    """int64 of a unit -> int64 microseconds, rounded down."""
    per_second = _PER_SECOND[unit]
    if per_second > 1_000_000:
        factor = per_second // 1_000_000
        floored = np.asarray(numbers.fill_null(0), np.int64) // factor
        return pa.array(floored, mask=nulls(numbers))
    return _multiplied(numbers, 1_000_000 // per_second)


def _multiplied(numbers: pa.Array, factor: int) -> pa.Array:
    """int64 times ``factor``, held between two bounds that are far out of range."""
    if factor == 1:
        return numbers
    numbers = pc.max_element_wise(numbers, pa.scalar(_BEFORE // factor), skip_nulls=False)
    numbers = pc.min_element_wise(numbers, pa.scalar(_AFTER // factor), skip_nulls=False)
    return pc.multiply(numbers, pa.scalar(factor))


def _of_texts(texts: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    numbers = _if_all_have_one_form(texts, kind)
    if numbers is None:
        texts = with_offsets_joined(present(texts))
        numbers = _if_all_have_one_form(texts, kind)
    null = nulls(texts)
    if numbers is not None:
        return converted(null, numbers)
    times = parse_iso(texts)
    values = pa.array(times.microseconds, mask=~times.valid)
    if times.naive.any():
        values = pc.if_else(pa.array(times.naive), localised(values, kind.timezone), values)
    if kind.unit is not None and not (times.valid | null).all():
        others = to_integers(without(texts, times.valid), decimal)
        values = pc.coalesce(values, _microseconds(others.values, kind.unit))
        if others.wrong.any():
            values = pc.coalesce(values, _of_fractions(without(texts, ~others.wrong), kind.unit, decimal))
    return converted(null, values)


def _if_all_have_one_form(texts: pa.Array, kind: ColumnType) -> pa.Array | None:
    """int64 microseconds UTC by Arrow's own parsers; None where a cell needs ours."""
    first = _first(texts)
    if kind.unit is not None and first.lstrip("-").isdigit():
        integers = if_all_are_canonical(texts)
        return None if integers is None else _microseconds(integers, kind.unit)
    if first.endswith(" UTC"):
        texts, first = pc.replace_substring(texts, " UTC", "Z"), first[:-4] + "Z"
    is_zoned = first.endswith("Z") or "+" in first or "-" in first[_DATE:]
    lengths = Cells(texts).lengths
    shortest = _ZONED if is_zoned else _MINUTES
    if ((lengths < shortest) & (lengths > _DATE)).any():
        return None
    numbers = _cast(texts, "UTC" if is_zoned else None)
    return numbers if numbers is None or is_zoned else localised(numbers, kind.timezone)


def _cast(texts: pa.Array, zone: str | None) -> pa.Array | None:
    """int64 microseconds by Arrow, which reads more than six digits as nanoseconds only."""
    for unit in ("us", "ns"):
        moments = cast_all(texts, pa.timestamp(unit, tz=zone))
        if moments is not None:
            return _microseconds(moments.cast(pa.int64()), unit)
    return None


def _first(texts: pa.Array) -> str:
    """A text of the column's beginning; empty if there is none."""
    return next((text for text in texts.slice(0, 100).to_pylist() if text), "")
