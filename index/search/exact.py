"""Exact search: every dot product. It is the reference, the engine for small catalogues, and the fallback.

Reads and writes ``vectors.npy``. Needs only NumPy, so it works where ScaNN has no wheel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.search.running_best import QUERIES_AT_ONCE, best_rows
from index.search.searcher import (
    Effort,
    Neighbors,
    Rows,
    Scores,
    Vectors,
    check_k,
    check_queries,
    check_query,
    check_vectors,
)
from index.search.utility import Utility
from pipelines.contracts.arrays import Int32
from pipelines.contracts.errors import ArtifactError

VECTORS_FILE = "vectors.npy"
# Rows gathered at once for one query: 128 KB at 64 numbers per row, which fits a core's own cache.
_GATHERED_ROWS = 512


class ExactSearcher:
    """Search by looking at every vector."""

    def __init__(self, vectors: Vectors, *, checked: bool = False) -> None:
        """Keeps the vectors as they are (a memory map stays one).

        Args:
            vectors: ``[items, dim] float32``.
            checked: they are known to be finite (read from a verified bundle).

        Raises:
            ArtifactError: the vectors hold NaN or infinity, or have no rows.
        """
        self._vectors = vectors if checked else check_vectors(vectors, "vectors")

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        return int(self._vectors.shape[0])

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self._vectors.shape[1])

    @property
    def vectors(self) -> Vectors:
        """``[items, dim] float32``, in row order."""
        return self._vectors

    @property
    def effort(self) -> Effort | None:
        """None: exact search always looks at everything."""
        return None

    @property
    def full_effort(self) -> Effort | None:
        """None, as ``effort``."""
        return None

    @property
    def leaf_of_row(self) -> Int32 | None:
        """None: there is no tree."""
        return None

    @property
    def leaves_searched(self) -> int:
        """0: there is no tree."""
        return 0

    @property
    def indexes_value(self) -> bool:
        """False: every row is scored."""
        return False

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:  # noqa: ARG002
        """Returns the ``min(k, num_items)`` best rows. See ``Searcher.search``."""
        check_k(k)
        return Neighbors.best(self._vectors @ check_query(query, self.dim), k)

    def search_utility(
        self,
        query: Vectors,
        k: int,
        utility: Utility,
        effort: Effort | None = None,  # noqa: ARG002
    ) -> Neighbors:
        """Returns the best rows by utility. See ``Searcher.search_utility``."""
        return best_by_utility(self._vectors, query, k, utility)

    def search_rows(self, query: Vectors, k: int, rows: Rows, utility: Utility | None = None) -> Neighbors:
        """Returns the best ``min(k, len(rows))`` among the given rows alone.

        Args:
            query: ``[dim] float32``.
            k: 1 or more.
            rows: ``[n] int32``, ascending, without duplicates.
            utility: over all rows; None ranks by score alone.

        Raises:
            SchemaError: as ``search``.
        """
        check_k(k)
        scores = scores_of(self._vectors, rows, check_query(query, self.dim))
        return Neighbors.best(scores if utility is None else utility.of(scores, rows), k, rows)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:  # noqa: ARG002
        """Returns the best rows of each query. See ``Searcher.search_batch``."""
        check_k(k)
        checked = check_queries(queries, self.dim)
        width = min(k, self.num_items)
        rows = np.empty((len(checked), width), np.int32)
        scores = np.empty((len(checked), width), np.float32)
        for start in range(0, len(checked), QUERIES_AT_ONCE):
            part = slice(start, start + QUERIES_AT_ONCE)
            found = best_rows(checked[part], self._vectors, width)
            rows[part], scores[part] = found.rows, found.scores
        return Neighbors(rows, scores)

    def save(self, directory: Path) -> None:
        """Writes ``vectors.npy`` below ``directory``."""
        np.save(directory / VECTORS_FILE, self._vectors)

    @classmethod
    def load(cls, directory: Path) -> ExactSearcher:
        """Reads ``vectors.npy`` below ``directory`` as a memory map.

        Raises:
            ArtifactError: the file is missing or not a float32 matrix.
        """
        return cls(load_vectors(directory / VECTORS_FILE), checked=True)


def best_by_utility(vectors: Vectors, query: Vectors, k: int, utility: Utility) -> Neighbors:
    """Returns the ``min(k, items)`` best rows by utility: every row is scored.

    Args:
        vectors: ``[items, dim] float32``.
        query: ``[dim] float32``, finite.
        k: 1 or more.
        utility: over all rows.

    Raises:
        SchemaError: as ``Searcher.search``.
    """
    check_k(k)
    return Neighbors.best(utility.of(vectors @ check_query(query, vectors.shape[1])), k)


def load_vectors(path: Path) -> Vectors:
    """Returns the float32 matrix in an npy file as a read-only memory map.

    Raises:
        ArtifactError: the file is missing, is not npy, or holds something else.
    """
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as err:
        raise ArtifactError(
            f"{path}: expected a float32 matrix in npy format ({err}). Write the artifact again."
        ) from err
    if vectors.dtype != np.float32 or vectors.ndim != 2:
        raise ArtifactError(
            f"{path}: expected a float32 matrix, got {vectors.dtype} {vectors.shape}. Write the artifact again."
        )
    # A plain view of the map: indexing an np.memmap makes a new memmap object each time, which takes microseconds.
    plain: Vectors = vectors.view(np.ndarray)
    return plain


def scores_of(vectors: Vectors, rows: Rows, query: Vectors) -> Scores:
    """Returns ``[n] float32``, the dot products of some rows; row numbers must not be negative.

    A block is gathered at a time, so that it is still in the cache when it is multiplied. A row after the last counts
    as the last: ``take`` that clips needs half the time of an indexed gather.
    """
    n = len(rows)
    if n <= _GATHERED_ROWS:
        few: Scores = vectors.take(rows, axis=0, mode="clip") @ query
        return few
    scores = np.empty(n, np.float32)
    gathered = np.empty((_GATHERED_ROWS, vectors.shape[1]), np.float32)
    for start in range(0, n, _GATHERED_ROWS):
        block = gathered[: min(_GATHERED_ROWS, n - start)]
        vectors.take(rows[start : start + _GATHERED_ROWS], axis=0, out=block, mode="clip")
        np.dot(block, query, out=scores[start : start + len(block)])
    return scores
