"""The type ``timestamp``: moments as microseconds UTC, of timestamps, dates, integers with a unit, and ISO text.

A time without a zone is read in the declared time zone, by default UTC. Where clocks go back, a time that occurs twice
is the earlier one; where they go forward, a time that is left out is the moment of the change.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion.column_type import MOMENT, ColumnType
from pipelines.contracts.conversion.integers import if_all_are_canonical, to_integers
from pipelines.contracts.conversion.plain import Converted, converted, is_number, nulls, unconvertible, without
from pipelines.contracts.conversion.texts import Cells, cast_all, present
from pipelines.contracts.conversion.timestamps.iso import parse_iso
from pipelines.contracts.conversion.timestamps.local_times import EARLIEST_US, LATEST_US, US_PER_DAY, localised

# Microseconds before 1990 and after 2100 in place of all that an int64 cannot hold; a day of room for time zones.
_BEFORE, _AFTER = -(2**61), 2**61
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
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
    integers = to_integers(source, decimal)
    if kind.unit is None:
        return converted(integers.null, pa.nulls(len(source), pa.int64()))
    return converted(integers.null, _microseconds(integers.values, kind.unit))


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
        texts = present(texts)
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
