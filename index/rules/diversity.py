"""Diversity: maximal marginal relevance over the best candidates (Carbonell and Goldstein 1998).

Deviations from the paper: each step chooses among the ``POOL`` best that are left, whatever the number asked for, so
that a longer answer begins with the shorter one; relevance is the score scaled to 0..1 over the ``POOL`` best, so that
a ``diversity`` means the same for any range of scores; similarity is the cosine of the item vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.search.searcher import Scores, Vectors

# Four times the 100 candidates of a usual call.
POOL = 400


def diversified(scores: Scores, vectors: Vectors, k: int, diversity: float) -> npt.NDArray[np.intp]:
    """Returns the places of the chosen, in the order they were chosen.

    Each step takes the item with the largest ``(1 - diversity) · relevance - diversity · similarity`` to the items
    already taken; ties go to the earlier place. At 0 this is the ranking itself.

    Args:
        scores: ``[n] float32``, best first: ``POOL + k``, or all there are.
        vectors: ``[n, dim] float32``.
        k: how many.
        diversity: 0 to 1.
    """
    n = len(scores)
    chosen = np.empty(min(k, n), np.intp)
    if n == 0:
        return chosen
    worth = _relevance(scores) * np.float32(1 - diversity)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    nearest = np.zeros(n, np.float32)
    for step in range(len(chosen)):
        pool = min(POOL + step, n)
        chosen[step] = best = int(np.argmax(worth[:pool] - nearest[:pool]))
        worth[best] = -np.inf
        similarity = (unit @ unit[best]) * np.float32(diversity)
        nearest = similarity if step == 0 else np.maximum(nearest, similarity, out=nearest)
    return chosen


def _relevance(scores: Scores) -> Scores:
    """``[n] float32``: 1 for the best and 0 for the last of the first pool, below 0 after it."""
    low, high = float(scores[:POOL].min()), float(scores[:POOL].max())
    if high <= low:
        return np.ones(len(scores), np.float32)
    relevance: Scores = (scores - np.float32(low)) / np.float32(high - low)
    return relevance
