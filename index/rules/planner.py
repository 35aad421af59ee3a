"""The planner: the nearest m of the eligible rows, by whichever way is fast for this rule and this user.

Three ways, chosen by counts that are known before anything is scored:

- exact: few rows are eligible: score all of them.
- leaves: score the eligible rows of the leaves nearest to the user, until enough rows were seen.
- fetch: most rows near the user are eligible: ask the searcher for more than m, and drop what is not.

What a way finds is never wrong, only incomplete; where it finds fewer than m, the next thorough way follows, and at
last all eligible rows are scored. So fewer than m come back only if there are no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.rules.eligible import Eligible
from index.rules.plan import Method
from index.search.exact import scores_of
from index.search.leaves import Leaves
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Neighbors, Rows, Scores, Searcher, Vectors
from index.search.value_tree import ValueSearcher

# Up to this many numbers (rows × dim) all eligible rows are scored: 8 MB of vectors, about half a millisecond.
_EXACT_NUMBERS = 1 << 21
# Rows scored in the leaves way: at least this many, and this many for each neighbor asked for.
_LEAF_ROWS = 8192
_LEAF_ROWS_PER_NEIGHBOR = 40
# Least number of leaves, as a multiple of what the searcher was tuned to: a filter spreads the best over more of them.
_LEAF_FACTOR = 2.0
# The fetch way asks for m / (share of eligible rows in the nearest leaves) times this.
_FETCH_MARGIN = 1.6
_MAX_FETCH = 4096
# Below this share of eligible rows near the user the fetch way is not tried.
_MIN_LOCAL_SHARE = 0.2
# A search for more than one in so many rows scores all of them.
_WHOLE_SHARE = 20
# Neighbors that a searcher's own effort is tuned for.
_TUNED_FOR = 100


@dataclass(frozen=True, slots=True)
class Nearest:
    """What was found: best first, at most m; ``exhausted`` if no other eligible row exists."""

    neighbors: Neighbors
    method: Method
    scored: int
    exhausted: bool


@dataclass(frozen=True)
class Planner:
    """Plans over one version. Immutable.

    vectors: ``[items, dim] float32``. leaves: None where the searcher has no tree. log_values: ``[items] float32``,
    None where the version was built without a value; leaf_log_values: ``[leaves] float32`` their means.
    """

    searcher: Searcher
    vectors: Vectors
    leaves: Leaves | None
    log_values: Scores | None
    leaf_log_values: Scores | None

    @classmethod
    def of(cls, searcher: Searcher, vectors: Vectors, log_values: Scores | None) -> Planner:
        """Makes a planner; with a tree, a leaf's middle is the mean of its rows."""
        tree = searcher.inner if isinstance(searcher, ValueSearcher) else searcher
        leaves = Leaves.of(tree, vectors)
        means = None if leaves is None or log_values is None else leaves.means(log_values)
        return cls(searcher, vectors, leaves, log_values, means)

    def nearest(self, query: Vectors, m: int, eligible: Eligible | None, weight: float = 0.0) -> Nearest:
        """Returns the m best rows by ``query · vector + weight · log value``.

        Args:
            query: ``[dim] float32``, checked.
            m: 1 or more.
            eligible: None is all rows.
            weight: 0 where the version has no value.
        """
        if eligible is None:
            return self._search(query, m, weight)
        if eligible.count == 0:
            return Nearest(Neighbors(np.zeros(0, np.int32), np.zeros(0, np.float32)), "empty", 0, True)
        dim = self.vectors.shape[1]
        if eligible.count * dim <= _EXACT_NUMBERS or m >= eligible.count or self.leaves is None:
            return self._exact(query, m, eligible, weight)
        chosen = self._choose_leaves(query, m, eligible, weight)
        if chosen.local_share >= _MIN_LOCAL_SHARE:
            fetch = int(m / chosen.local_share * _FETCH_MARGIN) + 32
            if fetch <= _MAX_FETCH:
                found = self._fetch(query, m, fetch, eligible, weight)
                if len(found.neighbors.rows) == m:
                    return found
        return self._score_leaves(query, m, eligible, weight, chosen.leaves)

    def _search(self, query: Vectors, m: int, weight: float) -> Nearest:
        n = self.searcher.num_items
        if (m * _WHOLE_SHARE >= n and self.leaves is not None) or (weight != 0.0 and not self._has_utility):
            scores = self.vectors @ query
            if weight != 0.0:
                scores += np.float32(weight) * self._values()
            return Nearest(Neighbors.best(scores, m), "exact", n, m >= n)
        if weight == 0.0:
            found = self.searcher.search(query, m, self._deeper(m))
        else:
            assert isinstance(self.searcher, ValueSearcher)
            found = self.searcher.search_utility(query, m, weight, self._deeper(m))
        if len(found.rows) < min(m, n):
            return self._search(query, n, weight)
        return Nearest(found, "search", len(found.rows), m >= n)

    @property
    def _has_utility(self) -> bool:
        return isinstance(self.searcher, ValueSearcher)

    def _deeper(self, m: int) -> Effort | None:
        """The effort for many neighbors: what is tuned for 100 looks at too few leaves for thousands."""
        if m <= _TUNED_FOR or self.leaves is None:
            return None
        leaves = math.ceil(self._tuned_leaves() * math.sqrt(m / _TUNED_FOR))
        return Effort(min(leaves, self.leaves.number), 4 * m)

    def _exact(self, query: Vectors, m: int, eligible: Eligible, weight: float) -> Nearest:
        if eligible.vectors is None and eligible.count * 4 > len(self.vectors):
            # Most rows: one pass over the matrix as it lies is faster than gathering.
            scores = self.vectors @ query
            if weight != 0.0:
                scores += np.float32(weight) * self._values()
            found = Neighbors.best(np.where(eligible.mask, scores, np.float32(-np.inf)), min(m, eligible.count))
            return Nearest(found, "exact", eligible.count, m >= eligible.count)
        scores = self._scores(query, eligible.rows, eligible.vectors, eligible.log_values, weight)
        return Nearest(Neighbors.best(scores, m, eligible.rows), "exact", eligible.count, m >= eligible.count)

    def _values(self) -> Scores:
        assert self.log_values is not None
        return self.log_values

    def _scores(
        self, query: Vectors, rows: Rows, vectors: Vectors | None, log_values: Scores | None, weight: float
    ) -> Scores:
        scores: Scores = scores_of(self.vectors, rows, query) if vectors is None else vectors @ query
        if weight != 0.0:
            scores = scores + np.float32(weight) * (self._values()[rows] if log_values is None else log_values)
        return scores

    def _choose_leaves(self, query: Vectors, m: int, eligible: Eligible, weight: float) -> _Chosen:
        """The nearest leaves with eligible rows, until they hold enough of them."""
        assert self.leaves is not None
        assert eligible.offsets is not None
        near = self.leaves.centroids @ query
        if weight != 0.0:
            assert self.leaf_log_values is not None
            near = near + np.float32(weight) * self.leaf_log_values
        counts = np.diff(eligible.offsets)
        order = np.argsort(-near)
        tuned = self._tuned_leaves()
        nearest = order[: 2 * tuned]
        local_share = float(counts[nearest].sum() / max(1, self.leaves.sizes[nearest].sum()))
        order = order[counts[order] > 0]
        running = np.cumsum(counts[order])
        wanted = max(_LEAF_ROWS, _LEAF_ROWS_PER_NEIGHBOR * m)
        enough = int(np.searchsorted(running, wanted)) + 1
        return _Chosen(order[: max(enough, int(_LEAF_FACTOR * tuned))], local_share)

    def _tuned_leaves(self) -> int:
        inner = self.searcher.inner if isinstance(self.searcher, ValueSearcher) else self.searcher
        return inner.effort.leaves if isinstance(inner, ScannSearcher) else 1 + self._number_of_leaves() // 20

    def _number_of_leaves(self) -> int:
        return 0 if self.leaves is None else self.leaves.number

    def _fetch(self, query: Vectors, m: int, fetch: int, eligible: Eligible, weight: float) -> Nearest:
        effort = Effort(int(_LEAF_FACTOR * self._tuned_leaves()), 4 * fetch)
        if weight != 0.0 and isinstance(self.searcher, ValueSearcher):
            found = self.searcher.search_utility(query, fetch, weight, effort)
        elif weight != 0.0:
            return self._exact(query, m, eligible, weight)
        else:
            found = self.searcher.search(query, fetch, effort)
        kept = eligible.mask[found.rows]
        rows, scores = found.rows[kept][:m], found.scores[kept][:m]
        return Nearest(Neighbors(rows, scores), "fetch", fetch, False)

    def _score_leaves(
        self, query: Vectors, m: int, eligible: Eligible, weight: float, leaves: npt.NDArray[np.intp]
    ) -> Nearest:
        assert eligible.offsets is not None
        leaves = np.sort(leaves)
        starts, ends = eligible.offsets[leaves], eligible.offsets[leaves + 1]
        rows = np.concatenate([eligible.rows[start:end] for start, end in zip(starts, ends, strict=True)])
        if eligible.vectors is None:
            scores = self._scores(query, rows, None, None, weight)
        else:
            scores = np.empty(len(rows), np.float32)
            place = 0
            for start, end in _merged(starts, ends):
                np.dot(eligible.vectors[start:end], query, out=scores[place : place + end - start])
                place += end - start
            if weight != 0.0:
                scores += np.float32(weight) * self._values()[rows]
        exhausted = m >= len(rows) == eligible.count
        if len(rows) < m:
            return self._exact(query, m, eligible, weight)
        return Nearest(Neighbors.best(scores, m, rows), "leaves", len(rows), exhausted)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Leaves to score, and the share of eligible rows among all rows of the nearest leaves."""

    leaves: npt.NDArray[np.intp]
    local_share: float


def _merged(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[list[int]]:
    """Ranges that touch made one: fewer and longer products."""
    merged: list[list[int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged
