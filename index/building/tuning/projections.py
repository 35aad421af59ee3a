"""Which projections are worth a tree: how deep exact search in few directions must look to find the true neighbors.

Directions fit the users they were learned from better than others: how deep is told by users who were left out.
"""

from __future__ import annotations

import functools

import numpy as np

from index.building.tuning.measurement import Queries
from index.search.projection import Projection
from index.search.searcher import Vectors
from pipelines.contracts.arrays import Int64
from pipelines.contracts.top_k import top_k

# Numbers of directions that are tried, up to half of the dimensions: with more, nothing is saved.
_WIDTHS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# A projection is worth a tree if this many candidates per neighbor, scored again, are enough, and this share of the
# items; and so many of these are tried.
_MOST_PER_NEIGHBOR = 10
_MOST_OF_ITEMS = 0.05
_TRIALS = 3
# The search in few directions may lose these shares of what the whole tree may lose.
_LOSSES = (0.5, 0.25)
# Users whose true neighbors are looked for.
_USERS = 64


class Projections:
    """Projections of a catalogue for its users, learned when they are first asked for."""

    def __init__(self, items: Vectors, queries: Queries, goal: float) -> None:
        """Takes ``[items, dim] float32``, users with their true neighbors, and the recall that a tree must reach."""
        self._items, self._queries, self._goal = items, queries, goal
        self._depths: dict[int, tuple[int, ...]] = {}

    @functools.cached_property
    def directions(self) -> Projection:
        """All directions, the most telling first."""
        return self._learned(self._queries.vectors)

    @functools.cached_property
    def _of_half(self) -> Projection:
        """Learned without the users in the odd places: those it is tried on."""
        return self._learned(self._queries.vectors[::2])

    def _learned(self, asked: Vectors) -> Projection:
        others = self._queries.others
        return Projection.learned(self._items, asked if others is None else np.concatenate([asked, others]))

    def worth_a_trial(self) -> list[int]:
        """Numbers of directions, ascending, of which each might be the fastest."""
        items, dim = self._items.shape
        most = min(_MOST_PER_NEIGHBOR * self._queries.truth.shape[1], _MOST_OF_ITEMS * items)
        worth: list[int] = []
        for width in (width for width in _WIDTHS if 2 * width <= dim):
            if self._looked_for(width)[0] <= most:
                worth.append(width)
            if len(worth) == _TRIALS:
                break
        return worth

    def depths(self, width: int | None) -> tuple[int | None, ...]:
        """How many candidates are to be scored again, several to try; (None,) without a projection."""
        return (None,) if width is None else self._looked_for(width)

    def _looked_for(self, width: int) -> tuple[int, ...]:
        if width not in self._depths:
            places = self._places(self._of_half.first(width))
            shares = [self._goal + (1 - loss) * (1 - self._goal) for loss in _LOSSES]
            last = len(places) - 1
            self._depths[width] = tuple(int(places[min(last, int(share * len(places)))]) + 1 for share in shares)
        return self._depths[width]

    def _places(self, projection: Projection) -> Int64:
        """``[users · neighbors] int64``, ascending: at which place exact search in few directions finds each."""
        seen = projection.of_items(self._items)
        most = min(len(seen), 4 * _MOST_PER_NEIGHBOR * self._queries.truth.shape[1])
        found = []
        tried = slice(min(1, len(self._queries.vectors) - 1), 2 * _USERS, 2)
        for vector, true in zip(self._queries.vectors[tried], self._queries.truth[tried], strict=True):
            scores = seen @ (vector @ projection.queries)
            best = scores[top_k(scores, most)]
            found.append(np.searchsorted(-best, -scores[true]))
        return np.sort(np.concatenate(found)).astype(np.int64)
