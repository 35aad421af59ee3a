"""Plan: how a call was answered, as the planner chose and the answer reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Method = Literal["search", "fetch", "leaves", "exact", "popularity", "empty"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call was answered.

    method: "search" (nothing to filter: the searcher as tuned), "fetch" (the searcher asked for more than k, then
        filtered), "leaves" (eligible rows of the nearest leaves scored), "exact" (every eligible row scored),
        "popularity" (no vector: the most frequent eligible items), "empty" (no item is eligible).
    eligible: items that ``where`` and ``exclude`` leave.
    scored: rows that were scored exactly, or fetched from the searcher, all rounds together.
    rounds: how often the plan looked further.
    exhausted: no further eligible item exists: fewer than k are all there are.
    """

    method: Method
    eligible: int
    scored: int
    rounds: int
    exhausted: bool
