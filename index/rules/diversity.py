"""Diversity: maximal marginal relevance over the best candidates (Carbonell and Goldstein 1998).

Deviation from the paper: relevance is the score scaled to 0..1 over the pool, so that a ``diversity`` means the same
for any range of scores; similarity is the cosine of the item vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.search.searcher import Scores, Vectors

# The pool is this many times k, up to a limit: a 1,000 × 1,000 similarity matrix takes a few milliseconds.
POOL_FACTOR = 4
MAX_POOL = 1000


def pool_size(k: int) -> int:
    """Number of best candidates to choose from; never below k."""
    return max(k, min(POOL_FACTOR * k, MAX_POOL))


def diversified(scores: Scores, vectors: Vectors, k: int, diversity: float) -> npt.NDArray[np.intp]:
    """Returns the places of the chosen, in the order they were chosen.

    Each step takes the item with the largest ``(1 - diversity) · relevance - diversity · similarity`` to the items
    already taken; ties go to the better score. At 0 this is the ranking itself.

    Args:
        scores: ``[n] float32``, best first.
        vectors: ``[n, dim] float32``.
        k: how many.
        diversity: 0 to 1.
    """
    n = len(scores)
    k = min(k, n)
    if n == 0:
        return np.zeros(0, np.intp)
    spread = float(scores[0] - scores[-1])
    relevance = np.ones(n, np.float32) if spread <= 0 else (scores - scores[-1]) / np.float32(spread)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    similarity = (unit @ unit.T) * np.float32(diversity)
    worth = relevance * np.float32(1 - diversity)
    nearest = np.full(n, -np.inf, np.float32)
    chosen = np.empty(k, np.intp)
    best = 0
    for step in range(k):
        chosen[step] = best
        worth[best] = -np.inf
        np.maximum(nearest, similarity[best], out=nearest)
        best = int(np.argmax(worth - nearest))
    return chosen
