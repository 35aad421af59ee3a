"""Item ids and rows: the one converter between the catalogue's ids and places in its matrix.

Reads the vocabulary's ids; writes nothing. Made for a few ids at a time, in a microsecond or two each way.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.searcher import Rows
from pipelines.errors import SchemaError
from pipelines.vocabulary import ValueTable

# A direct table may be this many times as long as the catalogue; beyond that, ids are found by bisection.
_DIRECT_TABLE = 8


class ItemIds:
    """Ids of a catalogue in row order. Immutable."""

    def __init__(self, item_ids: pa.Array) -> None:
        self._arrow = item_ids
        self._numbers = pa.types.is_integer(item_ids.type)
        self._by_row: npt.NDArray[Any] = np.asarray(item_ids, dtype=np.int64 if self._numbers else object)
        if self._numbers:
            self._first = int(self._by_row.min()) if len(self._by_row) else 0
            self._row_of_number = self._direct_table()
            self._order = np.argsort(self._by_row, kind="stable").astype(np.int32)
            self._sorted = self._by_row[self._order]
        else:
            self._row_of_text = {text: row for row, text in enumerate(self._by_row.tolist())}

    def _direct_table(self) -> Rows | None:
        """``[last - first + 2] int32``: row of ``first + place``, -1 where there is none and in the last place."""
        if len(self._by_row) == 0:
            return None
        span = int(self._by_row.max()) - self._first + 1
        if span > _DIRECT_TABLE * len(self._by_row) + 1024:
            return None
        table = np.full(span + 1, -1, np.int32)
        table[self._by_row - self._first] = np.arange(len(self._by_row), dtype=np.int32)
        return table

    def __len__(self) -> int:
        return len(self._by_row)

    def of(self, rows: Rows) -> npt.NDArray[Any]:
        """``[n]`` ids of the rows: int64, or text as objects."""
        ids: npt.NDArray[Any] = self._by_row[rows]
        return ids

    def rows(self, item_ids: Sequence[Any] | npt.NDArray[Any] | pa.Array, what: str) -> Rows:
        """``[n] int32`` row of each id, -1 where the catalogue does not have it.

        Raises:
            SchemaError: not a list of ids, or of several types; ``what`` names the argument.
        """
        if len(item_ids) == 0:
            return np.zeros(0, np.int32)
        if self._numbers:
            return self._rows_of_numbers(item_ids, what)
        try:
            found = list(map(self._row_of_text.get, item_ids))
        except TypeError as err:
            raise SchemaError(f"{what}: expected item ids, got {item_ids!r:.80}") from err
        if None in found:
            if not all(type(item_id) is str for item_id in item_ids):
                return self._any_type(item_ids, what)
            found = [-1 if row is None else row for row in found]
        return np.array(found, np.int32)

    def _rows_of_numbers(self, item_ids: Sequence[Any] | npt.NDArray[Any] | pa.Array, what: str) -> Rows:
        try:
            numbers = np.asarray(item_ids)
        except ValueError as err:
            raise SchemaError(f"{what}: expected a flat list of item ids, got {item_ids!r:.80}") from err
        if numbers.ndim != 1:
            raise SchemaError(f"{what}: expected a flat list of item ids, got {item_ids!r:.80}")
        if numbers.dtype != np.int64:
            return self._any_type(item_ids, what)
        if self._row_of_number is not None:
            # Ids below the first wrap round to beyond the last as unsigned: one comparison for both ends.
            places = (numbers - self._first).view(np.uint64)
            return self._row_of_number[np.minimum(places, len(self._row_of_number) - 1)]
        places = np.minimum(np.searchsorted(self._sorted, numbers), len(self._sorted) - 1)
        return np.where(self._sorted[places] == numbers, self._order[places], np.int32(-1))

    def _any_type(self, item_ids: Sequence[Any] | npt.NDArray[Any] | pa.Array, what: str) -> Rows:
        """Ids of another type than the catalogue's, by the vocabulary's own rule of what equals what."""
        try:
            given = item_ids if isinstance(item_ids, pa.Array | pa.ChunkedArray) else pa.array(item_ids)
            return self._table.places(given)
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as err:
            raise SchemaError(f"{what}: expected item ids of one type, got {item_ids!r:.80} ({err})") from err

    @functools.cached_property
    def _table(self) -> ValueTable:
        return ValueTable(self._arrow)
