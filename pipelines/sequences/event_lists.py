"""Event lists: all users' events, grouped by user, oldest first. NumPy only.

Training, evaluation and gates read events through this class. Only the features job, which sorts and merges them,
has a class of its own (``pipelines.sequences.grouping.Grouped``).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Bools, Float32, Int8, Int32, Int64


@dataclass(frozen=True, eq=False)
class EventLists:
    """Events grouped by user: those of user ``u`` are ``offsets[u]:offsets[u + 1]``, in the order of time.

    ``offsets`` [users + 1] int64; ``rows`` int32 (row of the catalogue), ``times`` int64 (microseconds UTC, or the
    order), ``actions`` int8, ``splits`` int8 (0 train, 1 valid, 2 test), ``values`` float32, each [events]. Without
    ``values`` (None), the worth of the events is unknown.

    The arrays are read-only. They may be memory maps: every method returns new lists, and none writes to its own.
    """

    offsets: Int64
    rows: Int32
    times: Int64
    actions: Int8
    splits: Int8
    values: Float32 | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            array = getattr(self, field.name)
            if array is not None:
                object.__setattr__(self, field.name, _read_only(array))
        assert int(self.offsets[-1]) == len(self.rows), (int(self.offsets[-1]), len(self.rows))

    @property
    def num_users(self) -> int:
        """Number of users, including those without events."""
        return len(self.offsets) - 1

    @property
    def num_events(self) -> int:
        """Number of events."""
        return len(self.rows)

    @property
    def counts(self) -> Int64:
        """``[users] int64``: number of events of each user."""
        return np.diff(self.offsets)

    @functools.cached_property
    def owners(self) -> Int32:
        """``[events] int32``: the user of each event."""
        return owners_of(self.offsets)

    def where(self, kept: Bools) -> EventLists:
        """Only the events at which ``kept`` (``[events] bool``) is true. All users stay, some without events."""
        running = np.concatenate([[0], np.cumsum(kept)])
        return self._at(running[self.offsets].astype(np.int64), kept)

    def before(self, split: int) -> EventLists:
        """Only the events of splits whose code is below ``split``."""
        return self.where(self.splits < split)

    def of_split(self, split: int) -> EventLists:
        """Only the events of the split with this code."""
        return self.where(self.splits == split)

    def window(self, start: int | None, stop: int | None) -> EventLists:
        """Only the events with ``start <= time < stop``; None is no bound."""
        kept = np.ones(self.num_events, np.bool_)
        if start is not None:
            kept &= self.times >= start
        if stop is not None:
            kept &= self.times < stop
        return self.where(kept)

    def of_users(self, users: npt.NDArray[np.integer]) -> EventLists:
        """The lists of these users (``[n]``), in this order."""
        return self._from(self.offsets[users], self.offsets[1:][users])

    def latest(self, count: int) -> EventLists:
        """The last ``count`` events of each user; all, where there are fewer."""
        stops = self.offsets[1:]
        return self._from(np.maximum(self.offsets[:-1], stops - count), stops)

    def _from(self, starts: Int64, stops: Int64) -> EventLists:
        return self._at(offsets_of(stops - starts), ranges(starts, stops))

    def _at(self, offsets: Int64, kept: Bools | Int64) -> EventLists:
        values = None if self.values is None else self.values[kept]
        return EventLists(offsets, self.rows[kept], self.times[kept], self.actions[kept], self.splits[kept], values)


def offsets_of(counts: npt.NDArray[np.integer]) -> Int64:
    """``[n + 1] int64``: where each of ``n`` lists of these lengths begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def owners_of(offsets: Int64) -> Int32:
    """``[elements] int32``: the list that each element belongs to."""
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


def ranges(starts: Int64, stops: Int64) -> Int64:
    """All integers of ``[starts[i], stops[i])``, one range after the other."""
    counts = stops - starts
    owners = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    places: Int64 = np.arange(int(counts.sum()), dtype=np.int64) - before[owners] + starts[owners]
    return places


def _read_only(array: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    view = array.view()
    view.flags.writeable = False
    return view
