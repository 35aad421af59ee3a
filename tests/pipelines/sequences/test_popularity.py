"""Popularity and its half-life against loops and by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sequences.event_lists import EventLists, offsets_of
from pipelines.sequences.popularity import HalfLife, chosen_half_life, popularity
from tests.pipelines.sequences.test_event_lists import WEIGHTS, drawn

DAY_US = 86_400_000_000
ITEMS = 400


def in_days(events: EventLists) -> EventLists:
    return dataclasses.replace(events, times=events.times * DAY_US)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 1.0, 14.0]))
def test_popularity_is_what_a_loop_adds_up(seed: int, half_life: float | None) -> None:
    events = in_days(drawn(seed))
    newest, expected = events.times.max(initial=0), np.zeros(8)
    for row, time, action in zip(events.rows, events.times, events.actions, strict=True):
        age = float(newest - time) / DAY_US
        expected[row] += WEIGHTS[action] * (1.0 if half_life is None else 0.5 ** (age / half_life))
    assert popularity(events, WEIGHTS, 8, half_life) == pytest.approx(expected)


def test_what_was_ever_chosen_is_above_what_never_was() -> None:
    """A hundred years at a half-life of a week."""
    events = EventLists(
        np.array([0, 2]), np.array([1, 2], np.int32), np.array([0, 36_500 * DAY_US]), np.zeros(2, np.int8),
        np.zeros(2, np.int8),
    )  # fmt: skip
    found = popularity(events, (1.0,), 3, 7.0)
    assert found[0] == 0.0 < found[1] < found[2] == 1.0


def shop(seed: int, fashion_days: float | None, *, splits: bool = True, new: bool = True) -> EventLists:
    """Users each with three events within a day, over 300 days; what is in fashion changes every ``fashion_days``,
    the last time some days before the later events begin.

    Items have a lasting share too. The last 20 days are valid, and with ``new`` each user comes once.
    """
    rng = np.random.default_rng(seed)
    users = 3000
    begins = rng.uniform(0, 300, users)
    lasting = rng.permutation(1.0 / (1 + np.arange(ITEMS)))
    rows = np.zeros((users, 3), np.int32)
    for user, day in enumerate(begins):
        share = lasting
        if fashion_days is not None:
            era = np.random.default_rng((seed, int((day + 5) // fashion_days)))
            share = era.permutation(lasting)
        rows[user] = rng.choice(ITEMS, 3, p=share / share.sum(), replace=False)
    times = (begins[:, None] + np.array([0.0, 0.2, 0.4])).reshape(-1)
    owners = np.repeat(np.arange(users) if new else rng.integers(0, 200, users), 3)
    order = np.lexsort((times, owners))
    valid = times[order] >= 280 if splits else rng.random(users * 3) < 0.1
    return EventLists(
        offsets_of(np.bincount(owners)),
        rows.reshape(-1)[order],
        (times[order] * DAY_US).astype(np.int64),
        np.zeros(users * 3, np.int8),
        valid.astype(np.int8),
    )


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_the_half_life_follows_fashion(seed: int, new: bool, splits: bool) -> None:
    """Where fashion changes every month, a short half-life finds much more than none; where it never does, none does.

    Also where the valid part is spread over all time, as leave-last-out spreads it.
    """
    quick = chosen_half_life(shop(seed, 30.0, splits=splits, new=new), (1.0,), ITEMS)
    assert quick.days is not None
    assert quick.days <= 30.0
    assert quick.recall > 1.3 * quick.undecayed
    assert quick.new_users == new
    steady = chosen_half_life(shop(seed, None, splits=splits, new=new), (1.0,), ITEMS)
    assert steady.days is None or steady.recall < 1.1 * steady.undecayed


def test_recall_by_hand_chooses() -> None:
    """120 users come in the valid part and choose item 1. In train, item 0 was chosen 90 times a year ago and item 1
    once, yesterday; 40 others twice half a year ago: with 41 items before it, item 1 is within the first 20 only if
    events decay."""
    rows = np.concatenate([np.zeros(90), np.repeat(np.arange(2, 42), 2), [1], np.ones(120)]).astype(np.int32)
    days = np.concatenate([np.full(90, 0), np.full(80, 180), [364], np.full(120, 365)])
    events = EventLists(
        offsets_of(np.ones(len(rows), int)), rows, days * DAY_US, np.zeros(len(rows), np.int8),
        (days == 365).astype(np.int8),
    )  # fmt: skip
    found = chosen_half_life(events, (1.0,), 42)
    assert found.days is not None
    assert (found.users, found.new_users, found.recall, found.undecayed) == (120, True, 1.0, 0.0)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_context_changes_neither_half_life_nor_popularity(seed: int) -> None:
    """Impressions among the events, and whatever is in the test part."""
    events, rng = shop(7, 30.0), np.random.default_rng(seed)
    added = rng.integers(0, 3, events.num_users)
    n = int(added.sum())
    owners = np.concatenate([events.owners, np.repeat(np.arange(events.num_users), added)])
    # Not later than the newest event that counts.
    times = np.concatenate([events.times, rng.integers(0, events.times.max(), n)])
    order = np.lexsort((times, owners))
    mixed = EventLists(
        offsets_of(np.bincount(owners, minlength=events.num_users)),
        np.concatenate([events.rows, rng.integers(0, 5, n)])[order].astype(np.int32),
        times[order],
        np.concatenate([events.actions, np.ones(n)])[order].astype(np.int8),
        (times[order] >= 280 * DAY_US).astype(np.int8),
    )
    weights = (2.0, 0.0)
    found = chosen_half_life(mixed, weights, ITEMS)
    assert found == chosen_half_life(events, weights, ITEMS)
    np.testing.assert_allclose(
        popularity(mixed, weights, ITEMS, found.days), popularity(events, weights, ITEMS, found.days)
    )


def test_with_few_users_nothing_is_chosen() -> None:
    events = in_days(drawn(2))
    assert chosen_half_life(events, WEIGHTS, 8) == HalfLife()
    nothing = events.where(np.zeros(events.num_events, bool))
    assert chosen_half_life(nothing, WEIGHTS, 8) == HalfLife()
