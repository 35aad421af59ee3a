"""The kind ``categorical``: one value out of a set."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field

from pipelines.contracts.kinds.coded import OneCode
from pipelines.contracts.vocabulary import FittedCodes


class CategoricalFeature(OneCode):
    """One value out of a set; ``values`` pins the set instead of fitting it."""

    kind: Literal["categorical"]
    values: tuple[str, ...] | None = Field(
        default=None, description="The values that get codes, in this order; by default fitted on the train window."
    )

    def fit_counts(self, counts: pa.Table) -> FittedCodes:
        """The pinned values, or those seen often enough."""
        if self.values is None:
            return super().fit_counts(counts)
        return FittedCodes.pinned(self.values, counts["value"], counts["count"])
