"""Encoding one raw record at the rate of a server: ``encode_record``, prepared once for a set of features.

A plain value of the expected type takes a direct path; every other goes through ``pipelines.contracts.encoding``, so
that the answer and the error are the same. A property test holds the two equal. Imports neither Beam, TensorFlow nor
ScaNN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.encoding import MAX_FLOAT32, count_column, encode_record
from pipelines.contracts.schema import (
    CategoricalFeature,
    CountFeature,
    EmbeddingFeature,
    Feature,
    IdFeature,
    ListFeature,
    NumericFeature,
)
from pipelines.contracts.vocabulary import (
    OUT_OF_VOCABULARY,
    RESERVED_CODES,
    Fitted,
    FittedCodes,
    FittedNumbers,
    ValueTable,
)

Target = npt.NDArray[Any]
# Writes a feature's value to its input ``[1, ..]``: target, record, moment in microseconds.
Writer = Callable[[Target, Mapping[str, Any], int], None]


class RecordEncoder:
    """Writes the features of one record into arrays that are given. Immutable, safe to use from many threads."""

    def __init__(self, features: Sequence[Feature], fitted: Mapping[str, Fitted]) -> None:
        """Prepares the features; their order is that of ``writers``."""
        self.features = tuple(features)
        self.writers: tuple[Writer, ...] = tuple(_writer(feature, fitted) for feature in features)


def _writer(feature: Feature, fitted: Mapping[str, Fitted]) -> Writer:
    slow = _through_encode(feature, fitted)
    entry = fitted.get(feature.name)
    if isinstance(entry, FittedCodes) and entry.hash_buckets is None:
        codes = _codes(entry)
        if isinstance(feature, IdFeature | CategoricalFeature):
            return _code_writer(feature.source, codes, slow)
        if isinstance(feature, ListFeature):
            return _list_writer(feature.source, feature.max_length, codes, slow)
    if isinstance(entry, FittedNumbers):
        if isinstance(feature, NumericFeature):
            return _number_writer(feature.source, _scaler(entry), slow)
        if isinstance(feature, CountFeature):
            columns = tuple(count_column(feature, days) for days in feature.window_days)
            return _count_writer(columns, _scaler(entry), slow)
    if isinstance(feature, EmbeddingFeature):
        return _vector_writer(feature.source, feature.dim, slow)
    return slow


def _through_encode(feature: Feature, fitted: Mapping[str, Fitted]) -> Writer:
    features = (feature,)

    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        target[...] = encode_record(features, fitted, record, as_of_us=now_us)[feature.name]

    return write


class _Codes:
    """Codes of plain values of one type."""

    def __init__(self, entry: FittedCodes) -> None:
        table = ValueTable(entry.values)
        self.type: type = int if pa.types.is_integer(table.values.type) else str
        self.code_of_value = {value: place + RESERVED_CODES for place, value in enumerate(table.values.to_pylist())}


def _codes(entry: FittedCodes) -> _Codes:
    return _Codes(entry)


def _code_writer(source: str, codes: _Codes, slow: Writer) -> Writer:
    get, plain = codes.code_of_value.get, codes.type

    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        value = record.get(source)
        if value is None:
            target[0] = 0
        elif type(value) is plain:
            target[0] = get(value, OUT_OF_VOCABULARY)
        else:
            slow(target, record, now_us)

    return write


def _list_writer(source: str, max_length: int, codes: _Codes, slow: Writer) -> Writer:
    get, plain = codes.code_of_value.get, codes.type

    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        values = record.get(source)
        if values is not None and (type(values) is not list or any(type(value) is not plain for value in values)):
            slow(target, record, now_us)
            return
        line = target[0]
        line[:] = 0
        if values:
            found = [get(value, OUT_OF_VOCABULARY) for value in values[:max_length]]
            line[: len(found)] = found

    return write


def _scaler(entry: FittedNumbers) -> Callable[[float], float]:
    if entry.scale == "quantile":
        return lambda value: float(entry.scaled(np.array([value]))[0])
    center, spread = entry.center, entry.spread if entry.spread > 0 else 1.0
    if entry.scale == "standard":
        return lambda value: (value - center) / spread
    return lambda value: (math.copysign(math.log1p(abs(value)), value) - center) / spread


def _number_writer(source: str, scale: Callable[[float], float], slow: Writer) -> Writer:
    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        value = record.get(source)
        if (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 53):
            line = target[0]
            line[0] = max(-MAX_FLOAT32, min(MAX_FLOAT32, scale(value)))
            line[1] = 1.0
        elif value is None:
            target[...] = 0.0
        else:
            slow(target, record, now_us)

    return write


def _count_writer(columns: tuple[str, ...], scale: Callable[[float], float], slow: Writer) -> Writer:
    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        values = [record.get(column) for column in columns]
        if all(value is None or (type(value) is int and abs(value) < 1 << 53) for value in values):
            target[0] = [max(-MAX_FLOAT32, min(MAX_FLOAT32, scale(value or 0))) for value in values]
        else:
            slow(target, record, now_us)

    return write


def _vector_writer(source: str, dim: int, slow: Writer) -> Writer:
    def write(target: Target, record: Mapping[str, Any], now_us: int) -> None:
        value = record.get(source)
        fits = type(value) is np.ndarray and value.dtype == np.float32 and value.shape == (dim,)
        if fits and np.isfinite(np.asarray(value)).all():
            target[0] = value
        else:
            slow(target, record, now_us)

    return write
