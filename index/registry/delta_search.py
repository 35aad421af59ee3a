"""Search over a version with changes: its rows that are still live, and the items added since it was built."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from index.search.exact import ExactSearcher, scores_of
from index.search.searcher import (
    PAD_ROW,
    PAD_SCORE,
    Effort,
    Neighbors,
    Searcher,
    Vectors,
    check_k,
    check_queries,
)
from index.search.ties import TieOrder
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
        """Returns the best live rows of each query; those with many dead neighbors are searched one by one."""
        check_k(k)
        if self._num_dead == 0:
            return self._base.search_batch(queries, k, effort)
        checked = check_queries(queries, self.dim)
        width = min(k, self.num_items)
        found = self._base.search_batch(checked, k + min(self._num_dead, k), effort)
        alive = (found.rows >= 0) & ~self._dead[found.rows]
        order = np.argsort(~alive, axis=1, kind="stable")[:, :width]
        rows = np.where(alive, found.rows, PAD_ROW)
        rows = np.take_along_axis(rows, order, axis=1).astype(np.int32)
        scores = np.where(rows < 0, PAD_SCORE, np.take_along_axis(found.scores, order, axis=1)).astype(np.float32)
        for line in np.flatnonzero((rows < 0).any(axis=1)):
            again = self.search(checked[line], width, effort)
            n = len(again.rows)
            rows[line, :n], scores[line, :n] = again.rows, again.scores
        return Neighbors(rows, scores)


class DeltaSearcher(_OverBase):
    """A searcher over a bundle with changes: the bundle's own without its dead rows, and the fresh items.

    Fresh items are always all scored, whatever the effort.
    """

    def __init__(self, base: Searcher, fresh_vectors: Vectors, dead: Bools, ties: TieOrder | None) -> None:
        """Makes one.

        Args:
            base: the bundle's searcher.
            fresh_vectors: ``[fresh, dim] float32``.
            dead: ``[items + fresh] bool``.
            ties: which of equals comes first; None is the lower row.
        """
        self._first_fresh = len(dead) - len(fresh_vectors)
        super().__init__(MaskedSearcher(base, dead[: self._first_fresh]))
        self._fresh = ExactSearcher(fresh_vectors, checked=True)
        self._fresh_rows = np.flatnonzero(~dead[self._first_fresh :]).astype(np.int32)
        self._ties = ties

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
        return self._with_fresh(found, query, k, utility)

    def _with_fresh(self, found: Neighbors, query: Vectors, k: int, utility: Utility | None) -> Neighbors:
        if len(self._fresh_rows) == 0:
            return found
        rows = self._fresh_rows + np.int32(self._first_fresh)
        scores = scores_of(self._fresh.vectors, self._fresh_rows, np.asarray(query, np.float32))
        scores = scores if utility is None else utility.of(scores, rows)
        fresh = Neighbors.best(scores, k, rows, self._ties)
        rows = np.concatenate([found.rows, fresh.rows])
        return Neighbors.best(np.concatenate([found.scores, fresh.scores]), k, rows, self._ties)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best live rows of each query. See ``Searcher.search_batch``."""
        check_k(k)
        checked = check_queries(queries, self.dim)
        found = self._base.search_batch(checked, k, effort)
        if len(self._fresh_rows) == 0:
            return found
        width = min(k, self.num_items)
        rows = np.full((len(checked), width), PAD_ROW, np.int32)
        scores = np.full((len(checked), width), PAD_SCORE, np.float32)
        for line, query in enumerate(checked):
            n = int(np.count_nonzero(found.rows[line] >= 0))
            own = Neighbors(found.rows[line, :n], found.scores[line, :n])
            both = self._with_fresh(own, query, width, None)
            n = len(both.rows)
            rows[line, :n], scores[line, :n] = both.rows, both.scores
        return Neighbors(rows, scores)
