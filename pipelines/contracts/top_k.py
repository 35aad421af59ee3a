"""The k best scores, with one rule for ties: the higher score first, and with equal scores the lower row.

``top_k`` ranks the scores of one query, ``top_k_batch`` those of many. Both are exact and return places in the
scores without padding: if there are fewer than k scores, all are returned.
"""

from __future__ import annotations

import numpy as np

from pipelines.contracts.arrays import Float32, Int32, Int64


def top_k(scores: Float32, k: int, rows: Int32 | Int64 | None = None) -> Int32:
    """Returns ``[min(k, n)] int32`` places of the k largest of ``[n] float32`` scores, best first.

    Args:
        scores: no NaN.
        k: 1 or more.
        rows: ``[n]`` integers by which ties are broken; None where the scores are in row order.
    """
    n = len(scores)
    places = None
    if k < n:
        threshold = np.partition(scores, n - k)[n - k]
        places = np.flatnonzero(scores >= threshold)
        if rows is None and len(places) > k:
            # Only the first of the scores that equal the last one fit.
            surplus = np.flatnonzero(scores[places] == threshold)[k - len(places) :]
            places = np.delete(places, surplus)
        scores = scores[places]
    if rows is None:
        order = np.argsort(-scores, kind="stable")
    else:
        order = np.lexsort((rows if places is None else rows[places], -scores))[:k]
    return (order if places is None else places[order]).astype(np.int32)


def top_k_batch(scores: Float32, k: int) -> Int32:
    """Returns ``[batch, min(k, n)] int32``: ``top_k`` of each line of ``[batch, n] float32``."""
    n = scores.shape[1]
    if k >= n:
        return np.argsort(-scores, axis=1, kind="stable").astype(np.int32)
    places = np.sort(np.argpartition(scores, n - k, axis=1)[:, n - k :], axis=1)
    chosen = np.take_along_axis(scores, places, axis=1)
    order = np.argsort(-chosen, axis=1, kind="stable")
    best = np.take_along_axis(places, order, axis=1).astype(np.int32)
    # A partition takes any of the scores that equal the last one.
    threshold = chosen.min(axis=1, keepdims=True)
    for line in np.flatnonzero(np.count_nonzero(scores >= threshold, axis=1) > k):
        best[line] = top_k(scores[line], k)
    return best
