"""Search over a version with changes: its rows that are still live, and the items added since it was built."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from index.registry.deltas import DeltaState
from index.search.exact import ExactSearcher
from index.search.searcher import (
    PAD_ROW,
    PAD_SCORE,
    Effort,
    Neighbors,
    Searcher,
    Vectors,
    best_first,
    check_k,
    check_queries,
)
from index.search.utility import Utility
from pipelines.contracts.arrays import Bools, Int32


class _OverBase:
    """What a searcher over another one answers by it: how it was tuned, and what it is made of."""

    def __init__(self, base: Searcher) -> None:
        self._base = base

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._base.dim

    @property
    def effort(self) -> Effort | None:
        """The base's."""
        return self._base.effort

    @property
    def full_effort(self) -> Effort | None:
        """The base's."""
        return self._base.full_effort

    @property
    def leaf_of_row(self) -> Int32 | None:
        """The base's, of all its rows."""
        return self._base.leaf_of_row

    @property
    def leaves_searched(self) -> int:
        """The base's."""
        return self._base.leaves_searched

    @property
    def indexes_value(self) -> bool:
        """The base's."""
        return self._base.indexes_value


class MaskedSearcher(_OverBase):
    """A searcher that does not return some of its rows: it fetches more and drops them."""

    def __init__(self, base: Searcher, dead: Bools) -> None:
        """Takes the searcher and ``dead [rows] bool``."""
        super().__init__(base)
        self._dead = dead
        self._num_dead = int(dead.sum())

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return int(len(self._dead) - self._num_dead)

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live. See ``Searcher.search``."""
        return self._living(k, lambda fetch: self._base.search(query, fetch, effort))

    def search_utility(self, query: Vectors, k: int, utility: Utility, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live, by utility. See ``Searcher.search_utility``."""
        return self._living(k, lambda fetch: self._base.search_utility(query, fetch, utility, effort))

    def _living(self, k: int, search: Callable[[int], Neighbors]) -> Neighbors:
        """Fetches more until k of them live or the base is exhausted."""
        check_k(k)
        if self._num_dead == 0:
            return search(k)
        fetch = k + min(self._num_dead, k)
        while True:
            found = search(fetch)
            alive = ~self._dead[found.rows]
            if int(alive.sum()) >= k or len(found.rows) < fetch or fetch >= len(self._dead):
                return Neighbors(found.rows[alive][:k], found.scores[alive][:k])
            fetch = min(2 * fetch, len(self._dead))

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best live rows of each query, one search each. See ``Searcher.search_batch``."""
        return _one_by_one(self, queries, k, effort)


class DeltaSearcher(_OverBase):
    """A searcher over a bundle with deltas applied: the bundle's own without its dead rows, and the fresh items.

    Fresh items are always all scored, whatever the effort.
    """

    def __init__(self, base: Searcher, state: DeltaState) -> None:
        """Takes the bundle's searcher and what the deltas changed."""
        super().__init__(MaskedSearcher(base, state.dead[: state.base_items]))
        self._first_fresh = state.base_items
        self._fresh = ExactSearcher(state.fresh_vectors, checked=True)
        self._fresh_rows = np.flatnonzero(~state.dead[state.base_items :]).astype(np.int32)

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return self._base.num_items + len(self._fresh_rows)

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live. See ``Searcher.search``."""
        return self._with_fresh(self._base.search(query, k, effort), query, k, None)

    def search_utility(self, query: Vectors, k: int, utility: Utility, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live, by utility. See ``Searcher.search_utility``."""
        found = self._base.search_utility(query, k, utility.between(0, self._first_fresh), effort)
        return self._with_fresh(found, query, k, utility.between(self._first_fresh))

    def _with_fresh(self, found: Neighbors, query: Vectors, k: int, utility: Utility | None) -> Neighbors:
        if len(self._fresh_rows) == 0:
            return found
        fresh = self._fresh.search_rows(query, k, self._fresh_rows, utility)
        rows = np.concatenate([found.rows, fresh.rows + np.int32(self._first_fresh)])
        merged = best_first(rows, np.concatenate([found.scores, fresh.scores]))
        return Neighbors(merged.rows[:k], merged.scores[:k])

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best live rows of each query, one search each. See ``Searcher.search_batch``."""
        return _one_by_one(self, queries, k, effort)


def _one_by_one(searcher: Searcher, queries: Vectors, k: int, effort: Effort | None) -> Neighbors:
    check_k(k)
    checked = check_queries(queries, searcher.dim)
    width = min(k, searcher.num_items)
    rows = np.full((len(checked), width), PAD_ROW, np.int32)
    scores = np.full((len(checked), width), PAD_SCORE, np.float32)
    for line, query in enumerate(checked):
        found = searcher.search(query, max(1, width), effort)
        n = min(width, len(found.rows))
        rows[line, :n], scores[line, :n] = found.rows[:n], found.scores[:n]
    return Neighbors(rows, scores)
