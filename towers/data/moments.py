"""What is known at a moment: places in the events by owner and time, and the features that change with it.

Every training example has a moment of its own; counts of recent events at that moment use only the
events before it. Vectorised NumPy, no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Float32, Int32, Int64
from pipelines.contracts.kinds import CountFeature, Feature, TimeSinceFeature
from pipelines.contracts.schema import Side
from pipelines.contracts.vocabulary import FittedNumbers
from pipelines.sequences.event_lists import EventLists
from towers.data.training_data import DAY_US, Features, TrainingData
from towers.settings import WindowsSettings


class Clock:
    """Finds places in events sorted by owner and time: one search for many owners at once.

    Args:
        owners: ``[events]`` ascending.
        times: ``[events] int64`` microseconds, ascending within an owner.
    """

    def __init__(self, owners: npt.NDArray[np.integer], times: Int64) -> None:
        self.first = int(times.min()) if len(times) else 0
        seconds = (times - self.first) // 1_000_000
        self.span = int(seconds.max(initial=0)) + 2
        self.keys = owners.astype(np.int64) * self.span + seconds

    def place(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Int64:
        """``[owners] int64`` the first event of each owner at or after the moment (whole seconds)."""
        seconds = np.clip(-(-(np.asarray(moments) - self.first) // 1_000_000), 0, self.span - 1)
        found: Int64 = np.searchsorted(self.keys, owners.astype(np.int64) * self.span + seconds)
        return found

    def count(self, owners: npt.NDArray[np.integer], starts: Int64 | int, stops: Int64 | int) -> Int64:
        """``[owners] int64`` events with ``start <= time < stop``."""
        return self.place(owners, stops) - self.place(owners, starts)


def clock_of(events: EventLists, side: Side) -> Clock:
    """The clock of events sorted by user, or by item."""
    if side == "user":
        return Clock(events.owners, events.times)
    order = np.lexsort((events.times, events.rows))
    return Clock(events.rows[order], events.times[order])


def count_features(features: Iterable[Feature]) -> tuple[CountFeature, ...]:
    """The count features among these."""
    return tuple(feature for feature in features if isinstance(feature, CountFeature))


def moving_features(features: Iterable[Feature]) -> tuple[Feature, ...]:
    """Those whose column depends on the moment: counts, then times since."""
    features = tuple(features)
    return (*count_features(features), *(feature for feature in features if isinstance(feature, TimeSinceFeature)))


def side_by_side(columns: Features, rows: int) -> Float32:
    """``[rows, sum of widths] float32``: the columns concatenated; no columns if there are none."""
    return np.concatenate([np.zeros((rows, 0), np.float32), *columns.values()], axis=1, dtype=np.float32)


def last_windows(events: EventLists, days: float, number: int = 5) -> list[tuple[int, int]]:
    """Start and end of the newest windows of the events, the latest first."""
    width, last = int(days * DAY_US), int(events.times.max())
    return [(last - back * width, last - (back - 1) * width) for back in range(1, number + 1)]


class MovingCounts:
    """A side's count features as of any moment, as the features job computes them for its own.

    ``clock``: of all events of the side.
    """

    def __init__(self, data: TrainingData, events: EventLists, side: Side) -> None:
        self.features = count_features(data.schema.side(side))
        self._numbers: Mapping[str, FittedNumbers] = data.numbers[side]
        self.clock = clock_of(events, side)
        self._clocks: dict[str | None, Clock] = {None: self.clock}
        for action in {feature.action for feature in self.features} - {None}:
            code = data.schema.action_names.index(action)
            self._clocks[action] = clock_of(events.where(events.actions == code), side)

    def at(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Float32:
        """``[owners, windows] float32``, scaled: each owner's events in the windows before its moment, all features
        side by side in the schema's order.
        """
        return side_by_side(self.columns(owners, moments), len(owners))

    def columns(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Features:
        """The same by feature, each ``[owners, windows] float32``."""
        return {feature.name: self._of(feature, owners, moments) for feature in self.features}

    def _of(self, feature: CountFeature, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Float32:
        clock, numbers = self._clocks[feature.action], self._numbers[feature.name]
        counts = [clock.count(owners, np.asarray(moments) - days * DAY_US, moments) for days in feature.window_days]
        return numbers.scaled(np.stack(counts, 1).astype(np.float64)).astype(np.float32)


class Moving:
    """All of a side's features that change with the moment, as the features job computes them for its own.

    A time since is computed from the column that the job encoded; times in the future stay at 0 days.
    """

    def __init__(self, data: TrainingData, events: EventLists, side: Side) -> None:
        self.counts = MovingCounts(data, events, side)
        self._as_of_us, self._numbers = data.as_of_us, data.numbers[side]
        columns = data.items if side == "item" else data.users
        self._days: dict[str, npt.NDArray[np.float64]] = {}
        self._present: dict[str, npt.NDArray[np.bool_]] = {}
        for feature in data.schema.side(side):
            if isinstance(feature, TimeSinceFeature):
                scaled, present = np.asarray(columns[feature.name], np.float64).T
                self._days[feature.name] = self._numbers[feature.name].restored(scaled)
                self._present[feature.name] = present > 0

    def at(self, owners: npt.NDArray[np.integer], moment: int) -> Float32:
        """``[owners, sum of widths] float32``: the columns concatenated, in the order of ``moving_features``."""
        return side_by_side(self.columns(owners, moment), len(owners))

    def columns(self, owners: npt.NDArray[np.integer], moment: int) -> Features:
        """Encoded columns of these owners as of the moment, by feature."""
        found = self.counts.columns(owners, moment)
        passed = (self._as_of_us - moment) / DAY_US
        for name, days in self._days.items():
            present = self._present[name][owners]
            scaled = self._numbers[name].scaled(np.maximum(days[owners] - passed, 0.0))
            found[name] = np.stack([np.where(present, scaled, 0.0), present], 1).astype(np.float32)
        return found


class MomentSampler:
    """Draws the moments of batches, and counts what is known at one."""

    def __init__(
        self, data: TrainingData, events: EventLists, taken: npt.NDArray[np.bool_], settings: WindowsSettings
    ) -> None:
        self._of_items, self._of_users = Moving(data, events, "item"), Moving(data, events, "user")
        self.users = self._of_users.counts.clock
        # Positives are items that were taken, not those that were only seen.
        chosen = events.where(taken)
        owners, order = chosen.owners, np.argsort(chosen.times, kind="stable")
        self._times, self._rows = chosen.times[order], chosen.rows[order]
        # When the event's user last had this item before, and when the user's first event was.
        self._last, self._first = _last_before(chosen, owners)[order], _firsts(events)[owners][order]
        self._items = data.num_items
        self.window_us = int(settings.window_days * DAY_US)
        self._min_history_us = int(settings.min_history_days * DAY_US)

    def draw(self, generator: np.random.Generator) -> int:
        """A moment at most a window before some event, such that the whole window after it is in the data.

        If the data are long enough, at least ``min_history_days`` of them are before it.
        """
        first, last = int(self._times[0]) + 1_000_000, int(self._times[-1]) - self.window_us
        first = min(first + self._min_history_us, max(last, first))
        anchor = int(self._times[int(generator.random() * len(self._times))])
        moment = anchor - int(generator.random() * self.window_us)
        return int(np.clip(moment, first, max(last, first)))

    def takers(self, rows: Int32, moment: int) -> Int64:
        """``[rows] int64`` users who took each item within the window, of those who were there before the moment."""
        start, stop = np.searchsorted(self._times, [moment, moment + self.window_us])
        window = slice(int(start), int(stop))
        positive = (self._last[window] < moment) & (self._first[window] < moment)
        return np.bincount(self._rows[window][positive], minlength=self._items)[rows]

    def moving(self, rows: Int32, users: Int32, moment: int) -> tuple[Float32, Float32]:
        """The features of these items and users that change with the moment, as of then."""
        return self._of_items.at(rows, moment), self._of_users.at(users, moment)


def _last_before(events: EventLists, owners: Int32) -> Int64:
    """``[events]`` the time of the previous event of the same user and item; long ago if there is none."""
    # A user's events are in the order of time, which a stable sort keeps.
    width = int(events.rows.max(initial=0)) + 1
    order = np.argsort(owners.astype(np.int64) * width + events.rows, kind="stable")
    times, rows, users = events.times[order], events.rows[order], owners[order]
    again = (rows[1:] == rows[:-1]) & (users[1:] == users[:-1])
    found = np.full(len(order), np.iinfo(np.int64).min)
    found[order[1:][again]] = times[:-1][again]
    return found


def _firsts(events: EventLists) -> Int64:
    """``[users]`` the time of the first event; undefined for users without one."""
    padded = np.append(events.times, np.int64(0))
    return padded[events.offsets[:-1]]
