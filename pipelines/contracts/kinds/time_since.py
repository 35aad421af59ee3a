"""The kind ``time_since``: days between a time and the moment of the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Float32, Float64
from pipelines.contracts.conversion import US_PER_DAY, as_times
from pipelines.contracts.conversion.column_type import TIMESTAMP, ColumnType
from pipelines.contracts.kinds.feature import Reject, TrainRows
from pipelines.contracts.kinds.scaled import Scaled, fitted_numbers, numbers_of, summarised_numbers, with_presence
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted, FittedNumbers


class TimeSinceFeature(Scaled):
    """Days between a timestamp column and the moment of the request, standardised after log1p."""

    kind: Literal["time_since"]

    expects: ClassVar[str] = "timestamps or dates"
    implied_type: ClassVar[ColumnType | None] = TIMESTAMP

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Timestamps, dates, ISO text, and int64 microseconds UTC."""
        is_time = pa.types.is_temporal(arrow_type) or pa.types.is_int64(arrow_type)
        return bool(is_time or pa.types.is_string(arrow_type))

    def stored_type(self, arrow_type: pa.DataType) -> pa.DataType:
        """Text is stored as the times it reads as."""
        return pa.timestamp("us", tz="UTC") if pa.types.is_string(arrow_type) else super().stored_type(arrow_type)

    def check(self, column: pa.Array, reject: Reject) -> pa.Array:
        """Rejects text that is no ISO time (``type``)."""
        if not pa.types.is_string(column.type):
            return column
        times = as_times(column)
        reject(times.wrong, "type")
        return times.values

    def summarise(self, rows: TrainRows) -> Summary:
        """Moments of log1p of the days; each row once, however many train events it has."""
        days = days_since(rows.column(self.source), rows.as_of_us)
        return summarised_numbers("log", days[~np.isnan(days)])

    def fit(self, parts: Sequence[Summary]) -> FittedNumbers:
        """Center and spread."""
        return fitted_numbers("log", parts)

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Float32:
        """``[n, 2] float32``: scaled days, present."""
        return with_presence(numbers_of(self, fitted), days_since(column, as_of_us))


def days_since(column: pa.Array, as_of_us: int) -> Float64:
    """Days from each timestamp (or date, or integer microseconds) to the moment; NaN where null; 0 for the future.

    Raises:
        pa.ArrowTypeError: the column has no times.
    """
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
