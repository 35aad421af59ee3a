"""Places of rows among some distinct ones, hundreds of thousands of look-ups per step."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Int32

Number = TypeVar("Number", np.int32, np.int64)


class Places:
    """The places of rows among some distinct ones: a table over the catalogue instead of searches, because hundreds of
    thousands are looked up per step; made once, because a new one for a large catalogue takes as long as all lookups.
    """

    def __init__(self, items: int) -> None:
        self._table = np.full(items + 1, -1, np.int32)  # the last one: for -1, no row
        self._rows = np.zeros(0, np.int32)

    def of(self, *rows: Int32) -> tuple[Int32, Int32]:
        """The distinct rows among these, ascending, and ``[items + 1]`` the place of each; -1: not among them.

        The table is the same one at each call.
        """
        self._table[self._rows] = -1
        self._rows = different(np.concatenate(rows))
        self._table[self._rows] = np.arange(len(self._rows), dtype=np.int32)
        return self._rows, self._table


def different(values: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """Each value once, ascending. (``np.unique`` hashes whole numbers, which takes several times as long.)"""
    ordered = np.sort(values)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
