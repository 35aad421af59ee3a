"""How much events count: the weight of the action, halved with each half-life of age. NumPy alone.

Popularity, the baselines and a user's own items add up these strengths. An action of weight 0 is context: its events
have no strength, whatever their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Bools, Float64, Int64
from pipelines.sequences.event_lists import EventLists

_US_PER_DAY = 86_400_000_000
# From what is never forgotten to what counts half after a week: of equals, the earlier one is taken.
HALF_LIVES_DAYS: tuple[float | None, ...] = (None, 365.0, 180.0, 90.0, 60.0, 30.0, 14.0, 7.0)


def counting(events: EventLists, weights: Sequence[float]) -> Bools:
    """``[events] bool``: the event's action has a weight above 0.

    Args:
        events: of any users and splits.
        weights: of each action, by its code.
    """
    counts: Bools = (np.asarray(weights, np.float64) > 0)[events.actions]
    return counts


def strengths(
    events: EventLists,
    weights: Sequence[float],
    half_life_days: float | None = None,
    newest_us: Int64 | int = 0,
) -> Float64:
    """``[events] float64``: ``weight * 2^(-age / half-life)``.

    Args:
        events: of any users and splits.
        weights: of each action, by its code.
        half_life_days: None counts events of any age alike.
        newest_us: microseconds UTC from which ages count, one or ``[events]``. Events after it have age 0.
    """
    weight: Float64 = np.asarray(weights, np.float64)[events.actions]
    if half_life_days is None:
        return weight
    ages = np.maximum(newest_us - events.times, 0) / _US_PER_DAY
    # Bounded, so that what was ever chosen has a strength above 0.
    decayed: Float64 = weight * np.exp2(-np.minimum(ages / half_life_days, 1000.0))
    return decayed


def by_item(events: EventLists, of_events: npt.ArrayLike, items: int) -> Float64:
    """``[items] float64``: the sum of ``[events]`` numbers by the events' item."""
    return np.bincount(events.rows, np.asarray(of_events, np.float64), minlength=items).astype(np.float64)
