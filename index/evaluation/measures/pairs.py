"""Pairs: a set of items for each user, in compressed sparse rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Bools, Float64, Int32, Int64

# Keys are user * stride + row, in 63 bits.
_STRIDE = 1 << 32


@dataclass(frozen=True)
class Pairs:
    """Sets of rows, one a user: those of user ``u`` are ``rows[offsets[u]:offsets[u + 1]]``, rising, no row twice.

    offsets: ``[users + 1] int64``. rows: ``[pairs] int32``. values: ``[pairs] float64``, what the user's events of the
    item are worth together (0 where nothing tells it). events: ``[pairs] int64``, how many events there were.
    """

    offsets: Int64
    rows: Int32
    values: Float64
    events: Int64

    @classmethod
    def of(cls, owners: npt.NDArray[np.integer], rows: Int32, users: int, values: npt.ArrayLike | None = None) -> Pairs:
        """Gathers events into sets.

        Args:
            owners: ``[events]`` places of users.
            rows: ``[events] int32``; what is negative (outside the catalogue) is left out.
            users: how many there are.
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

    @property
    def num_users(self) -> int:
        """How many users, those with an empty set counted in."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int64:
        """``[users] int64`` size of each set."""
        return np.diff(self.offsets)

    @functools.cached_property
    def owners(self) -> Int64:
        """``[pairs] int64`` place of each pair's user."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), self.counts)

    @functools.cached_property
    def keys(self) -> Int64:
        """``[pairs] int64``, rising: one number a pair."""
        return self.owners * _STRIDE + self.rows

    def find(self, ranked: Int32) -> Int64:
        """``[users, k] int64``: the place among the pairs of each ranked row of each user, -1 where it is in no set."""
        if len(self.keys) == 0:
            return np.full(ranked.shape, -1, np.int64)
        wanted = np.arange(len(ranked), dtype=np.int64)[:, None] * _STRIDE + ranked
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[places] == wanted) & (ranked >= 0), places, -1)

    def contains(self, ranked: Int32) -> Bools:
        """``[users, k] bool``: whether each ranked row of each user is in the user's set."""
        return self.find(ranked) >= 0

    def where(self, kept: Bools) -> Pairs:
        """The sets without the pairs that ``kept`` (``[pairs] bool``) denies."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return Pairs(before[self.offsets], self.rows[kept], self.values[kept], self.events[kept])

    def within(self, others: Pairs) -> Bools:
        """``[pairs] bool``: the pair is in ``others`` too."""
        return np.isin(self.keys, others.keys, assume_unique=True)

    def of_users(self, users: Int64) -> Pairs:
        """The sets of some users (``[n]`` places), in that order."""
        counts = self.counts[users]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.offsets[users] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Pairs(offsets, self.rows[places], self.values[places], self.events[places])
