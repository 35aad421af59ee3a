"""Which of two rows with equal scores comes first: the one whose item id is lower.

The rows of a bundle are in the order of their ids (docs/adr/0002-row-order.md), so there the lower row comes first. An
ad that changes or joins gets a row at the end, but its place among equals is that of its id: it does not move when the
catalogue is built again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Int32, Int64


@dataclass(frozen=True, eq=False)
class TieOrder:
    """Keys that order the rows of a catalogue with fresh rows at its end.

    items: rows of the bundle. before: ``[fresh] int64``, how many of these come before each fresh row. rank:
    ``[fresh] int64``, its place among the fresh rows.
    """

    items: int
    before: Int64
    rank: Int64

    @classmethod
    def of(cls, base_ids: pa.Array, fresh_ids: Sequence[Any]) -> TieOrder:
        """The order of ``base_ids``, which ascend, and of the fresh rows' ids. An id may have several fresh rows."""
        ids = list(fresh_ids)
        rank = np.empty(len(ids), np.int64)
        rank[sorted(range(len(ids)), key=ids.__getitem__)] = np.arange(len(ids))
        return cls(len(base_ids), _places(base_ids, ids), rank)

    def keys(self, rows: Int32) -> Int64:
        """``[n] int64``: ascending as the rows ``[n]`` come among equals."""
        step = len(self.rank) + 1
        keys = (rows.astype(np.int64) + 1) * step
        fresh = rows >= self.items
        places = rows[fresh] - self.items
        keys[fresh] = self.before[places] * step + 1 + self.rank[places]
        return keys


def _places(base_ids: pa.Array, ids: list[Any]) -> Int64:
    """``[n] int64``: how many of the ascending ``base_ids`` are lower than each id."""
    if pa.types.is_integer(base_ids.type):
        known = np.asarray(base_ids)
        return np.searchsorted(known, np.asarray(ids, known.dtype)).astype(np.int64)
    return np.array([_place(base_ids, item_id) for item_id in ids], np.int64)


def _place(base_ids: pa.Array, item_id: Any) -> int:
    low, high = 0, len(base_ids)
    while low < high:
        middle = (low + high) // 2
        if base_ids[middle].as_py() < item_id:
            low = middle + 1
        else:
            high = middle
    return low
