"""The tree's leaves as the planner sees them: which rows are in which leaf, and each leaf's centroid.

The centroids are the means of the rows' own vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows, Scores, Searcher, Vectors


@dataclass(frozen=True)
class Leaves:
    """Rows by leaf.

    rows: ``[items] int32`` all rows, leaf by leaf, ascending within a leaf. offsets: ``[leaves + 1] int64`` into it.
    centroids: ``[leaves, dim] float32``. leaf_of_row: ``[items] int32`` the first assignment.
    """

    rows: Rows
    offsets: npt.NDArray[np.int64]
    centroids: Vectors
    leaf_of_row: npt.NDArray[np.int32]

    @classmethod
    def of(cls, searcher: Searcher, vectors: Vectors) -> Leaves | None:
        """The leaves of a loaded searcher; None if it has no tree (exact search)."""
        leaf_of_row = searcher.leaf_of_row
        if leaf_of_row is None or len(leaf_of_row) != len(vectors):
            return None
        number = int(leaf_of_row.max()) + 1
        rows = np.argsort(leaf_of_row, kind="stable").astype(np.int32)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(leaf_of_row, minlength=number))]).astype(np.int64)
        centroids = np.zeros((number, vectors.shape[1]), np.float32)
        # One leaf at a time: no copy of all vectors, and other threads can run in between.
        for leaf in range(number):
            members = rows[offsets[leaf] : offsets[leaf + 1]]
            if len(members):
                centroids[leaf] = vectors[members].mean(axis=0)
        return cls(rows, offsets, centroids, leaf_of_row)

    @property
    def number(self) -> int:
        """How many leaves there are."""
        return len(self.centroids)

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """``[leaves] int64`` rows of each."""
        return np.diff(self.offsets)

    def means(self, values: Scores) -> Scores:
        """``[leaves] float32`` the mean of ``values [items]`` over each leaf's rows; 0 for an empty leaf."""
        running = np.concatenate([[0.0], np.cumsum(values[self.rows], dtype=np.float64)])
        sums = running[self.offsets[1:]] - running[self.offsets[:-1]]
        means: Scores = (sums / np.maximum(self.sizes, 1)).astype(np.float32)
        return means
