"""Base of the models of the report's sections: frozen, plain JSON, without NaN."""

from __future__ import annotations

import math
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict

from index.evaluation.measures.bootstrap import Interval


def _none_for_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value


# A figure, or None if nothing had a value: JSON has no NaN.
Figure = Annotated[float | None, BeforeValidator(_none_for_nan)]
# Lower and upper bound of an interval.
Bounds = tuple[Figure, Figure]


class Part(BaseModel):
    """A part of a report. Keys that a newer version wrote are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    def as_json(self) -> dict[str, Any]:
        """As plain JSON; figures that were not measured have no key."""
        return self.model_dump(mode="json", exclude_unset=True)


class Mean(Part):
    """A mean over users with its bootstrap interval, and the number of users with a value."""

    mean: Figure
    interval: Bounds
    users: int

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """From a bootstrap interval."""
        return cls(mean=interval.mean, interval=(interval.low, interval.high), users=interval.users)
