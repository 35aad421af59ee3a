"""Answers one call from one version: record or vector in, candidates out.

Nothing here outlives the call: the holder of the version may swap it meanwhile.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from index.inference.records import Request
from index.retrieval.candidates import NEW_ITEMS, OWN_ITEMS, POPULARITY, TOWERS, Candidates, ColdStart, SourceLabels
from index.retrieval.explanation import CallExplanation
from index.retrieval.live.version import ServingVersion
from index.retrieval.selection import ReadRules, Rules, Selected, read_rules, select
from index.retrieval.sources.blending import interleaved, places_of
from index.retrieval.sources.own_items import own_items
from index.rules.crowding import within_limits
from index.rules.plan import Plan
from index.search.exact import scores_of
from index.search.searcher import Neighbors, Rows, Vectors
from index.search.utility import Utility

NO_RULES = Rules()
_LABELS = SourceLabels()
_NO_ROWS = np.zeros(0, np.int32)
_NOTHING = Selected(Neighbors(_NO_ROWS, np.zeros(0, np.float32)), Plan("empty", 0, 0, 0, True))


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
        return unfiltered(live, live.searcher.search(query, k), k, cold, request.unknown)
    return answer(live, query, k, rules, explain=explain, cold=cold, request=request)


def unfiltered(
    live: ServingVersion, found: Neighbors, k: int, cold: ColdStart | None = None, unknown: int = 0
) -> Candidates:
    """The searcher's own answer as candidates."""
    rows = found.rows
    n = len(rows)
    plan = Plan("search", live.num_alive, n, 1, n < k)
    ids, sources = live.items.of(rows), _LABELS.of(TOWERS, n)
    return Candidates(ids, found.scores, rows, sources, live.version, live.space, k, plan, cold, unknown)


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
    own = _own(live, k, read, request) if query is not None and request is not None else _NO_ROWS
    new = _new(live, query, k, read)
    selected = select(live, query, k + len(own) + len(new.neighbors.rows), read)
    found, plan = selected.neighbors, selected.plan
    sources = _LABELS.of(POPULARITY if query is None else TOWERS, len(found.rows))
    if query is not None and (len(own) or len(new.neighbors.rows)):
        plan = dataclasses.replace(plan, scored=plan.scored + new.plan.scored)
        found, sources = _blended(live, k, read, _scored(live, query, own, read.utility), new.neighbors, found)
    explanation = CallExplanation(live, query, rules, read, k, found.rows) if explain else None
    return Candidates(
        live.items.of(found.rows),
        found.scores,
        found.rows,
        sources,
        live.version,
        live.space,
        k,
        plan,
        cold,
        0 if request is None else request.unknown,
        explanation,
    )


def _own(live: ServingVersion, k: int, read: ReadRules, request: Request) -> Rows:
    """The user's own items that the rules allow, as many as the source has places."""
    places = places_of(k, live.settings.own_items_share)
    if places == 0 or len(request.all_rows) == 0:
        return _NO_ROWS
    own = own_items(request, live.action_weights, live.settings.own_items_half_life_days)
    return _allowed(live.living(own), read)[:places]


def _new(live: ServingVersion, query: Vectors | None, k: int, read: ReadRules) -> Selected:
    """The best new ads for the user under the rules, as many as the source has places."""
    if query is None or read.new is None:
        return _NOTHING
    return select(
        live, query, places_of(k, live.settings.new_items_share), dataclasses.replace(read, eligible=read.new)
    )


def _blended(
    live: ServingVersion, k: int, read: ReadRules, own: Neighbors, new: Neighbors, tower: Neighbors
) -> tuple[Neighbors, npt.NDArray[np.str_]]:
    """The candidates of all sources in one order; limits apply to them together."""
    settings = live.settings
    shares = (settings.own_items_share, settings.new_items_share)
    parts = (own, new, tower)
    order = interleaved([part.rows for part in parts], [*shares, 1.0 - sum(shares)])
    rows = np.concatenate([part.rows for part in parts])[order]
    scores = np.concatenate([part.scores for part in parts])[order]
    names = (OWN_ITEMS, NEW_ITEMS, TOWERS)
    labels = [_LABELS.of(name, len(part.rows)) for name, part in zip(names, parts, strict=True)]
    sources = np.concatenate(labels)[order]
    places = within_limits(rows, read.limits)[:k] if read.limits else slice(k)
    return Neighbors(rows[places], scores[places]), sources[places]


def _allowed(rows: Rows, read: ReadRules) -> Rows:
    if read.eligible is not None:
        rows = rows[read.eligible.mask[rows]]
    return rows[np.isin(rows, read.excluded, invert=True)] if len(read.excluded) else rows


def _scored(live: ServingVersion, query: Vectors, rows: Rows, utility: Utility | None) -> Neighbors:
    scores = scores_of(live.vectors, rows, query)
    return Neighbors(rows, scores if utility is None else utility.of(scores, rows))


def cold_start(live: ServingVersion, request: Request, record: Mapping[str, Any]) -> ColdStart | None:
    """What kind of cold start this is; None if the user's history or learned id is known."""
    if len(request.rows):
        return None
    known = live.tower.knows(request, record)
    if known.user_id:
        return None
    return "profile" if known.anything else "popularity"
