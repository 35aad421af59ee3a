"""Answers many records whose first search is made at once: with several sources, or for more than one search finds.

A tree is asked one by one where sources are blended: for many queries at once it finds a little else.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from index.retrieval.answer import NO_RULES, answer
from index.retrieval.batch import PART, embedded
from index.retrieval.candidates import Candidates
from index.retrieval.live.version import ServingVersion
from index.retrieval.sources.blending import places_of
from index.rules.eligible import Eligible
from index.rules.planner import TUNED_FOR, Nearest, Planner
from index.search.searcher import Neighbors, Vectors
from index.search.utility import Utility


def searches_at_once(live: ServingVersion) -> bool:
    """Whether one pass for many queries serves all calls: search is exact, and no ad is dead."""
    return live.searcher.effort is None and live.alive is None


def answer_begun(live: ServingVersion, records: Sequence[Mapping[str, Any]], k: int) -> list[Candidates]:
    """Returns the answer to each record, in order. See ``Retriever.retrieve_batch``."""
    answers: list[Candidates] = []
    for start in range(0, len(records), PART):
        part = embedded(live, records[start : start + PART], start)
        found = live.searcher.search_batch(part.queries, _depth(live, k))
        known = {
            query.tobytes(): Neighbors(rows, scores)
            for query, rows, scores in zip(part.queries, found.rows, found.scores, strict=True)
            if len(rows) and rows[-1] >= 0
        }
        planner = {field.name: getattr(live.planner, field.name) for field in dataclasses.fields(live.planner)}
        version = dataclasses.replace(live, planner=_WithFound(**planner, known=known))
        answers += [
            answer(version, None if cold == "popularity" else query, k, NO_RULES, cold=cold, request=request)
            for query, request, cold in zip(part.queries, part.requests, part.colds, strict=True)
        ]
    return answers


def _depth(live: ServingVersion, k: int) -> int:
    """How many rows the first search of a call is for."""
    if live.searcher.effort is not None:
        return TUNED_FOR
    shares = (live.settings.own_items_share, live.settings.new_items_share)
    return min(live.searcher.num_items, k + sum(places_of(k, share) for share in shares))


@dataclass(frozen=True, kw_only=True)
class _WithFound(Planner):
    """A planner that has been asked for some queries already. known: their neighbors, by the query's bytes."""

    known: dict[bytes, Neighbors]

    def nearest(self, query: Vectors, m: int, eligible: Eligible | None, utility: Utility | None = None) -> Nearest:
        """Returns the m nearest rows. See ``Planner.nearest``."""
        found = self.known.get(query.tobytes()) if eligible is None and utility is None else None
        if found is None or m > len(found.rows):
            return super().nearest(query, m, eligible, utility)
        return Nearest(Neighbors(found.rows[:m], found.scores[:m]), "search", m, m >= self.searcher.num_items)
