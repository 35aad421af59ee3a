"""Popularity: how much every item is chosen at the moment, for users of whom nothing is known. NumPy alone.

An event counts as much as its action weighs, halved with each half-life of age. The half-life is the one whose ranking,
made of earlier events, finds most of what later users chose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.contracts.arrays import Float64, Int64
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.strengths import HALF_LIVES_DAYS, by_item, counting, strengths

# The recalls at these, as a geometric mean, choose the half-life.
_CHOSEN_AT = (20, 100)
# With fewer users than this to choose on, chance would choose: then nothing decays.
_FEWEST_USERS = 50
# With fewer new users and fewer users than these, the windows before the valid part are asked too, at most so many.
_ENOUGH_NEW, _ENOUGH_USERS, _WINDOWS = 100, 1000, 5
# Share of the events that are later ones, where valid does not begin at one moment for all users.
_LATER = 0.1


@dataclass(frozen=True)
class HalfLife:
    """A half-life and what it was chosen by.

    days: None where events of any age count alike. users: number of users it was chosen on, 0 if there were too few.
    new_users: these had chosen nothing before. recall: of their choices in the first 20, with it; undecayed: without.
    """

    days: float | None = None
    users: int = 0
    new_users: bool = False
    recall: float | None = None
    undecayed: float | None = None

    def __str__(self) -> str:
        """For people: what was chosen, and why."""
        if not self.users:
            return f"events of any age count alike: no times, or fewer than {_FEWEST_USERS} users to choose by"
        who = f"{self.users} {'new users' if self.new_users else 'users'}"
        if self.days is None:
            return f"events of any age count alike: recall@20 of {who} is {self.recall:.4f}, highest without decay"
        return (
            f"an event counts half after {self.days:g} days: recall@20 of {who} is {self.recall:.4f}, without decay "
            f"{self.undecayed:.4f}"
        )


def chosen_half_life(events: EventLists, weights: Sequence[float], items: int) -> HalfLife:
    """Chooses the half-life by what users chose in the valid part, from the events before it.

    Users who had chosen nothing before decide, if they are enough, else all. If even these are few, windows of the same
    length before the valid part are asked as well. Where the valid part does not begin at one moment for all users, the
    newest tenth of the events takes its place.

    Args:
        events: before the test part, with times.
        weights: of each action, by its code; events of weight 0 count nowhere.
        items: size of the catalogue.
    """
    counted = events.where(counting(events, weights))
    tried: list[_Tried] = []
    for start, stop in _windows(counted):
        before, after = counted.window(None, start), counted.window(start, stop)
        if before.num_events == 0:
            break
        tried.append(_Tried.of(before, after, weights, items))
        if sum(one.new for one in tried) >= _ENOUGH_NEW or sum(one.users for one in tried) >= _ENOUGH_USERS:
            break
    new, users = sum(one.new for one in tried), sum(one.users for one in tried)
    only_new, judges = new >= _FEWEST_USERS, new if new >= _FEWEST_USERS else users
    if judges < _FEWEST_USERS:
        return HalfLife()
    hits = np.sum([one.hits_of_new if only_new else one.hits for one in tried], axis=0) / judges
    best = int(np.argmax(np.log(np.maximum(hits, 1e-9)).mean(axis=1)))
    return HalfLife(HALF_LIVES_DAYS[best], judges, only_new, float(hits[best, 0]), float(hits[0, 0]))


def popularity(events: EventLists, weights: Sequence[float], items: int, half_life_days: float | None) -> Float64:
    """``[items] float64``: the sum of the strengths of each item's events, ages from the newest event on.

    Args:
        events: those that are known.
        weights: of each action, by its code.
        items: size of the catalogue.
        half_life_days: None counts events of any age alike.
    """
    newest = int(events.times.max(initial=0))
    return by_item(events, strengths(events, weights, half_life_days, newest), items)


@dataclass(frozen=True, eq=False)
class _Tried:
    """What each half-life finds in one window. users, new: numbers of users with a choice in it, and of those without
    one before. hits, hits_of_new: ``[half-lives, cuts] float64``, the sums of their recalls.
    """

    users: int
    new: int
    hits: Float64
    hits_of_new: Float64

    @classmethod
    def of(cls, before: EventLists, after: EventLists, weights: Sequence[float], items: int) -> _Tried:
        """Ranks by the events ``before`` a window, for the users with events in it (``after``)."""
        users = np.flatnonzero(after.counts)
        truth, is_new = ItemSets.of_events(after.of_users(users)), before.counts[users] == 0
        hits = np.array([_hits(popularity(before, weights, items, days), truth) for days in HALF_LIVES_DAYS])
        return cls(len(users), int(is_new.sum()), hits.sum(axis=2), hits[:, :, is_new].sum(axis=2))


def _windows(events: EventLists) -> Iterator[tuple[int, int]]:
    """Start and end of the valid part, then of windows of its length before it, the latest first."""
    if events.num_events == 0:
        return
    valid, newest = events.splits > 0, int(events.times.max())
    start = int(np.quantile(events.times, 1.0 - _LATER, method="higher"))
    if valid.any() and not valid.all() and events.times[~valid].max() < events.times[valid].min():
        start = int(events.times[valid].min())
    width = newest - start + 1
    for back in range(_WINDOWS):
        yield start - back * width, start - (back - 1) * width


def _hits(strength: Float64, truth: ItemSets) -> Float64:
    """``[cuts, users] float64``: recall of the most popular items, ``hits / min(k, |truth|)``."""
    order = np.argsort(-strength, kind="stable")
    place: Int64 = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    found = [np.bincount(truth.owners, place[truth.rows] < k, truth.num_users) for k in _CHOSEN_AT]
    return np.stack([hits / np.minimum(truth.counts, k) for hits, k in zip(found, _CHOSEN_AT, strict=True)])
