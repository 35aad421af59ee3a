"""Item sets: for each user a set of items, with what the events behind each item add up to. NumPy alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Bools, Float64, Int32, Int64
from pipelines.sequences.event_lists import EventLists, offsets_of, owners_of, ranges

# Keys are user * stride + row, in 63 bits.
_STRIDE = 1 << 32


@dataclass(frozen=True, eq=False)
class ItemSets:
    """One set of rows per user: that of user ``u`` is ``rows[offsets[u]:offsets[u + 1]]``, ascending, no row twice.

    No ``EventLists``: here a user has an item once, in the order of rows, and sets can be compared.

    offsets: ``[users + 1] int64``. rows: ``[pairs] int32``. values: ``[pairs] float64``, the sum of the values of the
    user's events of the item (0 where none has one). events: ``[pairs] int64``, the number of these events.
    """

    offsets: Int64
    rows: Int32
    values: Float64
    events: Int64

    @classmethod
    def of(
        cls, owners: npt.NDArray[np.integer], rows: Int32, users: int, values: npt.ArrayLike | None = None
    ) -> ItemSets:
        """Gathers events into sets.

        Args:
            owners: ``[events]`` users.
            rows: ``[events] int32``; negative ones (outside the catalogue) are left out.
            users: number of users.
            values: ``[events]``; NaN and negative numbers count as 0.
        """
        worth = np.zeros(len(rows)) if values is None else np.nan_to_num(np.asarray(values, np.float64))
        inside = rows >= 0
        keys, places = np.unique(owners[inside].astype(np.int64) * _STRIDE + rows[inside], return_inverse=True)
        return cls(
            offsets=np.searchsorted(keys, np.arange(users + 1, dtype=np.int64) * _STRIDE).astype(np.int64),
            rows=(keys % _STRIDE).astype(np.int32),
            values=np.bincount(places, np.maximum(worth[inside], 0.0), minlength=len(keys)).astype(np.float64),
            events=np.bincount(places, minlength=len(keys)).astype(np.int64),
        )

    @classmethod
    def of_events(cls, events: EventLists) -> ItemSets:
        """The items in each user's events."""
        return cls.of(events.owners, events.rows, events.num_users, events.values)

    @property
    def num_users(self) -> int:
        """Number of users, including those with an empty set."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int64:
        """``[users] int64`` size of each set."""
        return np.diff(self.offsets)

    @functools.cached_property
    def owners(self) -> Int32:
        """``[pairs] int32``: the user of each pair."""
        return owners_of(self.offsets)

    @functools.cached_property
    def keys(self) -> Int64:
        """``[pairs] int64``, ascending: one number per pair."""
        return self.owners.astype(np.int64) * _STRIDE + self.rows

    def find(self, ranked: Int32) -> Int64:
        """``[users, k] int64``: the pair of each user's ranked row, -1 where it is not in the user's set."""
        if len(self.keys) == 0:
            return np.full(ranked.shape, -1, np.int64)
        wanted = np.arange(len(ranked), dtype=np.int64)[:, None] * _STRIDE + ranked
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[places] == wanted) & (ranked >= 0), places, -1)

    def contains(self, ranked: Int32) -> Bools:
        """``[users, k] bool``: whether each ranked row of each user is in the user's set."""
        return self.find(ranked) >= 0

    def where(self, kept: Bools) -> ItemSets:
        """Only the pairs at which ``kept`` (``[pairs] bool``) is true. All users stay, some with an empty set."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return ItemSets(before[self.offsets], self.rows[kept], self.values[kept], self.events[kept])

    def within(self, others: ItemSets) -> Bools:
        """``[pairs] bool``: the pair is in ``others`` too."""
        return np.isin(self.keys, others.keys, assume_unique=True)

    def of_users(self, users: npt.NDArray[np.integer]) -> ItemSets:
        """The sets of these users (``[n]``), in this order."""
        starts, stops = self.offsets[users], self.offsets[1:][users]
        places = ranges(starts, stops)
        return ItemSets(offsets_of(stops - starts), self.rows[places], self.values[places], self.events[places])
