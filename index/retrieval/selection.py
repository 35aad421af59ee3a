"""Reads and applies a call's rules: from a user's vector to the candidates that may be shown.

The planner returns the nearest eligible rows; exclusion, crowding and diversity select from them. If too few are left,
the planner is asked for more, until k are found or no more exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from index.retrieval.live.version import ServingVersion
from index.rules.crowding import Limit, expected_fetch, limits_of, within_limits
from index.rules.diversity import diversified, pool_size
from index.rules.eligible import Eligible
from index.rules.plan import Method, Plan
from index.rules.planner import Nearest
from index.search.searcher import Neighbors, Rows, Vectors
from index.search.utility import Utility
from pipelines.contracts.errors import SchemaError

# Up to this many excluded rows are fetched in addition and dropped; more are removed from the eligible rows.
_FEW_EXCLUDED = 1000
# Growth factor of the fetch when too few were left.
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a call, as given."""

    where: str | None = None
    exclude: Sequence[Any] | AbstractSet[Any] = ()
    max_per: Mapping[str, int] | None = None
    value_weight: float = 0.0
    diversity: float = 0.0


@dataclass(frozen=True, slots=True)
class ReadRules:
    """The rules, looked up in a version.

    eligible: None means every ad that may be shown. new: the eligible items without an event in train, if new items
    have a share of the places, else None. excluded: ``[n] int32`` ascending rows, eligible or not. utility: None ranks
    by score alone.
    """

    eligible: Eligible | None
    new: Eligible | None
    excluded: Rows
    limits: tuple[Limit, ...]
    utility: Utility | None
    diversity: float


@dataclass(frozen=True, slots=True)
class Selected:
    """Rows and scores in answer order, and how they were found."""

    neighbors: Neighbors
    plan: Plan


def read_rules(live: ServingVersion, rules: Rules) -> ReadRules:
    """Checks the rules and looks them up in a version.

    Raises:
        SchemaError: a rule has the wrong type or range, or names something that the version does not have.
    """
    limits = limits_of(rules.max_per, live.attributes)
    weight = _number(rules.value_weight, "value_weight", 0.0, 1e6)
    if weight != 0.0 and live.planner.log_values is None:
        raise SchemaError(
            f"value_weight: version {live.version} was built without a value. Name an attribute with [index] value."
        )
    diversity = _number(rules.diversity, "diversity", 0.0, 1.0)
    eligible = None if rules.where is None else live.eligible(rules.where)
    new = live.new_items(rules.where) if live.settings.new_items_share > 0.0 else None
    excluded = excluded_rows(live, rules.exclude)
    if len(excluded) > _FEW_EXCLUDED:
        eligible, new = _without(live, eligible, excluded), None if new is None else _without(live, new, excluded)
        excluded = excluded[:0]
    return ReadRules(eligible, new, excluded, limits, live.planner.utility(weight), diversity)


def _number(value: object, name: str, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.floating | np.integer):
        raise SchemaError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r:.80}")
    if not least <= float(value) <= most:
        raise SchemaError(f"{name}: expected a number from {least:g} to {most:g}, got {value!r:.80}")
    return float(value)


def excluded_rows(live: ServingVersion, exclude: object) -> Rows:
    """``[n] int32`` rows of the ids to exclude, ascending, each once; ids that the version does not have are left out.

    Raises:
        SchemaError: not a list of ids, or one can be no id of the catalogue's type.
    """
    if isinstance(exclude, str | bytes | Mapping) or not hasattr(exclude, "__len__"):
        raise SchemaError(f"exclude: expected a list of item ids, got {exclude!r:.80}")
    if isinstance(exclude, AbstractSet):
        exclude = list(exclude)
    elif not isinstance(exclude, Sequence | np.ndarray | pa.Array | pa.ChunkedArray):
        if not hasattr(exclude, "__array__"):
            raise SchemaError(f"exclude: expected a list of item ids, got {exclude!r:.80}")
        exclude = np.asarray(exclude)
    rows = np.sort(live.items.rows(exclude, "exclude"))
    return rows[np.diff(rows, prepend=np.int32(-1)) > 0]  # Unique and not -1. np.unique takes 70 us per 1,000.


def _without(live: ServingVersion, eligible: Eligible | None, excluded: Rows) -> Eligible:
    mask = np.ones(live.num_items, bool) if eligible is None else eligible.mask.copy()
    mask[excluded] = False
    return live.lay_out(mask, gather=False)


def select(live: ServingVersion, query: Vectors | None, k: int, rules: ReadRules) -> Selected:
    """Returns the k best candidates under the rules.

    Args:
        live: the version.
        query: ``[dim] float32``; None ranks by popularity.
        k: 1 or more.
        rules: read for this version.
    """
    pool = pool_size(k) if rules.diversity > 0 else k
    count = live.num_alive if rules.eligible is None else rules.eligible.count
    fetch = pool
    if rules.limits:
        shares = {limit.attribute: live.group_shares(limit.attribute) for limit in rules.limits}
        fetch = expected_fetch(pool, rules.limits, shares)
    fetch = max(1, min(fetch + len(rules.excluded), count))
    rounds, scored = 0, 0
    while True:
        found = _popular(live, fetch, rules) if query is None else _nearest(live, query, fetch, rules)
        rounds, scored = rounds + 1, scored + found.scored
        kept = _kept(found.neighbors, rules)
        if len(kept.rows) >= pool or found.exhausted:
            break
        fetch = min(_GROWTH * fetch, count)
    exhausted = found.exhausted and len(kept.rows) <= k
    plan = Plan(found.method, _eligible_count(live, count, rules), scored, rounds, exhausted)
    return Selected(_chosen(live, kept, k, pool, rules), plan)


def _nearest(live: ServingVersion, query: Vectors, fetch: int, rules: ReadRules) -> Nearest:
    return live.planner.nearest(query, fetch, rules.eligible, rules.utility)


def _eligible_count(live: ServingVersion, count: int, rules: ReadRules) -> int:
    if rules.eligible is None:
        return count - len(live.living(rules.excluded))
    return count - int(np.count_nonzero(rules.eligible.mask[rules.excluded]))


def _kept(found: Neighbors, rules: ReadRules) -> Neighbors:
    rows, scores = found.rows, found.scores
    if len(rules.excluded):
        free = np.isin(rows, rules.excluded, invert=True)
        rows, scores = rows[free], scores[free]
    if rules.limits:
        places = within_limits(rows, rules.limits)
        rows, scores = rows[places], scores[places]
    return Neighbors(rows, scores)


def _chosen(live: ServingVersion, kept: Neighbors, k: int, pool: int, rules: ReadRules) -> Neighbors:
    rows, scores = kept.rows[:pool], kept.scores[:pool]
    if rules.diversity > 0:
        places = diversified(scores, live.vectors[rows], k, rules.diversity)
        return Neighbors(rows[places], scores[places])
    return Neighbors(rows[:k], scores[:k])


def _popular(live: ServingVersion, fetch: int, rules: ReadRules) -> Nearest:
    """The most frequent eligible items; with a value weight, by ``log1p(events) + weight · log value``."""
    method: Method = "popularity"
    eligible = rules.eligible
    count = live.num_alive if eligible is None else eligible.count
    if rules.utility is None:
        rows = live.popularity.order
        first = rows[: fetch + live.num_items - count]
        rows = live.living(first) if eligible is None else rows[eligible.mask[rows]]
        found = Neighbors(rows[:fetch], live.popularity.scores[rows[:fetch]])
    else:
        rows = live.living(np.arange(live.num_items, dtype=np.int32)) if eligible is None else eligible.rows
        utilities = rules.utility.of(live.popularity.scores[rows], rows)
        found = Neighbors.best(utilities, fetch, rows, live.planner.ties)
    return Nearest(found, method, fetch, fetch >= count)
