"""Encoding: a raw record, or a table of them, to the arrays a tower takes.

The same definitions serve the batch job (``encode_table``, vectorised over Arrow) and the retriever
(``encode_record``, one user in a few microseconds); a property test holds them equal. Imports neither Beam,
TensorFlow nor ScaNN.

Shapes, with ``n`` rows:

===================== ==================================================================
kind                  array
===================== ==================================================================
id, categorical       ``[n] int32`` code
list, text            ``[n, max_length] int32`` codes, 0 after the last
numeric, time_since   ``[n, 2] float32`` scaled value (0 where missing), present 1 or 0
count                 ``[n, windows] float32`` scaled counts
embedding             ``[n, dim] float32``, zeros where missing
===================== ==================================================================
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import (
    CategoricalFeature,
    CountFeature,
    EmbeddingFeature,
    Feature,
    IdFeature,
    ListFeature,
    NumericFeature,
    TextFeature,
    TimeSinceFeature,
)
from pipelines.contracts.vocabulary import Fitted, FittedCodes, FittedNumbers, as_array

US_PER_DAY = 86_400_000_000

MAX_FLOAT32 = float(np.finfo(np.float32).max)

Encoded = dict[str, npt.NDArray[Any]]


def input_shape(feature: Feature) -> tuple[int, ...]:
    """Shape of one row of the feature's array."""
    if isinstance(feature, ListFeature | TextFeature):
        return (feature.max_length,)
    if isinstance(feature, NumericFeature | TimeSinceFeature):
        return (2,)
    if isinstance(feature, CountFeature):
        return (len(feature.window_days),)
    if isinstance(feature, EmbeddingFeature):
        return (feature.dim,)
    return ()


def input_dtype(feature: Feature) -> type[np.int32] | type[np.float32]:
    """Type of the feature's array: codes are int32, all else float32."""
    coded = isinstance(feature, IdFeature | CategoricalFeature | ListFeature | TextFeature)
    return np.int32 if coded else np.float32


def encode_table(
    features: Sequence[Feature], fitted: Mapping[str, Fitted], table: pa.Table, *, as_of_us: int
) -> Encoded:
    """Encodes every row of a raw table.

    Args:
        features: what to encode.
        fitted: the vocabulary's entries, by feature name.
        table: raw columns; one that is absent counts as null throughout. A count feature reads the columns
            ``count_column(feature, days)``.
        as_of_us: the moment, microseconds UTC since the epoch, from which ``time_since`` counts.

    Returns:
        Arrays by feature name, in the shapes of the module's table, with as many rows as the table.

    Raises:
        SchemaError: a column's type does not fit the feature's kind, or a vector has another length than ``dim``.
    """
    return {feature.name: _encode_column(feature, fitted.get(feature.name), table, as_of_us) for feature in features}


def _encode_column(feature: Feature, fitted: Fitted | None, table: pa.Table, as_of_us: int) -> npt.NDArray[Any]:
    if isinstance(feature, CountFeature):
        try:
            return _encode_counts(feature, _numbers(feature, fitted), table)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as err:
            raise SchemaError(f"feature {feature.name!r}: expected counts: {err}. Correct the columns.") from err
    column = pa.nulls(len(table)) if feature.source not in table.column_names else table[feature.source]
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    try:
        if isinstance(feature, IdFeature | CategoricalFeature):
            return _codes(feature, fitted).codes(column)
        if isinstance(feature, ListFeature):
            return _encode_list(_codes(feature, fitted), column, feature.max_length)
        if isinstance(feature, TextFeature):
            return _encode_list(_codes(feature, fitted), words(column), feature.max_length)
        if isinstance(feature, NumericFeature):
            return _with_presence(_numbers(feature, fitted), _floats(column))
        if isinstance(feature, TimeSinceFeature):
            return _with_presence(_numbers(feature, fitted), days_since(column, as_of_us))
        return _encode_embedding(feature, column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as err:
        raise SchemaError(
            f"feature {feature.name!r} of kind {feature.kind!r} cannot be read from column {feature.source!r} of type "
            f"{column.type}: {err}. Change the feature's kind or the column."
        ) from err


def _codes(feature: Feature, fitted: Fitted | None) -> FittedCodes:
    if not isinstance(fitted, FittedCodes):
        raise SchemaError(f"feature {feature.name!r} of kind {feature.kind!r} has no values in this vocabulary")
    return fitted


def _numbers(feature: Feature, fitted: Fitted | None) -> FittedNumbers:
    if not isinstance(fitted, FittedNumbers):
        raise SchemaError(f"feature {feature.name!r} of kind {feature.kind!r} has no moments in this vocabulary")
    return fitted


def words(texts: pa.Array) -> pa.Array:
    """Text -> words: NFKD, lower case, split at whatever is neither letter, mark nor digit; null stays null."""
    texts = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    plain = pc.utf8_lower(pc.utf8_normalize(texts.cast(pa.string()), form="NFKD"))
    spaced = pc.utf8_trim(pc.replace_substring_regex(plain, pattern=r"[^\p{L}\p{M}\p{N}]+", replacement=" "), " ")
    split = pc.split_pattern(spaced, pattern=" ")
    # An empty text splits into one empty word: make it an empty list.
    empty = pa.array([[]], type=split.type)[0]
    return pc.if_else(pc.equal(spaced, ""), empty, split)


def _encode_list(fitted: FittedCodes, lists: pa.Array, max_length: int) -> npt.NDArray[np.int32]:
    """Lists of values -> ``[n, max_length]`` codes, left aligned; nulls inside a list are skipped."""
    encoded = np.zeros((len(lists), max_length), np.int32)
    if pa.types.is_null(lists.type):
        return encoded
    if not (
        pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) or pa.types.is_fixed_size_list(lists.type)
    ):
        raise pa.ArrowTypeError(f"expected lists, got {lists.type}")
    values = pc.list_flatten(lists)
    owners = np.asarray(pc.list_parent_indices(lists), np.int64)
    codes = fitted.codes(values)
    owners, codes = owners[codes != 0], codes[codes != 0]
    starts = np.searchsorted(owners, np.arange(len(lists)))
    places = np.arange(len(owners)) - starts[owners]
    kept = places < max_length
    encoded[owners[kept], places[kept]] = codes[kept]
    return encoded


def _floats(column: pa.Array) -> npt.NDArray[np.float64]:
    """Numbers, booleans or nulls -> float64 with NaN where missing or not finite."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raise pa.ArrowTypeError("expected numbers, got text")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = np.asarray(column.cast(pa.float64()).fill_null(np.nan), np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _with_presence(fitted: FittedNumbers, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    present = ~np.isnan(values)
    # What float32 cannot hold is brought to its largest number: still finite, still extreme.
    scaled = np.clip(fitted.scaled(np.where(present, values, 0.0)), -MAX_FLOAT32, MAX_FLOAT32)
    return np.stack([np.where(present, scaled, 0.0), present], axis=1).astype(np.float32)


def days_since(column: pa.Array, as_of_us: int) -> npt.NDArray[np.float64]:
    """Days from each timestamp (or date, or integer microseconds) to the moment; NaN where null; 0 for the future."""
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    times = column if pa.types.is_integer(column.type) else _microseconds(column)
    values = np.asarray(times.cast(pa.float64()).fill_null(np.nan), np.float64)
    return np.maximum((as_of_us - values) / US_PER_DAY, 0.0)


def _microseconds(column: pa.Array) -> pa.Array:
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us"))
    if not pa.types.is_timestamp(column.type):
        raise pa.ArrowTypeError(f"expected times, got {column.type}")
    return column.cast(pa.timestamp("us", tz="UTC") if column.type.tz else pa.timestamp("us"), safe=False).cast(
        pa.int64()
    )


def count_column(feature: CountFeature, window_days: int) -> str:
    """Name of the raw column that holds the feature's count over one window."""
    return f"{feature.name}_{window_days}d"


def _encode_counts(feature: CountFeature, fitted: FittedNumbers, table: pa.Table) -> npt.NDArray[np.float32]:
    columns = []
    for days in feature.window_days:
        name = count_column(feature, days)
        raw = (
            np.zeros(len(table))
            if name not in table.column_names
            else np.nan_to_num(_floats(table[name].combine_chunks()))
        )
        columns.append(np.clip(fitted.scaled(raw), -MAX_FLOAT32, MAX_FLOAT32))
    return np.stack(columns, axis=1).astype(np.float32)


def _encode_embedding(feature: EmbeddingFeature, column: pa.Array) -> npt.NDArray[np.float32]:
    encoded = np.zeros((len(column), feature.dim), np.float32)
    if pa.types.is_null(column.type):
        return encoded
    present = np.asarray(pc.is_valid(column), dtype=bool)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(column), feature.dim), np.int64)
    wrong = np.flatnonzero(lengths != feature.dim)
    if len(wrong):
        raise SchemaError(
            f"feature {feature.name!r}: expected vectors of {feature.dim} numbers, row {wrong[0]} of column "
            f"{feature.source!r} has {lengths[wrong[0]]}. Correct dim or the column."
        )
    values = np.asarray(pc.list_flatten(column).cast(pa.float32()).fill_null(np.nan), np.float32)
    if not np.isfinite(values).all():
        row = np.flatnonzero(present)[np.flatnonzero(~np.isfinite(values))[0] // feature.dim]
        raise SchemaError(
            f"feature {feature.name!r}: row {row} of column {feature.source!r} has a NaN or infinite number"
        )
    encoded[present] = values.reshape(-1, feature.dim)
    return encoded


def encode_record(
    features: Sequence[Feature], fitted: Mapping[str, Fitted], record: Mapping[str, Any], *, as_of_us: int
) -> Encoded:
    """Encodes one raw record: what ``encode_table`` gives for a table of that one row.

    Args:
        features: what to encode.
        fitted: the vocabulary's entries, by feature name.
        record: raw values by column; an absent one counts as null.
        as_of_us: the moment of the request, microseconds UTC since the epoch.

    Raises:
        SchemaError: a value's type does not fit the feature's kind; the message names feature and value.
    """
    encoded: Encoded = {}
    for feature in features:
        if isinstance(feature, IdFeature | CategoricalFeature):
            value = record.get(feature.source)
            encoded[feature.name] = np.array([_scalar_code(feature, fitted.get(feature.name), value)], np.int32)
        elif isinstance(feature, NumericFeature):
            value = record.get(feature.source)
            encoded[feature.name] = _scalar_number(feature, fitted.get(feature.name), value)
        else:
            table = pa.table({name: as_array([record.get(name)]) for name in source_columns(feature)})
            encoded[feature.name] = _encode_column(feature, fitted.get(feature.name), table, as_of_us)
    return encoded


def source_columns(feature: Feature) -> tuple[str, ...]:
    """The raw columns a feature reads."""
    if isinstance(feature, CountFeature):
        return tuple(count_column(feature, days) for days in feature.window_days)
    return (feature.source,)


_PLAIN: tuple[type, ...] = (str, int, float, bool, type(None))


def _scalar_code(feature: Feature, fitted: Fitted | None, value: object) -> int:
    if type(value) not in _PLAIN:
        raise SchemaError(f"feature {feature.name!r}: expected one text or number, got {value!r:.80}")
    return _codes(feature, fitted).code(value)


def _scalar_number(feature: Feature, fitted: Fitted | None, value: object) -> npt.NDArray[np.float32]:
    if isinstance(value, str) or type(value) not in _PLAIN:
        raise SchemaError(f"feature {feature.name!r}: expected a number, got {value!r:.80}")
    number = np.array([np.nan if value is None else float(value)])  # type: ignore[arg-type]
    return _with_presence(_numbers(feature, fitted), np.where(np.isfinite(number), number, np.nan))


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
