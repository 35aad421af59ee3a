"""The kind ``numeric``: a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.contracts.arrays import Float32
from pipelines.contracts.conversion import is_number
from pipelines.contracts.conversion.column_type import FLOAT64, ColumnType
from pipelines.contracts.kinds.feature import Array, TrainRows, Writer
from pipelines.contracts.kinds.scaled import (
    MAX_FLOAT32,
    Scaled,
    fitted_numbers,
    floats,
    numbers_of,
    scaler,
    summarised_numbers,
    with_presence,
)
from pipelines.contracts.kinds.summary import Summary, merged_sample
from pipelines.contracts.vocabulary import Fitted, FittedNumbers

# 128 steps of equal mass: the error of a place is below 1/128, under the noise of any window.
_QUANTILES = 129
# Integers up to here are exact in a float64.
_EXACT = 1 << 53


class NumericFeature(Scaled):
    """A number: standardised, standardised after log1p, or mapped to its quantile in the train window."""

    kind: Literal["numeric"]
    scale: Literal["standard", "log", "quantile"] = Field(
        default="standard",
        description="How the number is scaled by the train window: to mean 0 and spread 1 as it is (standard) or after "
        "sign(x)·log1p(|x|) (log), or to its quantile from -1 to 1 (quantile).",
    )

    expects: ClassVar[str] = "numbers"
    implied_type: ClassVar[ColumnType | None] = FLOAT64

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """Numbers and booleans."""
        return is_number(arrow_type)

    def summarise(self, rows: TrainRows) -> Summary:
        """Moments of the scaled numbers, or a sample of them; each row once, however many train events it has."""
        values = floats(rows.column(self.source))
        known = ~np.isnan(values)
        if self.scale == "quantile":
            return Summary.of_sample(values[known], rows.ids.filter(pa.array(known)))
        return summarised_numbers(self.scale, values[known])

    def fit(self, parts: Sequence[Summary]) -> FittedNumbers:
        """Center and spread, or quantiles."""
        if self.scale != "quantile":
            return fitted_numbers(self.scale, parts)
        values = merged_sample(parts)
        quantiles = np.quantile(values, np.linspace(0, 1, _QUANTILES)) if len(values) else None
        return FittedNumbers("quantile", quantiles=quantiles)

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Float32:
        """``[n, 2] float32``: scaled value, present."""
        return with_presence(numbers_of(self, fitted), floats(column))

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for finite floats and for integers that a float64 holds exactly."""
        through_encode = super().writer(fitted, kind)
        if not isinstance(fitted, FittedNumbers) or kind not in (None, FLOAT64):
            return through_encode
        source, scaled = self.source, scaler(fitted)

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            value = record.get(source)
            if (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < _EXACT):
                line = target[0]
                line[0] = max(-MAX_FLOAT32, min(MAX_FLOAT32, scaled(value)))
                line[1] = 1.0
            elif value is None:
                target[...] = 0.0
            else:
                through_encode(target, record, as_of_us)

        return write
