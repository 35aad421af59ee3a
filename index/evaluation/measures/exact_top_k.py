"""Exact search for very many users: a running threshold lets almost every score be dropped by one comparison.

Reads and writes nothing. The answer is that of ``ExactSearcher``; only the order of the work differs. A block of users
sees the items block by block. Once a user's k best so far are known, the k-th is the least that still matters, and a
block of a million scores leaves a few hundred to be sorted.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from index.search.searcher import PAD_ROW, PAD_SCORE, Neighbors, Scores, Vectors, check_k, check_queries

# Scores of one block: 8 MB, which stays in the cache of a core.
_USERS_OF_BLOCK = 256
_ITEMS_OF_BLOCK = 8192


@dataclass
class _Best:
    """The k best so far of a block of users, and what has come since: users, rows, scores in the order they came."""

    rows: npt.NDArray[np.int32]
    scores: Scores
    least: Scores
    users: list[npt.NDArray[np.intp]]
    new_rows: list[npt.NDArray[np.int32]]
    new_scores: list[Scores]
    waiting: int

    @classmethod
    def empty(cls, users: int, k: int) -> _Best:
        scores = np.full((users, k), PAD_SCORE, np.float32)
        return cls(np.full((users, k), PAD_ROW, np.int32), scores, scores[:, -1].copy(), [], [], [], 0)

    def add(self, scores: Scores, start: int) -> None:
        """Keeps of ``scores [users, items]`` what is above the least that matters."""
        # On the flat mask, nonzero takes a tenth of the time it takes on the matrix.
        found = np.flatnonzero(scores > self.least[:, None])
        if len(found) == 0:
            return
        users, places = np.divmod(found, scores.shape[1])
        self.users.append(users)
        self.new_rows.append((places + start).astype(np.int32))
        self.new_scores.append(scores[users, places])
        self.waiting += len(users)
        if self.waiting >= self.rows.size:
            self.settle()

    def settle(self) -> None:
        """Sorts what came in among the best. What came first has the lower row, so that a stable sort breaks ties."""
        if not self.waiting:
            return
        users, rows, scores = (np.concatenate(part) for part in (self.users, self.new_rows, self.new_scores))
        order = np.argsort(users, kind="stable")
        counts = np.bincount(users, minlength=len(self.rows))
        width = int(counts.max())
        place = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
        k = self.rows.shape[1]
        all_rows = np.full((len(self.rows), k + width), PAD_ROW, np.int32)
        all_scores = np.full(all_rows.shape, PAD_SCORE, np.float32)
        all_rows[:, :k], all_scores[:, :k] = self.rows, self.scores
        all_rows[users[order], k + place], all_scores[users[order], k + place] = rows[order], scores[order]
        best = np.argsort(-all_scores, axis=1, kind="stable")[:, :k]
        self.rows = np.take_along_axis(all_rows, best, axis=1)
        self.scores = np.take_along_axis(all_scores, best, axis=1)
        self.least = self.scores[:, -1].copy()
        self.users, self.new_rows, self.new_scores, self.waiting = [], [], [], 0


def exact_top_k(queries: Vectors, vectors: Vectors, k: int, *, threads: int | None = None) -> Neighbors:
    """Returns the ``min(k, items)`` best rows of each query, equal scores by row.

    Args:
        queries: ``[users, dim] float32``, finite.
        vectors: ``[items, dim] float32``, finite; a memory map is read block by block.
        k: 1 or more.
        threads: None is all cores. Memory beside the answer is about 30 MB a thread at k = 500.

    Raises:
        SchemaError: the queries have another length or hold NaN or infinity, or k is below 1.
    """
    check_k(k)
    checked = check_queries(queries, int(vectors.shape[1]))
    width = min(k, len(vectors))
    rows = np.empty((len(checked), width), np.int32)
    scores = np.empty((len(checked), width), np.float32)

    def work(start: int) -> None:
        part = slice(start, start + _USERS_OF_BLOCK)
        best = _of_block(checked[part], vectors, width)
        rows[part], scores[part] = best.rows, best.scores

    # One thread of BLAS for each of ours: they would otherwise wait for one another at every block.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, len(checked), _USERS_OF_BLOCK)))
    return Neighbors(rows, scores)


def _of_block(queries: Vectors, vectors: Vectors, k: int) -> _Best:
    best = _Best.empty(len(queries), k)
    for start in range(0, len(vectors), _ITEMS_OF_BLOCK):
        best.add(queries @ vectors[start : start + _ITEMS_OF_BLOCK].T, start)
    best.settle()
    return best
