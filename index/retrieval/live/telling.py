"""The dimensions of a catalogue's vectors that rank: those in which two items differ.

A user's vector with zeros in all of them gives every item the same score, and says nothing.
"""

from __future__ import annotations

import numpy as np

from index.search.searcher import Vectors
from pipelines.contracts.arrays import Bools

# Rows compared first; then twice as many each time, until every dimension is known to rank.
_FIRST_ROWS = 64


def telling_dimensions(vectors: Vectors) -> Bools | None:
    """``[dim] bool``: where two of ``vectors [items, dim]`` differ. None: everywhere, or there is one item."""
    if len(vectors) == 1:
        return None
    telling = np.zeros(vectors.shape[1], np.bool_)
    start, rows = 0, _FIRST_ROWS
    while start < len(vectors) and not telling.all():
        telling |= (vectors[start : start + rows] != vectors[0]).any(axis=0)
        start, rows = start + rows, 2 * rows
    return None if telling.all() else telling
