"""The kind ``time_since``: days between a time and the moment of the request."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Float32, Float64
from pipelines.contracts.conversion import EARLIEST_US, LATEST_US, US_PER_DAY, utc_us
from pipelines.contracts.conversion.column_type import MOMENT, TIMESTAMP, ColumnType
from pipelines.contracts.kinds.feature import Array, TrainRows, Writer
from pipelines.contracts.kinds.scaled import (
    MAX_FLOAT32,
    Scaled,
    fitted_numbers,
    numbers_of,
    scaler,
    summarised_numbers,
    with_presence,
)
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted, FittedNumbers


class TimeSinceFeature(Scaled):
    """Days between a timestamp column and the moment of the request, standardised after log1p."""

    kind: Literal["time_since"]

    expects: ClassVar[str] = "timestamps or dates"
    implied_type: ClassVar[ColumnType | None] = TIMESTAMP

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Moments."""
        return bool(arrow_type == MOMENT)

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

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for datetimes, those without a zone where none is declared."""
        through_encode = super().writer(fitted, kind)
        if not isinstance(fitted, FittedNumbers):
            return through_encode
        source, scaled = self.source, scaler(fitted)
        naive_is_utc = kind is None or kind.timezone is None

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            value = record.get(source)
            if type(value) is not datetime.datetime or (value.tzinfo is None and not naive_is_utc):
                through_encode(target, record, as_of_us)
                return
            value = value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value
            moment_us = utc_us(value)
            if EARLIEST_US <= moment_us < LATEST_US:
                line = target[0]
                line[0] = max(-MAX_FLOAT32, min(MAX_FLOAT32, scaled(max((as_of_us - moment_us) / US_PER_DAY, 0.0))))
                line[1] = 1.0
            else:
                through_encode(target, record, as_of_us)

        return write


def days_since(column: pa.Array, as_of_us: int) -> Float64:
    """Days from each timestamp[us, UTC] to the moment; NaN where null; 0 for the future."""
    values = np.asarray(column.cast(pa.int64()).cast(pa.float64()).fill_null(np.nan), np.float64)
    return np.maximum((as_of_us - values) / US_PER_DAY, 0.0)
