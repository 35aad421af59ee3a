"""Exact search for very many users: the blocks of ``ExactSearcher.search_batch``, in several threads."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from index.search.exact import ExactSearcher
from index.search.running_best import QUERIES_AT_ONCE
from index.search.searcher import Neighbors, Vectors, check_k, check_queries


def exact_top_k(queries: Vectors, vectors: Vectors, k: int, *, threads: int | None = None) -> Neighbors:
    """Returns the ``min(k, items)`` best rows of each query; with equal scores, the lower row first.

    Args:
        queries: ``[users, dim] float32``, finite.
        vectors: ``[items, dim] float32``, finite; a memory map is read block by block.
        k: 1 or more.
        threads: None uses all cores. Apart from the answer, a thread takes about 30 MB at k = 500.

    Raises:
        SchemaError: the queries have another length or hold NaN or infinity, or k is below 1.
    """
    check_k(k)
    searcher = ExactSearcher(vectors, checked=True)
    checked = check_queries(queries, searcher.dim)
    width = min(k, searcher.num_items)
    rows = np.empty((len(checked), width), np.int32)
    scores = np.empty((len(checked), width), np.float32)

    def work(start: int) -> None:
        part = slice(start, start + QUERIES_AT_ONCE)
        found = searcher.search_batch(checked[part], width)
        rows[part], scores[part] = found.rows, found.scores

    # One BLAS thread per thread of ours: otherwise they would wait for each other at every block.
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        list(pool.map(work, range(0, len(checked), QUERIES_AT_ONCE)))
    return Neighbors(rows, scores)
