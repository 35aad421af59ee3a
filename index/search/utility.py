"""Utility: the ranking score of a call that weights the items' value."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.contracts.arrays import Float32, Int32


@dataclass(frozen=True, slots=True, eq=False)
class Utility:
    """``score + weight · log value``.

    weight: above 0. log_values: ``[items] float32`` natural logarithms, in row order.
    """

    weight: float
    log_values: Float32

    def of(self, scores: Float32, rows: Int32 | None = None) -> Float32:
        """``[n] float32`` utilities of ``scores [n] float32``; ``rows [n] int32`` are their rows, None means all."""
        utilities: Float32 = np.float32(self.weight) * (self.log_values if rows is None else self.log_values[rows])
        utilities += scores
        return utilities

    def between(self, start: int, end: int | None = None) -> Utility:
        """The same for the rows from ``start`` on and before ``end``, counted from 0."""
        return Utility(self.weight, self.log_values[start:end])
