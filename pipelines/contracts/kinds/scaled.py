"""Scaled kinds: numbers that are scaled by what was fitted on the train window, with a mark where one is missing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Float32, Float64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.feature import Array, FeatureKind
from pipelines.contracts.kinds.summary import Moments, Summary, merged_moments
from pipelines.contracts.vocabulary import Fitted, FittedNumbers

MAX_FLOAT32 = float(np.finfo(np.float32).max)


class Scaled(FeatureKind):
    """A feature of one number per row: its scaled value, and whether there is one."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Scaled value and presence."""
        return (2,)

    def is_known(self, encoded: Array) -> bool:
        """Whether there is a number."""
        return bool(encoded[0, 1] > 0)


def numbers_of(feature: FeatureKind, fitted: Fitted | None) -> FittedNumbers:
    """The vocabulary's entry of a feature as numbers.

    Raises:
        SchemaError: it is none.
    """
    if not isinstance(fitted, FittedNumbers):
        raise SchemaError(f"{feature.title} has no moments in this vocabulary")
    return fitted


def summarised_numbers(scale: str, values: Float64) -> Summary:
    """Moments of ``[n] float64`` finite values after their scale."""
    return Summary(moments=Moments.of(FittedNumbers.transform(scale, values)))


def fitted_numbers(scale: str, parts: Sequence[Summary]) -> FittedNumbers:
    """Center and spread from the moments of all partitions."""
    moments = merged_moments(parts)
    return FittedNumbers(scale, center=moments.mean, spread=moments.spread)


def floats(column: pa.Array) -> Float64:
    """Numbers, booleans or nulls -> float64 with NaN where missing or not finite.

    Raises:
        pa.ArrowTypeError: the column is text.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raise pa.ArrowTypeError("expected numbers, got text")
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.int8())
    values = np.asarray(column.cast(pa.float64(), safe=False).fill_null(np.nan), np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def with_presence(fitted: FittedNumbers, values: Float64) -> Float32:
    """``[n] float64``, NaN where missing -> ``[n, 2] float32`` scaled value (0 where missing), present 1 or 0."""
    present = ~np.isnan(values)
    scaled = clipped(fitted.scaled(np.where(present, values, 0.0)))
    return np.stack([np.where(present, scaled, 0.0), present], axis=1).astype(np.float32)


def clipped(scaled: Float64) -> Float64:
    """Clips numbers beyond float32 to its largest number: still finite, still extreme."""
    return np.clip(scaled, -MAX_FLOAT32, MAX_FLOAT32)


def scaler(fitted: FittedNumbers) -> Callable[[float], float]:
    """``FittedNumbers.scaled`` for single finite numbers."""
    if fitted.scale == "quantile":
        return lambda value: float(fitted.scaled(np.array([value]))[0])
    center, spread = fitted.center, fitted.spread if fitted.spread > 0 else 1.0
    if fitted.scale == "standard":
        return lambda value: (value - center) / spread
    return lambda value: (math.copysign(math.log1p(abs(value)), value) - center) / spread
