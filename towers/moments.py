"""What is true at a moment: places in the events by owner and time, and count features as of then.

An example of training stands at a moment of its own; what counts as recent there is counted from the events before
it. Vectorised NumPy, no TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from pipelines.schema import CountFeature, Side
from pipelines.vocabulary import FittedNumbers
from towers.inputs import DAY_US, Events, Int64, TrainingData

Float32 = npt.NDArray[np.float32]


class Clock:
    """Finds places in events that stand in order of owner and time: one search for many owners at once.

    Args:
        owners: ``[events]`` ascending.
        times: ``[events] int64`` microseconds, ascending within an owner.
    """

    def __init__(self, owners: npt.NDArray[np.integer], times: Int64) -> None:
        self.first = int(times.min()) if len(times) else 0
        self.last = int(times.max()) if len(times) else 0
        seconds = (times - self.first) // 1_000_000
        self.span = int(seconds.max(initial=0)) + 2
        self.keys = owners.astype(np.int64) * self.span + seconds

    @classmethod
    def of_items(cls, events: Events) -> Clock:
        """The clock in which an item's events stand together."""
        order = np.lexsort((events.times, events.rows))
        return cls(events.rows[order], events.times[order])

    def place(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Int64:
        """``[owners] int64`` the first event of each owner at or after the moment (whole seconds)."""
        seconds = np.clip(-(-(np.asarray(moments) - self.first) // 1_000_000), 0, self.span - 1)
        found: Int64 = np.searchsorted(self.keys, owners.astype(np.int64) * self.span + seconds)
        return found

    def count(self, owners: npt.NDArray[np.integer], starts: Int64 | int, stops: Int64 | int) -> Int64:
        """``[owners] int64`` events with ``start <= time < stop``."""
        return self.place(owners, stops) - self.place(owners, starts)


def last_windows(events: Events, days: float, number: int = 5) -> list[tuple[int, int]]:
    """Start and end of the newest windows of the events, the latest first."""
    width, last = int(days * DAY_US), int(events.times.max())
    return [(last - back * width, last - (back - 1) * width) for back in range(1, number + 1)]


class Counts:
    """A side's count features as of any moment, as the features job gives them at its own.

    ``width``: columns of all the features together, in the schema's order.
    """

    def __init__(self, data: TrainingData, events: Events, side: Side) -> None:
        self.features = [feature for feature in data.schema.side(side) if isinstance(feature, CountFeature)]
        self.width = sum(len(feature.window_days) for feature in self.features)
        self._numbers: Mapping[str, FittedNumbers] = data.numbers[side]
        self._clocks: dict[str | None, Clock] = {}
        for action in {feature.action for feature in self.features}:
            chosen = events
            if action is not None:
                chosen = events.where(events.actions == data.schema.action_names.index(action))
            by_user = side == "user"
            self._clocks[action] = Clock(chosen.user_of_event(), chosen.times) if by_user else Clock.of_items(chosen)

    def at(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Float32:
        """``[owners, width] float32``, scaled: each owner's events in the windows before its moment."""
        columns = self.columns(owners, moments)
        return np.concatenate([np.zeros((len(owners), 0), np.float32), *columns.values()], axis=1)

    def columns(self, owners: npt.NDArray[np.integer], moments: Int64 | int) -> dict[str, Float32]:
        """The same by feature, each ``[owners, windows] float32``."""
        return {feature.name: self._of(feature, owners, moments) for feature in self.features}

    def _of(self, feature: CountFeature, owners: npt.NDArray[np.integer], moments: Int64 | int) -> Float32:
        clock, numbers = self._clocks[feature.action], self._numbers[feature.name]
        counts = [clock.count(owners, np.asarray(moments) - days * DAY_US, moments) for days in feature.window_days]
        return numbers.scaled(np.stack(counts, 1).astype(np.float64)).astype(np.float32)
