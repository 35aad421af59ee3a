"""From the sources of a call to its candidates: blending, limits and diversity.

The answer for a smaller k is the beginning of the answer for a larger one under the same rules: rankings never change
where they are known, places belong to sources by rank, and diversity chooses from a pool of fixed size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from index.retrieval.live.version import ServingVersion
from index.retrieval.sources.blending import blended
from index.retrieval.sources.call_rules import ReadRules
from index.retrieval.sources.ranking import Ranking
from index.rules.crowding import within_limits
from index.rules.diversity import POOL, diversified
from index.search.searcher import Neighbors
from pipelines.contracts.arrays import Int64


@dataclass(frozen=True)
class Source:
    """A source of candidates: its name in the answer, its ranking without excluded items, its share of the places."""

    name: str
    ranking: Ranking
    share: float


@dataclass(frozen=True, slots=True)
class Selected:
    """Rows and scores in answer order, the source of each (``[n] int64``), and whether no other item may come."""

    neighbors: Neighbors
    sources: Int64
    exhausted: bool


def select(live: ServingVersion, sources: Sequence[Source], k: int, rules: ReadRules) -> Selected:
    """Returns the first k candidates under the rules, or all that there are.

    Args:
        live: the version.
        sources: the last one also fills the places that the others cannot.
        k: 1 or more.
        rules: read for this version.
    """
    if rules.diversity == 0:
        return _first(sources, k, rules)
    return _spread(live, sources, k, rules)


def _first(sources: Sequence[Source], k: int, rules: ReadRules) -> Selected:
    """The first k without diversity."""
    if len(sources) == 1:
        return _alone(sources[0].ranking, k, rules)
    rankings = [source.ranking for source in sources]
    blend = blended(rankings, [source.share for source in sources], k, rules.limits)
    rows, scores = np.empty(len(blend.places), np.int32), np.empty(len(blend.places), np.float32)
    for source, ranking in enumerate(rankings):
        own = blend.sources == source
        rows[own], scores[own] = ranking.rows[blend.places[own]], ranking.scores[blend.places[own]]
    return Selected(Neighbors(rows, scores), blend.sources, blend.ended)


def _alone(ranking: Ranking, k: int, rules: ReadRules) -> Selected:
    ranking.reach(k)
    while True:
        rows, scores = ranking.rows, ranking.scores
        if rules.limits:
            places = within_limits(rows, rules.limits)
            rows, scores = rows[places], scores[places]
        if len(rows) >= k or ranking.exhausted:
            break
        ranking.reach(len(ranking.rows) + 1)
    exhausted = ranking.exhausted and len(rows) <= k
    return Selected(Neighbors(rows[:k], scores[:k]), np.zeros(min(k, len(rows)), np.int64), exhausted)


def _spread(live: ServingVersion, sources: Sequence[Source], k: int, rules: ReadRules) -> Selected:
    """The first k with diversity among the items of the last source; the others keep their places and their order."""
    last = len(sources) - 1
    depth = k + POOL
    while True:
        found = _first(sources, depth, rules)
        searched = np.flatnonzero(found.sources == last)
        wanted = int(np.count_nonzero(searched < k))
        if found.exhausted or wanted == 0 or len(searched) >= wanted + POOL:
            break
        missing = wanted + POOL - len(searched)
        # Few of the places that follow belong to other sources: exhausted ones leave theirs to the last.
        depth += missing + missing // 4 + 1
    rows, scores = found.neighbors.rows, found.neighbors.scores
    pool = searched[: wanted + POOL]
    chosen = pool[diversified(scores[pool], live.vectors[rows[pool]], wanted, rules.diversity)]
    order = np.arange(min(k, len(rows)))
    order[searched[:wanted]] = chosen
    exhausted = found.exhausted and len(rows) <= k
    return Selected(Neighbors(rows[order], scores[order]), found.sources[order], exhausted)
