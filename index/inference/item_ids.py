"""Item ids and rows: converts between the catalogue's ids and places in its matrix.

Reads the vocabulary's ids. Made for a few ids at a time, in a microsecond or two each way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.inference.request_ids import IdsLike, int64_ids, num_ids, text_ids
from index.search.searcher import Rows
from pipelines.contracts.arrays import Int64

# A direct table may be this many times as long as the catalogue; beyond that, ids are found through buckets.
_DIRECT_TABLE = 8


class ItemIds:
    """Ids of a catalogue in row order. Immutable."""

    def __init__(self, item_ids: pa.Array) -> None:
        self._numbers = pa.types.is_integer(item_ids.type)
        self._by_row: npt.NDArray[Any] = np.asarray(item_ids, dtype=np.int64 if self._numbers else object)
        if self._numbers:
            self._first = int(self._by_row.min()) if len(self._by_row) else 0
            self._row_of_number = self._direct_table()
            rising = bool((self._by_row[1:] > self._by_row[:-1]).all())
            self._order = None if rising else np.argsort(self._by_row, kind="stable").astype(np.int32)
            self._sorted = self._by_row if self._order is None else self._by_row[self._order]
            self._buckets = None if self._row_of_number is not None else _Buckets.of(self._sorted)
        else:
            self._row_of_text = {text: row for row, text in enumerate(self._by_row.tolist())}

    def _direct_table(self) -> Rows | None:
        """``[last - first + 3] int32``: row of id ``first + place - 1``; -1 where there is none and at both ends."""
        if len(self._by_row) == 0:
            return None
        span = int(self._by_row.max()) - self._first + 1
        if span > _DIRECT_TABLE * len(self._by_row) + 1024:
            return None
        table = np.full(span + 2, -1, np.int32)
        table[self._by_row - self._first + 1] = np.arange(len(self._by_row), dtype=np.int32)
        return table

    def __len__(self) -> int:
        return len(self._by_row)

    def of(self, rows: Rows) -> npt.NDArray[Any]:
        """``[n]`` ids of the rows: int64, or text as objects."""
        ids: npt.NDArray[Any] = self._by_row.take(rows)
        return ids

    def rows(self, item_ids: IdsLike, what: str) -> Rows:
        """``[n] int32`` row of each id, -1 if it is not in the catalogue. A number and its text are the same id.

        Raises:
            SchemaError: not a flat list, or a value can be no id of the catalogue's type; ``what`` names the argument.
        """
        if not num_ids(item_ids, what):
            return np.zeros(0, np.int32)
        if self._numbers:
            return self._rows_of_numbers(int64_ids(item_ids, what))
        return self._rows_of_texts(item_ids, what)

    def _rows_of_texts(self, item_ids: IdsLike, what: str) -> Rows:
        found = self._known_texts(item_ids)
        if found is None or None in found:
            found = [self._row_of_text.get(text, -1) for text in text_ids(item_ids, what)]
        return np.array(found, np.int32)

    def _known_texts(self, item_ids: Iterable[Any]) -> list[int | None] | None:
        """The row of each id of the catalogue's own form, else None; None for all if some cannot be looked up."""
        try:
            return list(map(self._row_of_text.get, item_ids))
        except TypeError:
            return None

    def _rows_of_numbers(self, numbers: Int64) -> Rows:
        if self._row_of_number is not None:
            # Clipping leads to the ends, which have no row; this also holds for numbers that wrap around.
            return self._row_of_number.take(numbers - self._first + 1, mode="clip")
        if len(self._sorted) == 0:
            return np.full(len(numbers), -1, np.int32)
        if self._buckets is None:
            places = np.searchsorted(self._sorted, numbers).astype(np.int32)
        else:
            places = self._buckets.places(self._sorted, numbers)
        # A place past the last is clipped to the last, which has another id.
        found = self._sorted.take(places, mode="clip") == numbers
        rows = places if self._order is None else self._order.take(places, mode="clip")
        return rows if np.count_nonzero(found) == len(found) else np.where(found, rows, np.int32(-1))


# Largest number of ids in a bucket; with more (a few dense ranges among wide gaps), ids are found by bisection.
_MOST_IN_BUCKET = 8


@dataclass(frozen=True)
class _Buckets:
    """Where in the sorted ids a range of numbers begins: two independent memory accesses per id, where bisection has
    twenty that depend on each other.

    first: the smallest id. shift: ``(id - first) >> shift`` is its bucket. starts: ``[buckets + 2] int32``.
    most: ids in the fullest bucket.
    """

    first: int
    shift: int
    starts: npt.NDArray[np.int32]
    most: int

    @classmethod
    def of(cls, ordered: npt.NDArray[np.int64]) -> _Buckets | None:
        """Lays out ``[n] int64`` ascending ids; None if they are too unevenly spread."""
        if len(ordered) == 0:
            return None
        first, span = int(ordered[0]), int(ordered[-1]) - int(ordered[0])
        shift = max(0, span.bit_length() - (2 * len(ordered)).bit_length())
        buckets = (span >> shift) + 1
        place = ((ordered - first).view(np.uint64) >> np.uint64(shift)).astype(np.int64)
        counts = np.bincount(place, minlength=buckets)
        if counts.max() > _MOST_IN_BUCKET:
            return None
        starts = np.zeros(buckets + 2, np.int32)
        np.cumsum(counts, out=starts[1 : buckets + 1])
        starts[buckets + 1] = len(ordered)
        return cls(first, shift, starts, int(counts.max()))

    def places(self, ordered: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """``[n]`` the place of each number if it occurs at all; up to the length of ``ordered``."""
        # Unsigned, because the ids may span more than half of all numbers; others are clipped to some bucket.
        bucket = (numbers - self.first).view(np.uint64) >> np.uint64(self.shift)
        places = self.starts.take(bucket.view(np.int64), mode="clip")
        for _ in range(self.most - 1):
            places += ordered.take(places, mode="clip") < numbers
        return places
