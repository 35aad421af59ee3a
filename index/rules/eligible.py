"""The rows that a rule leaves eligible, laid out for search, and the cache that keeps them.

The cache is keyed by expression and belongs to one version. It is bounded in bytes: the least recently used go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.forking import renew_after_fork
from index.rules.attributes import Mask
from index.search.leaves import Leaves
from index.search.searcher import Rows, Scores, Vectors


@dataclass(frozen=True)
class Eligible:
    """Some rows of the catalogue.

    mask: ``[items] bool``. rows: ``[n] int32``, leaf by leaf if there are leaves, ascending otherwise.
    offsets: ``[leaves + 1] int64`` into ``rows``; None without leaves. vectors: ``[n, dim] float32`` of the rows, in
    their order, and log_values ``[n] float32``: both None if they would take too much memory.
    """

    mask: Mask
    rows: Rows
    offsets: npt.NDArray[np.int64] | None
    vectors: Vectors | None
    log_values: Scores | None

    @property
    def count(self) -> int:
        """How many rows are eligible."""
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        arrays = (self.mask, self.rows, self.offsets, self.vectors, self.log_values)
        return sum(array.nbytes for array in arrays if array is not None)

    @classmethod
    def of(
        cls,
        mask: Mask,
        leaves: Leaves | None,
        vectors: Vectors,
        log_values: Scores | None,
        *,
        gather_bytes: int,
    ) -> Eligible:
        """Lays out the rows where ``mask [items] bool`` is true; their vectors too if they fit in ``gather_bytes``."""
        if leaves is None:
            rows, offsets = np.flatnonzero(mask).astype(np.int32), None
        else:
            passing = mask[leaves.rows]
            rows = leaves.rows[passing]
            running = np.zeros(len(passing) + 1, np.int64)
            np.cumsum(passing, out=running[1:])
            offsets = running[leaves.offsets]
        if rows.shape[0] * vectors.shape[1] * 4 > gather_bytes:
            return cls(mask, rows, offsets, None, None)
        gathered = None if log_values is None else log_values[rows]
        return cls(mask, rows, offsets, vectors.take(rows, axis=0, mode="clip"), gathered)


class EligibleCache:
    """Keeps eligible rows by the rule's expression, or by another key. Safe to use from many threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Eligible] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        renew_after_fork(self)

    def get(self, where: Hashable, make: Callable[[], Eligible]) -> Eligible:
        """The eligible rows of ``where``, made and kept at first use. Two threads may make the same ones at once."""
        with self._lock:
            kept = self._kept.get(where)
            if kept is not None:
                self._kept.move_to_end(where)
                return kept
        made = make()
        with self._lock:
            if where not in self._kept and made.nbytes <= self._max_bytes:
                self._kept[where] = made
                self._bytes += made.nbytes
                while self._bytes > self._max_bytes:
                    _, dropped = self._kept.popitem(last=False)
                    self._bytes -= dropped.nbytes
        return made

    def after_fork(self) -> None:
        """In a forked process: another thread may have held the lock, in the middle of a change."""
        self._lock = threading.Lock()
        self._bytes = sum(kept.nbytes for kept in self._kept.values())

    @property
    def nbytes(self) -> int:
        """Bytes kept."""
        return self._bytes
