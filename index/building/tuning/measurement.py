"""Measures a searcher on users: recall against exact search, and the time of one call.

``recall`` counts exact search's results that were found; ``frontier`` keeps the points that no other beats.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from index.registry.searcher_spec import Measured
from index.search.exact import ExactSearcher
from index.search.searcher import Rows, Searcher, Vectors
from index.settings import TreeSettings

RECALL_AT = 100


@dataclass(frozen=True)
class Queries:
    """Vectors of held-out users, and what exact search finds for them.

    vectors: ``[queries, dim] float32``. truth: ``[queries, k] int32``, k at most 100, each line sorted.
    others: ``[n, dim] float32`` vectors of further users, who tell how users ask but are not measured.
    """

    vectors: Vectors
    truth: Rows
    others: Vectors | None = None

    @classmethod
    def of(cls, vectors: Vectors, items: Vectors, others: Vectors | None = None) -> Queries:
        """Computes the truth by exact search."""
        found = ExactSearcher(items, checked=True).search_batch(vectors, RECALL_AT)
        return cls(vectors, np.sort(found.rows, axis=1), others)


def measure(searcher: Searcher, queries: Queries, tree: TreeSettings | None, build_seconds: float) -> Measured:
    """Asks the queries one at a time, in this thread.

    Args:
        searcher: used as it is.
        queries: with their truth.
        tree: recorded with the result; None is exact search.
        build_seconds: recorded with the result.

    Returns:
        The mean share of true neighbors found, and the median and 99th percentile of the time of one call.
    """
    vectors = queries.vectors
    k = queries.truth.shape[1]
    times = np.empty(len(vectors), np.int64)
    found = np.full((len(vectors), k), -1, np.int32)
    for warm in vectors[:10]:
        searcher.search(warm, k)
    for line, vector in enumerate(vectors):
        start = time.perf_counter_ns()
        neighbors = searcher.search(vector, k)
        times[line] = time.perf_counter_ns() - start
        found[line, : len(neighbors.rows)] = neighbors.rows
    return Measured(
        tree=tree,
        ann_recall_at_100=recall(found, queries.truth),
        p50_us=float(np.percentile(times, 50)) / 1e3,
        p99_us=float(np.percentile(times, 99)) / 1e3,
        build_seconds=build_seconds,
        queries=len(vectors),
    )


def recall(found: Rows, truth: Rows) -> float:
    """Mean over queries of |found ∩ true| / |true|.

    Args:
        found: ``[queries, n] int32``, -1 where fewer were found.
        truth: ``[queries, k] int32``.
    """
    # One key per (query, row) pair makes it a single membership test.
    line = np.arange(len(truth), dtype=np.int64)[:, None] << 32
    hits = np.isin((truth + line).ravel(), (found + line)[found >= 0].ravel())
    return float(hits.mean())


def frontier(points: tuple[Measured, ...]) -> tuple[Measured, ...]:
    """The points that no other beats in both recall and p50, by ascending p50."""
    kept: list[Measured] = []
    for point in sorted(points, key=lambda point: (point.p50_us, -point.ann_recall_at_100)):
        if not kept or point.ann_recall_at_100 > kept[-1].ann_recall_at_100:
            kept.append(point)
    return tuple(kept)
