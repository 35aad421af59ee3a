"""The type ``timestamp``: moments as microseconds UTC, of timestamps, dates, integers with a unit, and ISO text.

A time without a zone is read in the declared time zone, by default UTC. Where clocks go back, a time that occurs twice
is the earlier one; where they go forward, a time that is left out is the moment of the change.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.column_type import MOMENT, ColumnType
from pipelines.contracts.conversion.integers import to_integers
from pipelines.contracts.conversion.iso import parse_iso
from pipelines.contracts.conversion.plain import (
    Converted,
    converted,
    is_number,
    nulls,
    without,
)
from pipelines.contracts.conversion.strings import to_strings
from pipelines.contracts.conversion.texts import Cells, present
from pipelines.contracts.errors import ConfigError

US_PER_DAY = 86_400_000_000
# A moment outside has a wrong unit or is a placeholder.
EARLIEST_US = 631_152_000_000_000  # 1990-01-01
LATEST_US = 4_102_444_800_000_000  # 2100-01-01, itself outside
# Microseconds before 1990 and after 2100 that stand for all that an int64 cannot hold; a day of room for time zones.
_BEFORE, _AFTER = -(2**61), 2**61
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
_NAIVE = pa.timestamp("us")
# "2026-02-01 12" is not taken, but Arrow takes it: texts of these lengths may be of that form.
_MAYBE_HOURS = range(11, 20)


def to_moments(source: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    """Times of any form -> timestamp[us, UTC]; those outside of 1990 to 2100 are wrong and ``out_of_range``."""
    types = pa.types
    if types.is_timestamp(source.type):
        numbers = _microseconds(source.cast(pa.int64()), source.type.unit)
        return _in_range(nulls(source), numbers if source.type.tz else _localised(numbers, kind.timezone))
    if types.is_date(source.type):
        days = source.cast(pa.timestamp("ms")).cast(pa.int64()) if types.is_date64(source.type) else None
        days = source.cast(pa.int32()).cast(pa.int64()) if days is None else pc.divide(days, 86_400_000)
        return _in_range(nulls(source), _localised(_multiplied(days, US_PER_DAY), kind.timezone))
    if types.is_string(source.type) or types.is_binary(source.type):
        texts = source if types.is_string(source.type) else to_strings(source).values
        return _of_texts(texts, kind, decimal)
    is_plain_number = is_number(source.type) and not types.is_boolean(source.type)
    if kind.unit is not None and (is_plain_number or types.is_decimal(source.type)):
        return _of_integers(to_integers(source, decimal), kind.unit)
    null = to_integers(source, decimal).null if types.is_floating(source.type) else nulls(source)
    return converted(null, pa.nulls(len(source), MOMENT))


def _of_integers(numbers: Converted, unit: str) -> Converted:
    return _in_range(numbers.null, _microseconds(numbers.values, unit))


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


def _localised(numbers: pa.Array, timezone: str | None) -> pa.Array:
    """int64 microseconds of local time -> int64 microseconds UTC."""
    if timezone is None or timezone == "UTC":
        return numbers
    room = 2 * US_PER_DAY
    values = np.asarray(numbers.fill_null(0), np.int64)
    inside = (values > EARLIEST_US - room) & (values < LATEST_US + room)
    local = without(numbers, ~inside).cast(_NAIVE)
    try:
        moments = pc.assume_timezone(local, timezone, ambiguous="earliest", nonexistent="latest")
    except pa.ArrowInvalid as err:
        raise ConfigError(
            f'timezone = "{timezone}" cannot be read on this machine: {err}. Install its time zone database (tzdata).'
        ) from err
    return pc.if_else(pa.array(inside), moments.cast(pa.int64()), numbers)


def _in_range(null: Bools, numbers: pa.Array) -> Converted:
    values = np.asarray(numbers.fill_null(EARLIEST_US), np.int64)
    outside = (values < EARLIEST_US) | (values >= LATEST_US)
    numbers = without(numbers, outside)
    return Converted(numbers.cast(MOMENT), null, nulls(numbers) & ~null, outside)


def _of_texts(texts: pa.Array, kind: ColumnType, decimal: str) -> Converted:
    numbers = _if_all_are_iso(texts, kind.timezone)
    if numbers is not None:
        return _in_range(nulls(texts), numbers)
    texts = present(texts)
    null = nulls(texts)
    times = parse_iso(texts)
    values = pa.array(times.microseconds, mask=~times.valid)
    if times.naive.any():
        values = pc.if_else(pa.array(times.naive), _localised(values, kind.timezone), values)
    if kind.unit is not None and not (times.valid | null).all():
        others = to_integers(without(texts, times.valid), decimal)
        values = pc.coalesce(values, _microseconds(others.values, kind.unit))
    return _in_range(null, values)


def _if_all_are_iso(texts: pa.Array, timezone: str | None) -> pa.Array | None:
    """int64 microseconds UTC by Arrow's own parser; None where a cell needs ours."""
    lengths = Cells(texts).lengths
    first = _first(texts)
    if first is None:
        return None
    is_zoned = first[-1] == "Z" or "+" in first or "-" in first[10:]
    hours = np.isin(lengths, _MAYBE_HOURS) if is_zoned else (lengths > 10) & (lengths < 16)
    if hours.any():
        return None
    try:
        numbers = texts.cast(MOMENT if is_zoned else _NAIVE).cast(pa.int64())
    except pa.ArrowInvalid:
        return None
    return numbers if is_zoned else _localised(numbers, timezone)


def _first(texts: pa.Array) -> str | None:
    """The first text that is neither null nor empty."""
    for text in texts.slice(0, 100).to_pylist():
        if text:
            return str(text)
    return None
