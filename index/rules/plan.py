"""Plan: how a call was answered, as chosen by the planner and reported in the answer."""

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
    eligible: number of items that ``where`` and ``exclude`` allow.
    scored: rows that were scored exactly or fetched from the searcher, over all rounds.
    rounds: how often the search was extended.
    exhausted: there are no further eligible items, so fewer than k may be all there are.
    """

    method: Method
    eligible: int
    scored: int
    rounds: int
    exhausted: bool
