"""Exact search: every dot product, block by block; the oracle, the engine of small catalogues, the fallback.

Reads and writes ``vectors.npy``. NumPy alone: it works where ScaNN has no wheel.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index.search.searcher import (
    PAD_ROW,
    PAD_SCORE,
    Effort,
    Neighbors,
    Rows,
    Scores,
    Vectors,
    best_first,
    best_first_batch,
    check_k,
    check_queries,
    check_query,
    check_vectors,
)
from pipelines.contracts.errors import ArtifactError

VECTORS_FILE = "vectors.npy"
# Scores held at once in a batched search: 64 MB of float32. Large enough for BLAS, small beside the vectors.
_SCORES_AT_ONCE = 1 << 24
# Rows of a block in a batched search.
_BLOCK_ROWS = 1 << 16
# Rows gathered at once for one query: 128 KB of 64 numbers each, which fits a core's own cache.
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
    def full_effort(self) -> Effort | None:
        """None: exact search always looks at everything."""
        return None

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:  # noqa: ARG002
        """Returns the ``min(k, num_items)`` best rows. See ``Searcher.search``."""
        check_k(k)
        scores = self._vectors @ check_query(query, self.dim)
        return top_k(scores, k)

    def search_rows(self, query: Vectors, k: int, rows: Rows) -> Neighbors:
        """Returns the best ``min(k, len(rows))`` among the given rows alone.

        Args:
            query: ``[dim] float32``.
            k: 1 or more.
            rows: ``[n] int32``, rising, without repetition.

        Raises:
            SchemaError: as ``search``.
        """
        check_k(k)
        scores = scores_of(self._vectors, rows, check_query(query, self.dim))
        found = top_k(scores, k)
        return Neighbors(rows[found.rows], found.scores)

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:  # noqa: ARG002
        """Returns the best rows of each query. See ``Searcher.search_batch``."""
        check_k(k)
        checked = check_queries(queries, self.dim)
        width = min(k, self.num_items)
        rows = np.full((len(checked), width), PAD_ROW, np.int32)
        scores = np.full((len(checked), width), PAD_SCORE, np.float32)
        at_once = max(1, _SCORES_AT_ONCE // min(self.num_items, _BLOCK_ROWS))
        for start in range(0, len(checked), at_once):
            part = slice(start, start + at_once)
            found = self._search_blocks(checked[part], width)
            rows[part], scores[part] = found.rows, found.scores
        return Neighbors(rows, scores)

    def _search_blocks(self, queries: Vectors, k: int) -> Neighbors:
        found = top_k_batch(queries @ self._vectors[:_BLOCK_ROWS].T, k)
        for start in range(_BLOCK_ROWS, self.num_items, _BLOCK_ROWS):
            block_scores = queries @ self._vectors[start : start + _BLOCK_ROWS].T
            found = _merge_block(found, block_scores, start, k)
        return found

    def save(self, directory: Path) -> None:
        """Writes ``vectors.npy`` below ``directory``."""
        np.save(directory / VECTORS_FILE, self._vectors)

    @classmethod
    def load(cls, directory: Path) -> ExactSearcher:
        """Reads ``vectors.npy`` below ``directory`` as a memory map.

        Raises:
            ArtifactError: the file is missing or is not a float32 matrix.
        """
        return cls(load_vectors(directory / VECTORS_FILE), checked=True)


def _merge_block(found: Neighbors, block_scores: Scores, start: int, k: int) -> Neighbors:
    """Merges the scores of rows ``start`` and up, ``[batch, rows]``, into the best so far.

    After the first blocks few scores pass the worst of the best so far, so that a comparison replaces most of the
    sorting. Rows rise from block to block: among equal scores the earlier row stays.
    """
    if found.rows.shape[1] < k:
        best = top_k_batch(block_scores, k)
        rows = np.concatenate([found.rows, best.rows + np.int32(start)], axis=1)
        scores = np.concatenate([found.scores, best.scores], axis=1)
        merged = best_first_batch(rows, scores)
        return Neighbors(merged.rows[:, :k], merged.scores[:, :k])
    lines, places = np.nonzero(block_scores > found.scores[:, -1:])
    if len(lines) == 0:
        return found
    counts = np.bincount(lines, minlength=len(block_scores))
    column = np.arange(len(lines)) - np.repeat(np.cumsum(counts) - counts, counts)
    rows = np.full((len(block_scores), int(counts.max())), PAD_ROW, np.int32)
    scores = np.full(rows.shape, PAD_SCORE, np.float32)
    rows[lines, column] = places + start
    scores[lines, column] = block_scores[lines, places]
    rows, scores = np.concatenate([found.rows, rows], axis=1), np.concatenate([found.scores, scores], axis=1)
    merged = best_first_batch(rows, scores)
    return Neighbors(merged.rows[:, :k], merged.scores[:, :k])


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
    # A plain view of the map: indexing an np.memmap makes a new memmap object each time, at several microseconds.
    plain: Vectors = vectors.view(np.ndarray)
    return plain


def scores_of(vectors: Vectors, rows: Rows, query: Vectors) -> Scores:
    """Returns ``[n] float32``, the dot products of some rows, none of them below 0.

    A block is gathered at a time, so that it is still in the cache when it is multiplied. Rows behind the last count
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


def top_k(scores: Scores, k: int) -> Neighbors:
    """Returns the places of the k largest of ``[n]`` scores, ties to the lower place; all n where k is larger."""
    n = scores.shape[0]
    if k >= n:
        return best_first(np.arange(n, dtype=np.int32), scores)
    chosen = np.argpartition(scores, n - k)[n - k :]
    threshold = scores[chosen].min()
    above = np.flatnonzero(scores > threshold)
    # argpartition picks any of the rows that tie at the threshold; the lowest are wanted.
    equal = np.flatnonzero(scores == threshold)[: k - above.shape[0]] if above.shape[0] < k else above[:0]
    rows = np.concatenate([above, equal]).astype(np.int32)
    return best_first(rows, scores[rows])


def top_k_batch(scores: Scores, k: int) -> Neighbors:
    """Returns ``top_k`` of each line of ``[batch, n]``: places, ties to the lower one."""
    batch, n = scores.shape
    if k < n:
        chosen = np.argpartition(scores, n - k, axis=1)[:, n - k :]
        chosen_scores = np.take_along_axis(scores, chosen, axis=1)
        threshold = chosen_scores.min(axis=1, keepdims=True)
        tied = np.flatnonzero((scores >= threshold).sum(axis=1) > k)
    else:
        chosen = np.broadcast_to(np.arange(n), (batch, n))
        chosen_scores, tied = scores, np.zeros(0, np.int64)
    order = np.lexsort((chosen, -chosen_scores), axis=1)
    places = np.take_along_axis(chosen, order, axis=1).astype(np.int32)
    for line in tied:
        places[line] = top_k(scores[line], k).rows
    return Neighbors(places, np.take_along_axis(scores, places, axis=1))
