"""The kind ``count``: events of the last days.

The features job counts the events and stores the counts as raw columns, one per window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from pipelines.contracts.arrays import Float32
from pipelines.contracts.conversion.column_type import FLOAT64, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.feature import ARROW_ERRORS, Array, FeatureKind, TrainRows, Writer
from pipelines.contracts.kinds.scaled import MAX_FLOAT32, clipped, floats, numbers_of, scaler
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted, FittedNumbers

# Integers up to here are exact in a float64.
_EXACT = 1 << 53


class CountFeature(FeatureKind):
    """Events of this user or item in the last days before the moment, one log1p count per window."""

    kind: Literal["count"]
    window_days: tuple[int, ...] = Field(
        default=(1, 7, 28), description="Lengths of the windows before the moment, in days; one count for each."
    )
    action: str | None = Field(
        default=None, description="Action whose events are counted, a key of [actions]; by default all events."
    )

    expects: ClassVar[str] = "counts"
    implied_type: ClassVar[ColumnType | None] = FLOAT64
    needs_table: ClassVar[bool] = False
    made_of_events: ClassVar[bool] = True
    summarised: ClassVar[bool] = False

    @property
    def input_shape(self) -> tuple[int, ...]:
        """A count per window."""
        return (len(self.window_days),)

    @property
    def raw_columns(self) -> tuple[str, ...]:
        """The raw columns that hold the counts, in the order of ``window_days``."""
        return tuple(f"{self.name}_{days}d" for days in self.window_days)

    def accepts(self, arrow_type: pa.DataType) -> bool:
        """None: no column of a table is read."""
        return False

    def summarise(self, rows: TrainRows) -> Summary:
        """Nothing is summarised."""
        return Summary()

    def fit(self, parts: Sequence[Summary]) -> FittedNumbers:
        """log1p of the count as it is: most counts are 0, and a spread would hardly be stable."""
        return FittedNumbers("log")

    def is_known(self, encoded: Array) -> bool:
        """Whether any event was counted."""
        return bool(encoded.any())

    def encode(self, fitted: Fitted | None, table: pa.Table, as_of_us: int) -> Float32:
        """``[n, windows] float32`` scaled counts; an absent column or a null counts as 0.

        Raises:
            SchemaError: a column has no numbers, or the vocabulary's entry is of another kind.
        """
        try:
            columns = [
                self.encode_column(fitted, table[name].combine_chunks(), as_of_us)
                if name in table.column_names
                else self.encode_column(fitted, pa.nulls(len(table)), as_of_us)
                for name in self.raw_columns
            ]
        except ARROW_ERRORS as err:
            raise SchemaError(f"feature {self.name!r}: expected counts: {err}. Correct the columns.") from err
        return np.stack(columns, axis=1)

    def encode_column(self, fitted: Fitted | None, column: pa.Array, as_of_us: int) -> Float32:
        """``[n] float32`` scaled counts of one window."""
        return clipped(numbers_of(self, fitted).scaled(np.nan_to_num(floats(column)))).astype(np.float32)

    def writer(self, fitted: Fitted | None, kind: ColumnType | None = None) -> Writer:
        """Directly for integers that a float64 holds exactly, and for None."""
        through_encode = super().writer(fitted, kind)
        if not isinstance(fitted, FittedNumbers):
            return through_encode
        columns, scaled = self.raw_columns, scaler(fitted)

        def write(target: Array, record: Mapping[str, Any], as_of_us: int) -> None:
            values = [record.get(column) for column in columns]
            if all(value is None or (type(value) is int and abs(value) < _EXACT) for value in values):
                target[0] = [max(-MAX_FLOAT32, min(MAX_FLOAT32, scaled(value or 0))) for value in values]
            else:
                through_encode(target, record, as_of_us)

        return write
