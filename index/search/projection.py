"""Query-aware projection: the few directions in which users tell items apart, for the tree to work in.

Reads and writes ``projection.npy`` next to a tree's assets. A tower's vectors may have hundreds of dimensions of which
a few hold nearly all of the scores' differences; codes that treat all dimensions alike spend most of their bits on the
rest. So the tree is built on ``r`` of them, and what it finds is scored again with the full vectors.

With C = E[q qᵀ] over users' vectors q, an item's score qᵀv is (C^-½ q)ᵀ (C^½ v). The whitened queries have the same
spread in every direction, so the best r directions, by the mean squared error of the score, are the first
eigenvectors W of Σ (C^½ v)(C^½ v)ᵀ. An item becomes Wᵀ C^½ v, a query Wᵀ C^-½ q.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.search.searcher import Vectors
from pipelines.contracts.arrays import Float64

PROJECTION_FILE = "projection.npy"
# Share of the mean spread that is added to C in every direction: few users say little of rare directions.
_RIDGE = 1e-3
_BLOCK_ROWS = 1 << 16


@dataclass(frozen=True)
class Projection:
    """Two linear maps whose images have about the same dot products as the vectors themselves.

    items, queries: ``[dim, r] float32``, r at most dim.
    """

    items: Vectors
    queries: Vectors

    @classmethod
    def learned(cls, items: Vectors, queries: Vectors) -> Projection:
        """All directions, the most telling first: cut it with ``first``.

        Args:
            items: ``[items, dim] float32``.
            queries: ``[queries, dim] float32`` of users; none count as alike in all directions.
        """
        dim = items.shape[1]
        spread = np.zeros((dim, dim)) if len(queries) == 0 else _second_moment(queries) / len(queries)
        mean = np.trace(spread) / dim
        # Vectors of length 0 alone say nothing of directions: the scale does not matter then.
        values, vectors = np.linalg.eigh(spread + (_RIDGE * mean if mean > 0 else 1.0) * np.eye(dim))
        root = np.sqrt(np.maximum(values, np.finfo(np.float64).tiny))
        whitening, unwhitening = (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
        _, directions = np.linalg.eigh(whitening @ _second_moment(items) @ whitening)
        telling = directions[:, ::-1]
        return cls(
            np.ascontiguousarray(whitening @ telling, np.float32),
            np.ascontiguousarray(unwhitening @ telling, np.float32),
        )

    @property
    def dim(self) -> int:
        """Length of a projected vector."""
        return int(self.items.shape[1])

    def first(self, dim: int) -> Projection:
        """The same with its first ``dim`` directions alone."""
        return Projection(np.ascontiguousarray(self.items[:, :dim]), np.ascontiguousarray(self.queries[:, :dim]))

    def with_one_more(self) -> Projection:
        """For vectors with one more number, which stays as it is."""
        return Projection(_with_one_more(self.items), _with_one_more(self.queries))

    def of_items(self, vectors: Vectors) -> Vectors:
        """``[items, r] float32`` of ``[items, dim]``, a block at a time."""
        projected = np.empty((len(vectors), self.dim), np.float32)
        for start in range(0, len(vectors), _BLOCK_ROWS):
            np.matmul(vectors[start : start + _BLOCK_ROWS], self.items, out=projected[start : start + _BLOCK_ROWS])
        return projected

    def save(self, directory: Path) -> None:
        """Writes ``projection.npy``, ``[2, dim, r] float32``."""
        np.save(directory / PROJECTION_FILE, np.stack([self.items, self.queries]))

    @classmethod
    def load(cls, directory: Path) -> Projection:
        """Reads what ``save`` wrote.

        Raises:
            OSError, ValueError: the file is missing or holds something else.
        """
        both = np.load(directory / PROJECTION_FILE, allow_pickle=False)
        if both.dtype != np.float32 or both.ndim != 3 or both.shape[0] != 2:
            raise ValueError(f"{PROJECTION_FILE}: expected float32 [2, dim, r], got {both.dtype} {both.shape}")
        return cls(both[0], both[1])


def _second_moment(vectors: Vectors) -> Float64:
    """``[dim, dim] float64``: the sum of v vᵀ."""
    total = np.zeros((vectors.shape[1], vectors.shape[1]))
    for start in range(0, len(vectors), _BLOCK_ROWS):
        block = vectors[start : start + _BLOCK_ROWS]
        total += block.T @ block
    return total


def _with_one_more(map_: Vectors) -> Vectors:
    longer = np.zeros((map_.shape[0] + 1, map_.shape[1] + 1), np.float32)
    longer[:-1, :-1] = map_
    longer[-1, -1] = 1.0
    return longer
