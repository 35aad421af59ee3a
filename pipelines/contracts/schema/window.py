"""The window of one run where windows roll: the moments that the days in ``[split]`` come to.

The features job finds it, keeps it in its manifest's facts and in the layout of its sequences; every later stage reads
it from there.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any, Self

from pipelines.contracts.configuration import Section, as_moment
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError

# In the facts of a manifest: the window.
WINDOW_FACT = "window"
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Window(Section):
    """Moments in microseconds UTC, each the first one of a day.

    Events in ``[history_from, valid_from)`` are train, those in ``[valid_from, test_from)`` valid, those in
    ``[test_from, end)`` test; no others are used. ``history_from``: None without a bound. Where a run learns from all
    events the last three are equal.
    """

    history_from: int | None = None
    valid_from: int
    test_from: int
    end: int

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Self | None:
        """The window in a manifest's facts; None where the windows do not roll."""
        found = facts.get(WINDOW_FACT)
        return None if found is None else cls.model_validate(found)

    @property
    def bounds(self) -> tuple[int, int]:
        """The first moments of valid and of test."""
        return self.valid_from, self.test_from

    @property
    def is_whole(self) -> bool:
        """Whether all events are train."""
        return self.valid_from == self.end

    def __str__(self) -> str:
        """The dates, for people."""
        history = "" if self.history_from is None else f"history from {date_of(self.history_from)}, "
        if self.is_whole:
            return f"{history}train up to {date_of(self.end)}"
        parts = f"valid from {date_of(self.valid_from)}, test from {date_of(self.test_from)}"
        return f"{history}{parts}, end {date_of(self.end)}"


def moment(bound: datetime.datetime | int) -> int:
    """A bound of the split as the integer that event times are compared with: microseconds UTC, or the order itself."""
    if isinstance(bound, int):
        return bound
    return (bound - _EPOCH) // datetime.timedelta(microseconds=1)


def as_of_moment(given: str | datetime.date) -> datetime.datetime:
    """What a person gives as ``--as-of``: a date (its beginning) or a time, as text or not; UTC without a zone.

    Raises:
        ConfigError: it is neither.
    """
    try:
        found = as_moment(given)
    except ValueError as err:
        raise _no_moment(given) from err
    if not isinstance(found, datetime.datetime):
        raise _no_moment(given)
    return found


def _no_moment(given: object) -> ConfigError:
    return ConfigError(
        "--as-of: expected a date, or a time with its zone, such as 2026-02-01 or 2026-02-01T06:00:00+01:00, "
        f"got {given!r}"
    )


def midnight_before(time_us: int) -> int:
    """The first moment of the day (UTC) of a moment."""
    return time_us // US_PER_DAY * US_PER_DAY


def midnight_after(time_us: int) -> int:
    """The first moment of the day after that of a moment (UTC)."""
    return midnight_before(time_us) + US_PER_DAY


def date_of(time_us: int) -> str:
    """The date (UTC) of a moment; the number of days since 1970 where no calendar has it."""
    day = time_us // US_PER_DAY
    try:
        return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()
    except OverflowError:
        return f"day {day}"
