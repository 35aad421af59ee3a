"""Counts as of a moment, against counting one by one; the future never counts; demand follows what sells."""

from __future__ import annotations

import dataclasses

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.towers.tiny import ITEMS, tiny_data
from towers.inputs import DAY_US, Events
from towers.model import TwoTowers
from towers.moments import Clock, Counts
from towers.sampling import Sampler
from towers.settings import TowersSettings
from towers.starting import start_from_svd

pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=25)


@given(
    events=pairs,
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=25),
    width=st.integers(0, 30),
)
def test_a_clock_counts_as_counting_one_by_one_does(
    events: list[tuple[int, int]], asked: list[tuple[int, int]], width: int
) -> None:
    events = sorted(events)
    owners, times = (np.array([event[place] for event in events], np.int64) for place in (0, 1))
    askers, stops = (np.array([one[place] for one in asked], np.int64) for place in (0, 1))
    hour = 3_600_000_000
    found = Clock(owners, times * hour).count(askers, (stops - width) * hour, stops * hour)
    assert found.tolist() == [
        sum(owner == asker and stop - width <= time < stop for owner, time in events) for asker, stop in asked
    ]


def test_a_batch_counts_what_was_before_its_moment() -> None:
    """The moment is the only one that explains the ages of the histories; counts are recounted from the events."""
    data = tiny_data("time")
    settings = TowersSettings(batch_users=32, uniform_negatives=20, min_steps=4, window_days=7.0).resolved(data.schema)
    events = data.events.before(1)
    for batch in Sampler(data, events, settings).epoch(np.random.default_rng(0)):
        query, length = 0, int((batch.history[0] >= 0).sum())
        own = slice(events.offsets[batch.users[query]], events.offsets[batch.users[query] + 1])
        positives = batch.rows[batch.positives[batch.positives[:, 0] == query, 1]]
        row = batch.rows[batch.history[query, length - 1]]
        newest = events.times[own][events.rows[own] == row]
        moments = newest + np.round(batch.ages_days[query, length - 1].astype(np.float64) * DAY_US).astype(np.int64)
        expected = []
        for moment in moments:
            counts = [
                [((events.rows == item) & (events.times < moment) & (events.times >= moment - days * DAY_US)).sum()
                 for days in (7, 28)]
                for item in batch.rows
            ]  # fmt: skip
            expected.append(np.log1p(counts))
        assert len(positives)
        # float32 days are exact to a minute here: an event that near the window's edge may count either way.
        assert min(np.abs(batch.item_counts - one).max() for one in expected) < np.log(2) + 1e-6
        assert min((np.abs(batch.item_counts - one) > 1e-5).mean() for one in expected) < 0.02


def test_later_events_never_change_counts() -> None:
    data = tiny_data("time")
    moment = 30 * DAY_US
    early = data.events.where(data.events.times < moment)
    everyone = np.arange(ITEMS, dtype=np.int32)
    known, all_of_it = (Counts(data, events, "item").at(everyone, moment) for events in (early, data.events))
    np.testing.assert_array_equal(known, all_of_it)
    assert known.sum() > 0


def test_demand_lifts_what_sells_more_of_late() -> None:
    """Half of the items sell in the first half of the time, the others in the second: those are lifted."""
    rng = np.random.default_rng(3)
    data = tiny_data("time")
    users, each = data.events.users, 40
    times = np.sort(rng.integers(0, 120 * DAY_US, (users, each)), axis=1).reshape(-1)
    late = times > 60 * DAY_US
    rows = np.where(rng.random(len(times)) < 0.9, late, ~late) * (ITEMS // 2) + rng.integers(0, ITEMS // 2, len(times))
    zeros = np.zeros(len(rows), np.int8)
    events = Events(np.arange(users + 1) * each, rows.astype(np.int32), times, zeros, zeros)
    data = dataclasses.replace(data, events=events, item_frequency=np.bincount(rows, minlength=ITEMS))
    settings = TowersSettings(embedding_dim=32, content_share=0.15, window_days=14.0).resolved(data.schema)
    model = TwoTowers(data, settings, 1)
    start_from_svd(model, data, events)
    lift = model.item_tower.lift(Counts(data, events, "item").at(np.arange(ITEMS), int(times.max()))).numpy()[:, 0]
    assert lift[ITEMS // 2 :].mean() > lift[: ITEMS // 2].mean() + 0.3
