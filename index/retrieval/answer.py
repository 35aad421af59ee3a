"""Answers one call from one version: record or vector in, candidates out.

Nothing here outlives the call: the holder of the version may swap it meanwhile.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from index.inference.records import Request
from index.retrieval.candidates import NEW_ITEMS, OWN_ITEMS, POPULARITY, TOWERS, Candidates, ColdStart, SourceLabels
from index.retrieval.explanation import CallExplanation
from index.retrieval.live.version import ServingVersion
from index.retrieval.selection import Selected, Source, select
from index.retrieval.sources.blending import places_of
from index.retrieval.sources.call_rules import ReadRules, Rules, read_rules
from index.retrieval.sources.own_items import own_items
from index.retrieval.sources.ranking import Listed, Search
from index.rules.plan import Plan
from index.rules.planner import TUNED_FOR
from index.search.exact import scores_of
from index.search.searcher import Neighbors, Rows, Scores, Vectors

NO_RULES = Rules()
_LABELS = SourceLabels()


def answer_record(
    live: ServingVersion, record: Mapping[str, Any], k: int, rules: Rules = NO_RULES, *, explain: bool = False
) -> Candidates:
    """Answers a raw record. See ``Retriever.retrieve``."""
    request = live.reader.read(record)
    cold = cold_start(live, request, record)
    query = None if cold == "popularity" else live.tower.embed(request, record)
    if query is not None and not live.tells(query):
        query, cold = None, "popularity"
    if rules is NO_RULES and not explain and query is not None and not live.settings.blends:
        depth = search_depth(live, k)
        if depth is not None:
            return unfiltered(live, live.searcher.search(query, depth), k, cold, request.unknown)
    return answer(live, query, k, rules, explain=explain, cold=cold, request=request)


def search_depth(live: ServingVersion, k: int) -> int | None:
    """How many rows one search is asked for where no rule applies; None if one search is not enough.

    A tree is asked for as many as it is tuned for, also if fewer are wanted: what it finds depends on the number.
    """
    if live.searcher.effort is None:
        return k
    return TUNED_FOR if k <= TUNED_FOR else None


def unfiltered(
    live: ServingVersion, found: Neighbors, k: int, cold: ColdStart | None = None, unknown: int = 0
) -> Candidates:
    """The first k of the searcher's own answer as candidates."""
    rows, scores = found.rows[:k], found.scores[:k]
    n = len(rows)
    plan = Plan("search", live.num_alive, n, 1, n < k)
    ids, sources = live.items.of(rows), _LABELS.of(TOWERS, n)
    return Candidates(ids, scores, rows, sources, live.version, live.space, k, plan, cold, unknown)


def answer(
    live: ServingVersion,
    query: Vectors | None,
    k: int,
    rules: Rules,
    *,
    explain: bool = False,
    cold: ColdStart | None = None,
    request: Request | None = None,
) -> Candidates:
    """Answers a vector, or by popularity if there is none, under rules."""
    read = read_rules(live, rules)
    main = Search(live, query, read, read.eligible)
    others = _others(live, query, read, request)
    for source in others:
        source.ranking.expect(places_of(k, source.share))
    if others:
        main.expect(k + sum(places_of(k, source.share) for source in others))
    left = 1.0 - sum(source.share for source in others)
    sources = [*others, Source(POPULARITY if query is None else TOWERS, main, left)]
    selected = select(live, sources, k, read)
    found = selected.neighbors
    scored = sum(source.ranking.scored for source in sources)
    plan = Plan(main.method, _eligible_count(live, read), scored, main.rounds, selected.exhausted)
    return Candidates(
        live.items.of(found.rows),
        found.scores,
        found.rows,
        _labels(sources, selected),
        live.version,
        live.space,
        k,
        plan,
        cold,
        0 if request is None else request.unknown,
        CallExplanation(live, query, rules, read, k, found.rows) if explain else None,
    )


def _others(live: ServingVersion, query: Vectors | None, read: ReadRules, request: Request | None) -> list[Source]:
    """The sources other than the search that have something for the user."""
    settings, others = live.settings, []
    if request is not None and len(request.all_rows) and settings.own_items_share > 0.0:
        own = own_items(request, live.action_weights, settings.own_items_half_life_days)
        listed = Listed(_allowed(live.living(own), read), functools.partial(_scores, live, query, read))
        others.append(Source(OWN_ITEMS, listed, settings.own_items_share))
    if query is not None and read.new is not None:
        others.append(Source(NEW_ITEMS, Search(live, query, read, read.new), settings.new_items_share))
    return others


def _allowed(rows: Rows, read: ReadRules) -> Rows:
    if read.eligible is not None:
        rows = rows[read.eligible.mask[rows]]
    return rows[np.isin(rows, read.excluded, invert=True)] if len(read.excluded) else rows


def _scores(live: ServingVersion, query: Vectors | None, read: ReadRules, rows: Rows) -> Scores:
    scores = live.popularity.scores[rows] if query is None else scores_of(live.vectors, rows, query)
    return scores if read.utility is None else read.utility.of(scores, rows)


def _eligible_count(live: ServingVersion, read: ReadRules) -> int:
    if read.eligible is None:
        return live.num_alive - len(live.living(read.excluded))
    return read.eligible.count - int(np.count_nonzero(read.eligible.mask[read.excluded]))


def _labels(sources: Sequence[Source], selected: Selected) -> npt.NDArray[np.str_]:
    """``[n]`` the name of each candidate's source."""
    n = len(selected.sources)
    if len(sources) == 1:
        return _LABELS.of(sources[0].name, n)
    return np.concatenate([_LABELS.of(source.name, 1) for source in sources])[selected.sources]


def cold_start(live: ServingVersion, request: Request, record: Mapping[str, Any]) -> ColdStart | None:
    """What kind of cold start this is; None if the user's history or learned id is known."""
    if len(request.rows):
        return None
    known = live.tower.knows(request, record)
    if known.user_id:
        return None
    return "profile" if known.anything else "popularity"
