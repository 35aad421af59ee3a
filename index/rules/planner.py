"""The planner: finds the m best of the eligible rows, by whichever method is fast for this rule and this user.

Three methods, chosen by counts that are known before anything is scored:

- exact: few rows are eligible: score all of them.
- leaves: score the eligible rows of the leaves nearest to the user, until enough rows were scored.
- fetch: most rows near the user are eligible: ask the searcher for more than m, and drop those that are not.

The rows found are always eligible, but may be too few. Then the next more thorough method follows, and in the end all
eligible rows are scored. So fewer than m are returned only if there are no more.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.rules.attributes import Mask
from index.rules.eligible import Eligible
from index.rules.plan import Method
from index.search.exact import scores_of
from index.search.leaves import Leaves
from index.search.searcher import Effort, Neighbors, Scores, Searcher, Vectors
from index.search.ties import TieOrder
from index.search.utility import Utility

# Up to this many numbers (rows × dim) all eligible rows are scored: 8 MB of vectors, about half a millisecond.
_EXACT_NUMBERS = 1 << 21
# Rows scored by the leaves method: at least this many, and this many per neighbor asked for.
_LEAF_ROWS = 8192
_LEAF_ROWS_PER_NEIGHBOR = 40
# Minimum number of leaves, as a multiple of the searcher's tuned number: a filter spreads the best over more leaves.
_LEAF_FACTOR = 2.0
# The fetch method asks for m / (share of eligible rows in the nearest leaves) times this.
_FETCH_MARGIN = 1.6
_MAX_FETCH = 4096
# Below this share of eligible rows near the user, the fetch method is not tried.
_MIN_LOCAL_SHARE = 0.2
# A search for more than one in 20 rows scores all of them.
_WHOLE_SHARE = 20
# Number of neighbors that a searcher's own effort is tuned for.
TUNED_FOR = 100


@dataclass(frozen=True, slots=True)
class Nearest:
    """The rows found: best first, at most m; ``exhausted`` if there is no other eligible row."""

    neighbors: Neighbors
    method: Method
    scored: int
    exhausted: bool


@dataclass(frozen=True)
class Planner:
    """Plans over one version. Immutable.

    vectors: ``[items, dim] float32``. leaves: None where the searcher has no tree. log_values: ``[items] float32``,
    None if the version was built without a value; leaf_log_values: ``[leaves] float32`` their means. alive: ``[items]
    bool``, the rows that the searcher finds; None is all. ties: which of equals comes first; None is the lower row.
    """

    searcher: Searcher
    vectors: Vectors
    leaves: Leaves | None
    log_values: Scores | None
    leaf_log_values: Scores | None
    alive: Mask | None = None
    ties: TieOrder | None = None

    @classmethod
    def of(cls, searcher: Searcher, vectors: Vectors, log_values: Scores | None) -> Planner:
        """Makes a planner; with a tree, a leaf's centroid is the mean of its rows."""
        leaves = Leaves.of(searcher, vectors)
        means = None if leaves is None or log_values is None else leaves.means(log_values)
        return cls(searcher, vectors, leaves, log_values, means)

    def utility(self, weight: float) -> Utility | None:
        """What a call with this weight ranks by; None where that is the score alone."""
        if weight == 0.0:
            return None
        assert self.log_values is not None
        return Utility(weight, self.log_values)

    def nearest(self, query: Vectors, m: int, eligible: Eligible | None, utility: Utility | None = None) -> Nearest:
        """Returns the m best rows by utility.

        Args:
            query: ``[dim] float32``, checked.
            m: 1 or more.
            eligible: rows that live; None is all of these. One change of an ad alters no plan.
            utility: of this version; None ranks by score.
        """
        if eligible is None:
            return self._search(query, m, utility)
        if eligible.count == 0:
            return Nearest(Neighbors(np.zeros(0, np.int32), np.zeros(0, np.float32)), "empty", 0, True)
        dim = self.vectors.shape[1]
        if eligible.count * dim <= _EXACT_NUMBERS or m >= eligible.count or self.leaves is None:
            return self._exact(query, m, eligible, utility)
        chosen = self._choose_leaves(query, m, eligible, utility)
        if chosen.local_share >= _MIN_LOCAL_SHARE:
            fetch = int(m / chosen.local_share * _FETCH_MARGIN) + 32
            if fetch <= _MAX_FETCH:
                found = self._fetch(query, m, fetch, eligible, utility)
                if len(found.neighbors.rows) == m:
                    return found
        return self._score_leaves(query, m, eligible, utility, chosen.leaves)

    def _search(self, query: Vectors, m: int, utility: Utility | None) -> Nearest:
        n = self.searcher.num_items
        if not self.scores_all(m, utility):
            found = self._ask(query, m, utility, self.effort_for(m))
            if len(found.rows) == min(m, n):
                return Nearest(found, "search", len(found.rows), m >= n)
        return Nearest(self._best_of_all(query, m, self.alive, utility), "exact", n, m >= n)

    def scores_all(self, m: int, utility: Utility | None = None) -> bool:
        """Whether m of all rows are found by scoring each of them in place of asking the searcher."""
        if utility is not None and not self.searcher.indexes_value:
            return True
        return self.leaves is not None and m > TUNED_FOR and m * _WHOLE_SHARE >= self.searcher.num_items

    def nests(self, eligible: Eligible | None, utility: Utility | None) -> bool:
        """Whether the answer for a smaller m is the beginning of the answer for a larger one: all rows are scored."""
        if eligible is not None:
            return self.leaves is None or eligible.count * self.vectors.shape[1] <= _EXACT_NUMBERS
        return self.searcher.effort is None or (utility is not None and not self.searcher.indexes_value)

    def _ask(self, query: Vectors, m: int, utility: Utility | None, effort: Effort | None) -> Neighbors:
        if utility is None:
            return self.searcher.search(query, m, effort)
        return self.searcher.search_utility(query, m, utility, effort)

    def _best_of_all(self, query: Vectors, m: int, mask: Mask | None, utility: Utility | None) -> Neighbors:
        """The m best rows where ``mask [items] bool`` is true, by one pass over the whole matrix."""
        scores: Scores = self.vectors @ query
        utilities = scores if utility is None else utility.of(scores)
        if mask is None:
            return Neighbors.best(utilities, m, ties=self.ties)
        found = Neighbors.best(np.where(mask, utilities, np.float32(-np.inf)), m, ties=self.ties)
        passing = mask[found.rows]
        return Neighbors(found.rows[passing], found.scores[passing])

    def effort_for(self, m: int) -> Effort | None:
        """The effort for many neighbors: one tuned for 100 searches too few leaves for thousands."""
        tuned = self.searcher.effort
        if m <= TUNED_FOR or self.leaves is None or tuned is None:
            return None
        leaves = math.ceil(tuned.leaves * math.sqrt(m / TUNED_FOR))
        return Effort(min(leaves, self.leaves.number), 4 * m)

    def _exact(self, query: Vectors, m: int, eligible: Eligible, utility: Utility | None) -> Nearest:
        if eligible.vectors is None and eligible.count * 4 > len(self.vectors):
            # Most rows: one pass over the whole matrix is faster than gathering.
            found = self._best_of_all(query, m, eligible.mask, utility)
        else:
            utilities = self._eligible_utilities(query, eligible, utility)
            found = Neighbors.best(utilities, m, eligible.rows, self.ties)
        return Nearest(found, "exact", eligible.count, m >= eligible.count)

    def _eligible_utilities(self, query: Vectors, eligible: Eligible, utility: Utility | None) -> Scores:
        """``[n] float32``, in the order of the eligible rows."""
        gathered = eligible.vectors
        scores: Scores = scores_of(self.vectors, eligible.rows, query) if gathered is None else gathered @ query
        if utility is None:
            return scores
        if eligible.log_values is None:
            return utility.of(scores, eligible.rows)
        return Utility(utility.weight, eligible.log_values).of(scores)

    def _choose_leaves(self, query: Vectors, m: int, eligible: Eligible, utility: Utility | None) -> _Chosen:
        """The nearest leaves with eligible rows, until they hold enough of them."""
        assert self.leaves is not None
        assert eligible.offsets is not None
        near = self.leaves.centroids @ query
        if utility is not None:
            assert self.leaf_log_values is not None
            near = Utility(utility.weight, self.leaf_log_values).of(near)
        counts = np.diff(eligible.offsets)
        order = np.argsort(-near)
        tuned = self.searcher.leaves_searched
        nearest = order[: 2 * tuned]
        local_share = float(counts[nearest].sum() / max(1, self.leaves.sizes[nearest].sum()))
        order = order[counts[order] > 0]
        running = np.cumsum(counts[order])
        wanted = max(_LEAF_ROWS, _LEAF_ROWS_PER_NEIGHBOR * m)
        enough = int(np.searchsorted(running, wanted)) + 1
        return _Chosen(order[: max(enough, int(_LEAF_FACTOR * tuned))], local_share)

    def _fetch(self, query: Vectors, m: int, fetch: int, eligible: Eligible, utility: Utility | None) -> Nearest:
        tuned = self.searcher.effort
        effort = None if tuned is None else Effort(int(_LEAF_FACTOR * tuned.leaves), 4 * fetch)
        found = self._ask(query, fetch, utility, effort)
        kept = eligible.mask[found.rows]
        rows, scores = found.rows[kept][:m], found.scores[kept][:m]
        return Nearest(Neighbors(rows, scores), "fetch", fetch, False)

    def _score_leaves(
        self, query: Vectors, m: int, eligible: Eligible, utility: Utility | None, leaves: npt.NDArray[np.intp]
    ) -> Nearest:
        assert eligible.offsets is not None
        leaves = np.sort(leaves)
        starts, ends = eligible.offsets[leaves], eligible.offsets[leaves + 1]
        rows = np.concatenate([eligible.rows[start:end] for start, end in zip(starts, ends, strict=True)])
        if len(rows) < m:
            return self._exact(query, m, eligible, utility)
        if eligible.vectors is None:
            scores = scores_of(self.vectors, rows, query)
        else:
            scores = np.empty(len(rows), np.float32)
            place = 0
            for start, end in _merged(starts, ends):
                np.dot(eligible.vectors[start:end], query, out=scores[place : place + end - start])
                place += end - start
        utilities = scores if utility is None else utility.of(scores, rows)
        exhausted = m >= len(rows) == eligible.count
        return Nearest(Neighbors.best(utilities, m, rows, self.ties), "leaves", len(rows), exhausted)


@dataclass(frozen=True, slots=True)
class _Chosen:
    """Leaves to score, and the share of eligible rows among all rows of the nearest leaves."""

    leaves: npt.NDArray[np.intp]
    local_share: float


def _merged(starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> list[list[int]]:
    """Adjacent ranges merged: fewer and longer products."""
    merged: list[list[int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if merged and merged[-1][1] == start:
            merged[-1][1] = end
        else:
            merged.append([start, end])
    return merged
