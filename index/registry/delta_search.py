"""Search over a version with changes: its rows that are still live, and the items added since it was built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

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


class MaskedSearcher:
    """A searcher that does not return some of its rows: it fetches more and drops them."""

    def __init__(self, base: Searcher, dead: npt.NDArray[np.bool_]) -> None:
        """Takes the searcher and ``dead [rows] bool``."""
        self._base = base
        self._dead = dead
        self._num_dead = int(dead.sum())

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return int(len(self._dead) - self._num_dead)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._base.dim

    @property
    def full_effort(self) -> Effort | None:
        """The base's."""
        return self._base.full_effort

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live: more are fetched until k live or the base is exhausted."""
        check_k(k)
        if self._num_dead == 0:
            return self._base.search(query, k, effort)
        fetch = k + min(self._num_dead, k)
        while True:
            found = self._base.search(query, fetch, effort)
            alive = ~self._dead[found.rows]
            if int(alive.sum()) >= k or len(found.rows) < fetch or fetch >= len(self._dead):
                return Neighbors(found.rows[alive][:k], found.scores[alive][:k])
            fetch = min(2 * fetch, len(self._dead))

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best living rows of each query, one search each. See ``Searcher.search_batch``."""
        return _one_by_one(self, queries, k, effort)

    def save(self, directory: Path) -> None:
        """What is masked is not saved: the bundle and its log are."""
        raise NotImplementedError(f"{directory}: deltas lie in the registry's log")


class DeltaSearcher:
    """A searcher over a bundle with deltas applied: the bundle's own without its dead rows, and the fresh items."""

    def __init__(self, base: Searcher, state: DeltaState) -> None:
        self._base = MaskedSearcher(base, state.dead[: state.base_items])
        self._first_fresh = np.int32(state.base_items)
        self._fresh = ExactSearcher(state.fresh_vectors, checked=True) if state.num_fresh else None
        self._fresh_rows = np.flatnonzero(~state.dead[state.base_items :]).astype(np.int32)

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return self._base.num_items + len(self._fresh_rows)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._base.dim

    @property
    def full_effort(self) -> Effort | None:
        """The base's: fresh items are always all looked at."""
        return self._base.full_effort

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows that live. See ``Searcher.search``."""
        found = self._base.search(query, k, effort)
        if self._fresh is None or len(self._fresh_rows) == 0:
            return found
        fresh = self._fresh.search_rows(query, k, self._fresh_rows)
        rows = np.concatenate([found.rows, fresh.rows + self._first_fresh])
        merged = best_first(rows, np.concatenate([found.scores, fresh.scores]))
        return Neighbors(merged.rows[:k], merged.scores[:k])

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best living rows of each query, one search each. See ``Searcher.search_batch``."""
        return _one_by_one(self, queries, k, effort)

    def save(self, directory: Path) -> None:
        """A state is not saved: the bundle and its log are."""
        raise NotImplementedError(f"{directory}: deltas lie in the registry's log")


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
