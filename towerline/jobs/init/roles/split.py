"""The split: which events are held out, from the time range of the data and from who is in it."""

from __future__ import annotations

import datetime
import math
from dataclasses import dataclass

import numpy as np

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import US_PER_DAY
from towerline.jobs.init.tables.sample import Sample
from towerline.jobs.init.tables.sketch import UInt64

# Shares of the days in validation and in test each: the first that holds out enough.
_SHARES = (0.1, 0.15, 0.2, 0.25)
LEAST_EVENTS = 100
LEAST_USERS = 50
_LEAST_DAYS = 3


@dataclass(frozen=True)
class SplitChoice:
    """The keys of ``[split]`` with the evidence for each, and the moment before which events are train.

    days: length of each window, for windows that roll; None where the windows are not of time.
    """

    keys: dict[str, object]
    notes: dict[str, str]
    train_before_us: int | None = None
    days: int | None = None


def choose_split(sample: Sample, *, has_time: bool, column: str | None, words: set[str]) -> SplitChoice:
    """The split for these events.

    Args:
        sample: events of a sample of users.
        has_time: whether ``sample.time`` has moments.
        column: a column with the words train, valid and test, if there is one.
        words: the words in it.
    """
    if column is not None:
        return _by_column(sample, column, words, has_time=has_time)
    windows = _windows(sample) if has_time else None
    if windows is not None:
        return windows
    per_user = float(np.median(sample.events_per_user)) if len(sample.user) else 0.0
    reason = "time range too short, or too few users with earlier events in it, for windows" if has_time else "no times"
    return SplitChoice(
        {"leave_last_out": True}, {"leave_last_out": f"{reason}; {per_user:,.0f} events per user (median)"}
    )


def _by_column(sample: Sample, column: str, words: set[str], *, has_time: bool) -> SplitChoice:
    bounds = _bounds(sample) if has_time and words == {"train", "valid", "test"} else None
    if bounds is not None:
        valid_from, test_from = bounds
        note = f"the words of {column} are cut by time: this is where"
        return SplitChoice(
            {"valid_from": _as_date(valid_from), "test_from": _as_date(test_from)},
            {"valid_from": note, "test_from": note},
            valid_from,
        )
    keys: dict[str, object] = {"column": column}
    notes = {"column": f"has the words {', '.join(sorted(words))}"}
    if "valid" not in words:
        keys["valid_fraction"] = 0.1
        notes["valid_fraction"] = "no event is marked valid"
    return SplitChoice(keys, notes)


def _bounds(sample: Sample) -> tuple[int, int] | None:
    """The moments that cut the words from each other, at a day's start where one does; None where none does."""
    assert sample.split is not None
    words = np.asarray(sample.split.to_numpy(zero_copy_only=False))
    parts = [sample.time[words == word] for word in ("train", "valid", "test")]
    if any(len(part) == 0 for part in parts):
        return None
    cuts = []
    for early, late in ((parts[0], parts[1]), (parts[1], parts[2])):
        if early.max() >= late.min():
            return None
        day = int(late.min()) // US_PER_DAY * US_PER_DAY
        cuts.append(day if day > early.max() else int(late.min()))
    return cuts[0], cuts[1]


def _windows(sample: Sample) -> SplitChoice | None:
    if len(sample.time) == 0:
        return None
    first, last = (float(moment) for moment in np.quantile(sample.time, [0.001, 0.999], method="nearest"))
    days = (last - first) / US_PER_DAY
    end = math.floor(last / US_PER_DAY) + 1
    if days < _LEAST_DAYS:
        return None
    for share in _SHARES:
        length = _whole(share * days)
        test_from, valid_from = (end - length) * US_PER_DAY, (end - 2 * length) * US_PER_DAY
        test, valid = sample.time >= test_from, (sample.time >= valid_from) & (sample.time < test_from)
        known = [
            _known(sample.user, sample.time, part, before) for part, before in ((valid, valid_from), (test, test_from))
        ]
        if _enough(sample, valid, known[0]) and _enough(sample, test, known[1]):
            notes = {
                "valid_from": _window_note(sample, valid, known[0], length),
                "test_from": _window_note(sample, test, known[1], length),
            }
            keys: dict[str, object] = {"valid_from": _as_date(valid_from), "test_from": _as_date(test_from)}
            return SplitChoice(keys, notes, valid_from, days=length)
    return None


def _whole(days: float) -> int:
    """Whole weeks from a week on, whole days below."""
    return max(1, round(days)) if days < 7 else 7 * max(1, round(days / 7))


def _known(users: UInt64, times: Int64, part: np.ndarray[tuple[int], np.dtype[np.bool_]], before: int) -> int:
    """Users of a part who have events before it."""
    return len(np.intersect1d(users[part], users[times < before]))


def _enough(sample: Sample, part: np.ndarray[tuple[int], np.dtype[np.bool_]], known: int) -> bool:
    users = len(np.unique(sample.user))
    least_users = min(LEAST_USERS, max(1, users // 4)) if sample.share >= 1.0 else LEAST_USERS
    least_events = min(LEAST_EVENTS, max(1, len(sample.user) // 20))
    return int(part.sum()) >= least_events and known >= least_users


def _window_note(sample: Sample, part: np.ndarray[tuple[int], np.dtype[np.bool_]], known: int, days: int) -> str:
    events, users = int(part.sum() / sample.share), len(np.unique(sample.user[part]))
    about = "" if sample.share >= 1.0 else "about "
    return (
        f"{days:,} days, {about}{events:,} events of {int(users / sample.share):,} users, "
        f"{known / max(users, 1):.0%} of whom have earlier ones"
    )


def _as_date(us: int) -> datetime.date | datetime.datetime:
    moment = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(microseconds=us)
    return moment.date() if us % US_PER_DAY == 0 else moment


def history_length(sample: Sample, *, by_time: bool) -> tuple[int, str]:
    """The length of histories: what nine of ten users have, rounded, within what trains in reasonable time."""
    counts = sample.events_per_user
    if len(counts) == 0:
        return 50, ""
    ninth, median = (float(value) for value in np.quantile(counts, [0.9, 0.5]))
    most = 500 if by_time else 50
    length = int(min(most, max(10, math.ceil(ninth / 10) * 10)))
    return length, f"events per user: {median:,.0f} (median), {ninth:,.0f} (nine of ten have fewer)"
