"""The searcher protocol: what exact search and ScaNN have in common, and what a search returns.

A score is a dot product: larger is better. A row is an item's place in the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from index.search.ties import TieOrder
from index.search.utility import Utility
from pipelines.contracts.arrays import Float32, Int32
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.top_k import top_k

Rows = Int32
Scores = Float32
Vectors = Float32

# Fills a line of a batch's results after its last neighbor.
PAD_ROW = -1
PAD_SCORE = -np.inf
# Largest number in a vector: products of two, summed over a hundred million dimensions, stay within float32.
LARGEST = 1e15


@dataclass(frozen=True, slots=True)
class Neighbors:
    """Rows and their scores, best first; with equal scores, the lower row comes first (``TieOrder``: the lower id).

    rows: ``[k] int32``, or ``[batch, k]`` padded with -1 at the end.
    scores: ``[k] float32``, or ``[batch, k]`` padded with -inf.
    """

    rows: Rows
    scores: Scores

    @classmethod
    def best(cls, scores: Scores, k: int, rows: Rows | None = None, ties: TieOrder | None = None) -> Neighbors:
        """The ``min(k, n)`` best of ``[n] float32`` scores.

        Args:
            scores: no NaN.
            k: 1 or more.
            rows: ``[n] int32`` their rows; None counts from 0.
            ties: which of equals comes first; None is the lower row.
        """
        if ties is not None:
            if k < len(scores):
                # Those that may be among the best: only they need a key.
                may = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k]).astype(np.int32)
                rows, scores = may if rows is None else rows[may], scores[may]
            rows = np.arange(len(scores), dtype=np.int32) if rows is None else rows
            places = top_k(scores, k, ties.keys(rows))
        else:
            places = top_k(scores, k, rows)
        return cls(places if rows is None else rows[places], scores[places])


@dataclass(frozen=True, slots=True)
class Effort:
    """How hard an approximate searcher looks.

    leaves: leaves of the tree that are searched.
    reorder: candidates of the quantised pass that are scored again.
    rescore: of a tree with a projection, those of them that are scored once more with the full vectors; None is the
        share that it was tuned for.
    """

    leaves: int
    reorder: int
    rescore: int | None = None


class Searcher(Protocol):
    """Finds the rows with the largest dot product. Immutable and safe to call from many threads.

    A searcher that wraps another one forwards everything that it does not change itself.
    """

    @property
    def num_items(self) -> int:
        """Rows that can be found."""
        ...

    @property
    def dim(self) -> int:
        """Length of a vector."""
        ...

    @property
    def effort(self) -> Effort | None:
        """The tuned effort, which a search without one takes; with shards, that of each. None for exact search."""
        ...

    @property
    def full_effort(self) -> Effort | None:
        """The effort that looks at every row; None for exact search."""
        ...

    @property
    def leaf_of_row(self) -> Int32 | None:
        """``[rows] int32``: the leaf of each row the tree was built on. None without a tree, or for one just built."""
        ...

    @property
    def leaves_searched(self) -> int:
        """Leaves that the tuned effort searches, those of all shards together; 0 for exact search."""
        ...

    @property
    def indexes_value(self) -> bool:
        """Whether ``search_utility`` uses a tree; False: it scores every row."""
        ...

    def search(self, query: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the ``min(k, num_items)`` best rows of one query (fewer where the effort reaches fewer).

        Args:
            query: ``[dim] float32``, finite.
            k: 1 or more; above the number of items, all items are returned.
            effort: how hard to look; None is what the searcher was tuned for.

        Raises:
            SchemaError: the query has another shape or holds NaN or infinity, or k is below 1.
        """
        ...

    def search_utility(self, query: Vectors, k: int, utility: Utility, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows by utility, as many as ``search`` does, with their utilities as scores.

        Args:
            query: ``[dim] float32``, finite.
            k: 1 or more.
            utility: over all rows. An index of values answers with those it was built with.
            effort: how hard to look; None is what the searcher was tuned for.

        Raises:
            SchemaError: as ``search``.
        """
        ...

    def search_batch(self, queries: Vectors, k: int, effort: Effort | None = None) -> Neighbors:
        """Returns the best rows of each query, ``[batch, min(k, num_items)]``, each row as ``search`` returns it.

        Args:
            queries: ``[batch, dim] float32``, finite.
            k: 1 or more.
            effort: how hard to look; None is what the searcher was tuned for.

        Raises:
            SchemaError: as ``search``.
        """
        ...


class SavableSearcher(Searcher, Protocol):
    """A searcher that has files of its own."""

    def save(self, directory: Path) -> None:
        """Writes the searcher's files below ``directory``, which must exist and be empty."""
        ...


def check_k(k: int) -> None:
    """Checks that k is 1 or more.

    Raises:
        SchemaError: k is below 1.
    """
    if k < 1:
        raise SchemaError(f"k: expected 1 or more, got {k}. Ask for at least one item.")


def check_query(query: Vectors, dim: int) -> Vectors:
    """Returns the query as contiguous float32 ``[dim]``.

    Raises:
        SchemaError: it has another shape or holds NaN or infinity.
    """
    vector = np.ascontiguousarray(query, dtype=np.float32)
    if vector.shape != (dim,):
        raise SchemaError(
            f"query: expected a vector of shape ({dim},), got {vector.shape}. Use the bundle's own tower."
        )
    if not is_bounded(vector):
        _refuse_unbounded(vector, "query")
    return vector


def is_bounded(vector: Vectors) -> bool:
    """Whether ``[dim] float32`` is finite and within ``LARGEST``. For a few numbers, counting is the fastest test."""
    # NaN compares false, so one comparison finds NaN, infinity and numbers that would overflow.
    return bool(np.count_nonzero(np.abs(vector) <= LARGEST) == len(vector))


def check_queries(queries: Vectors, dim: int) -> Vectors:
    """Returns the queries as contiguous float32 ``[batch, dim]``.

    Raises:
        SchemaError: they have another shape or hold NaN or infinity.
    """
    vectors = np.ascontiguousarray(queries, dtype=np.float32)
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise SchemaError(f"queries: expected shape (batch, {dim}), got {vectors.shape}. Use the bundle's own tower.")
    if vectors.size and not np.abs(vectors).max() <= LARGEST:
        _refuse_unbounded(vectors, "queries")
    return vectors


def _refuse_unbounded(vectors: Vectors, name: str) -> None:
    wrong = int((~np.isfinite(vectors)).sum())
    if wrong:
        raise SchemaError(f"{name}: expected finite numbers, got {wrong} that are NaN or infinite. Check the features.")
    raise SchemaError(f"{name}: expected numbers up to {LARGEST:g}, got {np.abs(vectors).max():g}. Check the features.")


def check_vectors(vectors: Vectors, where: str) -> Vectors:
    """Returns item vectors as contiguous float32 ``[items, dim]``, ready to build a searcher on.

    ScaNN aborts the whole process on a single NaN, so nothing is built before this check has passed.

    Raises:
        ArtifactError: not two-dimensional, empty, or with NaN or infinity; the first such row is named.
    """
    if vectors.ndim != 2 or 0 in vectors.shape:
        raise ArtifactError(
            f"{where}: expected vectors of shape (items, dim), got {vectors.shape}. Embed the items again."
        )
    block = 1 << 18
    for start in range(0, vectors.shape[0], block):
        bounded = (np.abs(vectors[start : start + block]) <= LARGEST).all(axis=1)
        if not bounded.all():
            row = start + int(np.argmin(bounded))
            raise ArtifactError(
                f"{where}: row {row} holds NaN, infinity or a number above {LARGEST:g}; expected finite vectors. "
                "The item tower diverged or its inputs are damaged: train again, then embed again."
            )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def best_first(rows: Rows, scores: Scores) -> Neighbors:
    """Sorts ``[n]`` rows by score, largest first, equal scores by row.

    Results that are already sorted (ScaNN's are, except within ties) are recognised by one comparison.
    """
    if rows.shape[0] > 1:
        falling = scores[:-1] > scores[1:]
        if np.count_nonzero(falling) < len(falling):
            order = np.lexsort((rows, -scores))
            rows, scores = rows[order], scores[order]
    return Neighbors(rows, scores)


def best_first_batch(rows: Rows, scores: Scores) -> Neighbors:
    """Sorts each line of ``[batch, n]`` as ``best_first`` does; padding (-1, -inf) ends up at the end."""
    falling = scores[:, :-1] > scores[:, 1:]
    if not falling.all():
        padded = np.where(rows < 0, np.iinfo(np.int32).max, rows)
        order = np.lexsort((padded, -scores), axis=1)
        rows = np.take_along_axis(rows, order, axis=1)
        scores = np.take_along_axis(scores, order, axis=1)
    return Neighbors(rows, scores)
