"""Conversion: the types of files to the few types the job works with, cell by cell.

An id becomes int64 or string, a moment int64 microseconds UTC, a number float64. A cell that cannot be converted is
marked instead of failing its whole column; a column without a convertible cell is a SchemaError in the caller.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.plain import Converted, converted, one_array
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.vocabulary import canonical

US_PER_DAY = 86_400_000_000
# Times outside are treated as a wrong unit or a placeholder, whatever the schema's own window says.
EARLIEST_US = 0
LATEST_US = 7_258_118_400_000_000  # 2200-01-01
_UNIT_TO_US = {"s": 1_000_000, "ms": 1_000, "us": 1}


def _mask(array: pa.Array) -> Bools:
    return np.asarray(array, dtype=bool)


def _nulls(array: pa.Array) -> Bools:
    return np.zeros(len(array), bool) if array.null_count == 0 else _mask(array.is_null())


def _converted(source: pa.Array, values: pa.Array) -> Converted:
    null = _nulls(source)
    wrong = _nulls(values) & ~null if values.null_count > source.null_count else np.zeros(len(source), bool)
    return Converted(values, null, wrong, np.zeros(len(source), bool))


def _unconvertible(source: pa.Array, target: pa.DataType) -> Converted:
    null = _nulls(source)
    return Converted(pa.nulls(len(source), target), null, ~null, np.zeros(len(source), bool))


def _each(source: pa.Array, target: pa.DataType, cast: Callable[[pa.Array], pa.Array]) -> Converted:
    """Converts the whole column at once or, where that fails, value by distinct value."""
    try:
        return _converted(source, cast(source))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        pass
    try:
        encoded = source.dictionary_encode()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _unconvertible(source, target)
    return _converted(source, pa.array(_one_by_one(encoded.dictionary, cast), target).take(encoded.indices))


def _one_by_one(values: pa.Array, cast: Callable[[pa.Array], pa.Array]) -> list[Any]:
    converted: list[Any] = []
    for place in range(len(values)):
        try:
            converted.append(cast(values.slice(place, 1))[0].as_py())
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            converted.append(None)
    return converted


def as_ids(column: pa.Array | pa.ChunkedArray, target: pa.DataType) -> Converted:
    """Ids as int64 or string; an empty text counts as null, a text that is no plain integer as wrong for int64."""
    source = one_array(column)
    if pa.types.is_null(source.type):
        return converted(np.ones(len(source), bool), pa.nulls(len(source), target))
    if pa.types.is_nested(source.type) or pa.types.is_binary(source.type):
        return _unconvertible(source, target)
    if pa.types.is_string(source.type):
        empty = pc.equal(source, "")
        if pc.any(empty).as_py():
            source = pc.if_else(empty, pa.scalar(None, pa.string()), source)
    return _each(source, target, lambda values: _cast_ids(values, target))


def _cast_ids(values: pa.Array, target: pa.DataType) -> pa.Array:
    if values.type == target:
        return values
    if pa.types.is_integer(values.type) and pa.types.is_int64(target):
        return values.cast(target)
    plain = canonical(values)
    if plain.type == target:
        return plain
    if pa.types.is_string(target):
        return plain.cast(target)
    is_plain = pc.match_substring_regex(plain, r"^-?(0|[1-9][0-9]{0,17})$")
    return pc.if_else(is_plain, plain, pa.scalar(None, pa.string())).cast(target)


def as_times(column: pa.Array | pa.ChunkedArray) -> Converted:
    """Moments as int64 microseconds UTC: from timestamps, dates or ISO text; text without a zone is UTC."""
    source = one_array(column)
    if pa.types.is_null(source.type):
        return converted(np.ones(len(source), bool), pa.nulls(len(source), pa.int64()))
    if pa.types.is_timestamp(source.type):
        return _converted(source, _timestamps_us(source))
    if pa.types.is_date(source.type):
        return _each(source, pa.int64(), lambda values: _timestamps_us(values.cast(pa.timestamp("ms"))))
    if pa.types.is_string(source.type):
        empty = pc.equal(source, "")
        source = pc.if_else(empty, pa.scalar(None, pa.string()), source) if pc.any(empty).as_py() else source
        return _each(source, pa.int64(), _parse_times)
    return _unconvertible(source, pa.int64())


def _timestamps_us(values: pa.Array) -> pa.Array:
    unit = values.type.unit
    numbers = values.cast(pa.int64())
    if unit == "us":
        return numbers
    if unit == "ns":
        floored = np.asarray(numbers.fill_null(0), np.int64) // 1_000
        return pa.array(floored, mask=_nulls(numbers))
    factor = _UNIT_TO_US[unit]
    inside = pc.less(pc.abs(numbers), pa.scalar(2**62 // factor, pa.int64()))
    return pc.multiply(pc.if_else(inside, numbers, pa.scalar(None, pa.int64())), pa.scalar(factor, pa.int64()))


def _parse_times(texts: pa.Array) -> pa.Array:
    zoned = pc.match_substring_regex(texts, r"(Z|[+-][0-9]{2}:?[0-9]{2})$")
    if pc.all(pc.fill_null(zoned, True)).as_py():
        return texts.cast(pa.timestamp("us", tz="UTC")).cast(pa.int64())
    return texts.cast(pa.timestamp("us")).cast(pa.int64())


def as_integers(column: pa.Array | pa.ChunkedArray) -> Converted:
    """Whole numbers as int64, of any integer type, whole floats or their text."""
    source = one_array(column)
    if pa.types.is_boolean(source.type) or pa.types.is_temporal(source.type):
        return _unconvertible(source, pa.int64())
    return as_ids(source, pa.int64())


def as_numbers(column: pa.Array | pa.ChunkedArray) -> Converted:
    """Numbers as float64; booleans are 0 and 1; NaN and infinities count as wrong."""
    source = one_array(column)
    if pa.types.is_null(source.type):
        return converted(np.ones(len(source), bool), pa.nulls(len(source), pa.float64()))
    if pa.types.is_nested(source.type) or pa.types.is_temporal(source.type) or pa.types.is_binary(source.type):
        return _unconvertible(source, pa.float64())
    if pa.types.is_boolean(source.type):
        source = source.cast(pa.int8())
    if pa.types.is_string(source.type):
        empty = pc.equal(source, "")
        source = pc.if_else(empty, pa.scalar(None, pa.string()), source) if pc.any(empty).as_py() else source
    done = _each(source, pa.float64(), lambda values: values.cast(pa.float64(), safe=False))
    if pa.types.is_integer(source.type):
        return done
    finite = pc.is_finite(done.values)
    if pc.all(pc.fill_null(finite, True)).as_py():
        return done
    values = pc.if_else(finite, done.values, pa.scalar(None, pa.float64()))
    return _converted(source, values)


def time_us(value: object) -> int:
    """A moment as microseconds UTC since the epoch: from a datetime, date, ISO text, or integer microseconds.

    Raises:
        SchemaError: it is none of these.
    """
    convert: Callable[[datetime.datetime], int] = lambda moment: int(  # noqa: E731
        (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp() * 1_000_000
    )
    if isinstance(value, bool):
        raise SchemaError(f"expected a time, got {value!r}")
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, str):
        try:
            value = datetime.datetime.fromisoformat(value)
        except ValueError as err:
            raise SchemaError(f"expected an ISO time such as 2026-01-31T12:00:00, got {value!r}") from err
    if isinstance(value, datetime.datetime):
        return convert(value)
    if isinstance(value, datetime.date):
        return convert(datetime.datetime(value.year, value.month, value.day))
    raise SchemaError(f"expected a time (datetime, ISO text or integer microseconds), got {value!r:.80}")
