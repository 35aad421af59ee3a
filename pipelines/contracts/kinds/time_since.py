"""The kind ``time_since``: days between a time and the moment of the request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Float32, Float64
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.conversion.column_type import MOMENT, TIMESTAMP, ColumnType
from pipelines.contracts.kinds.feature import TrainRows
from pipelines.contracts.kinds.scaled import Scaled, fitted_numbers, numbers_of, summarised_numbers, with_presence
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


def days_since(column: pa.Array, as_of_us: int) -> Float64:
    """Days from each timestamp[us, UTC] to the moment; NaN where null; 0 for the future."""
    values = np.asarray(column.cast(pa.int64()).cast(pa.float64()).fill_null(np.nan), np.float64)
    return np.maximum((as_of_us - values) / US_PER_DAY, 0.0)
