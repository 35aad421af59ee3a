"""The k best rows of many queries, found block by block: exact search of a batch.

Once k results are known, the score of the k-th is the lowest that still matters. One comparison then drops nearly all
scores of a block, and the few that remain are collected until there are enough to be worth sorting.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.search.searcher import PAD_ROW, PAD_SCORE, Neighbors, Rows, Scores, Vectors
from pipelines.contracts.top_k import top_k_batch

# Queries that are scored together in one pass over the items.
QUERIES_AT_ONCE = 256
# Scores of one block: 8 MB of float32, which stays in the cache of a core.
_SCORES_OF_BLOCK = 1 << 21


def best_rows(queries: Vectors, vectors: Vectors, k: int) -> Neighbors:
    """Returns the k best rows of each query, ``[queries, k]``, best first, ties to the lower row.

    Args:
        queries: ``[queries, dim] float32``, finite; at most ``QUERIES_AT_ONCE``, to bound memory.
        vectors: ``[items, dim] float32``; a memory map is read block by block.
        k: 1 to the number of items.
    """
    block = _SCORES_OF_BLOCK // max(1, len(queries))
    best = _RunningBest(queries @ vectors[:block].T, k)
    for start in range(block, len(vectors), block):
        best.add(queries @ vectors[start : start + block].T, start)
    return best.neighbors()


class _RunningBest:
    """The k best so far, and the candidates added since, in row order."""

    def __init__(self, scores: Scores, k: int) -> None:
        """Takes the scores of the first block, ``[queries, rows] float32``."""
        places = top_k_batch(scores, k)
        self._rows = np.full((len(scores), k), PAD_ROW, np.int32)
        self._scores = np.full((len(scores), k), PAD_SCORE, np.float32)
        self._rows[:, : places.shape[1]] = places
        self._scores[:, : places.shape[1]] = np.take_along_axis(scores, places, axis=1)
        self._least = self._scores[:, -1].copy()
        self._forget()

    def _forget(self) -> None:
        self._new_queries: list[npt.NDArray[np.intp]] = []
        self._new_rows: list[Rows] = []
        self._new_scores: list[Scores] = []
        self._waiting = 0

    def add(self, scores: Scores, start: int) -> None:
        """Adds the scores of the rows from ``start`` on, ``[queries, rows] float32``; keeps those that still matter."""
        # On the flat mask, flatnonzero takes a tenth of the time that nonzero takes on the matrix.
        found = np.flatnonzero(scores > self._least[:, None])
        if len(found) == 0:
            return
        queries, places = np.divmod(found, scores.shape[1])
        self._new_queries.append(queries)
        self._new_rows.append((places + start).astype(np.int32))
        self._new_scores.append(scores[queries, places])
        self._waiting += len(queries)
        if self._waiting >= self._rows.size:
            self._settle()

    def neighbors(self) -> Neighbors:
        """The best of everything that was added."""
        self._settle()
        return Neighbors(self._rows, self._scores)

    def _settle(self) -> None:
        """Merges the collected candidates into the best. Their rows are higher, so ties go to the earlier ones."""
        if self._waiting == 0:
            return
        queries, rows = np.concatenate(self._new_queries), np.concatenate(self._new_rows)
        order = np.argsort(queries, kind="stable")
        counts = np.bincount(queries, minlength=len(self._rows))
        column = np.arange(len(queries)) - np.repeat(np.cumsum(counts) - counts, counts)
        k = self._rows.shape[1]
        all_rows = np.full((len(self._rows), k + int(counts.max())), PAD_ROW, np.int32)
        all_scores = np.full(all_rows.shape, PAD_SCORE, np.float32)
        all_rows[:, :k], all_scores[:, :k] = self._rows, self._scores
        all_rows[queries[order], k + column] = rows[order]
        all_scores[queries[order], k + column] = np.concatenate(self._new_scores)[order]
        best = top_k_batch(all_scores, k)
        self._rows = np.take_along_axis(all_rows, best, axis=1)
        self._scores = np.take_along_axis(all_scores, best, axis=1)
        self._least = self._scores[:, -1].copy()
        self._forget()
