"""Baselines against counting by hand and against implicit asked directly. The world's actions weigh 1 and 3."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.held_out import held_out
from index.evaluation.sections.baselines import rank_baseline
from index.evaluation.sections.own_frequency import (
    chosen_half_life,
    own_strengths,
    own_then_popular,
    popular_order,
)
from index.evaluation.settings import BASELINES, EvaluationSettings
from index.evaluation.subject import EvaluationData
from index.inference.user_records import UserRecords
from pipelines.sequences.event_lists import EventLists, offsets_of
from pipelines.sequences.reader import Sequences
from tests.index.evaluation.worlds import TEST_FROM_US

SETTINGS = EvaluationSettings(k=(5, 20), waterfall_k=5, recent_days=7)
DAY_US = 86_400_000_000
WEIGHTS = {0: 1.0, 1: 3.0}


@pytest.fixture(scope="module")
def data(written):
    return EvaluationData.open(written.features, SETTINGS)


def events_of(data, users=None):
    """(user, row, time, weight) of each event before the test part, by a loop."""
    events = data.users.events
    for user in range(events.num_users) if users is None else users:
        part = slice(int(events.offsets[user]), int(events.offsets[user + 1]))
        columns = (events.rows[part], events.times[part], events.actions[part], events.splits[part])
        for row, time, action, split in zip(*(column.tolist() for column in columns), strict=True):
            if split < 2:
                yield user, row, time, WEIGHTS[action]


def summed(events) -> Counter:
    counts: Counter = Counter()
    for _, row, _, weight in events:
        counts[row] += weight
    return counts


def past_of(data) -> list[Counter]:
    """Each evaluated user's items before the test part, weighed."""
    return [summed(events_of(data, [user])) for user in data.held_out.users.tolist()]


def by_count(counts: Counter, items: int) -> list[int]:
    return sorted(range(items), key=lambda row: (-counts[row], row))


def test_popularity_adds_up_the_weights_of_the_actions(data):
    order = by_count(summed(events_of(data)), len(data.item_ids))
    found = rank_baseline("popularity", data, SETTINGS)
    assert (found.served == np.array(order[:20])).all()
    for ranked, met in zip(found.novel.tolist(), past_of(data), strict=True):
        assert ranked == [row for row in order if row not in met][:20]


def test_recent_popularity_counts_the_last_days(data):
    newest = max(time for _, _, time, _ in events_of(data))
    recent = [event for event in events_of(data) if event[2] > newest - 7 * DAY_US]
    order = by_count(summed(recent), len(data.item_ids))
    assert (rank_baseline("recent_popularity", data, SETTINGS).served == np.array(order[:20])).all()


def test_own_frequency_then_popularity(data):
    everyone = summed(events_of(data))
    order = by_count(everyone, len(data.item_ids))
    found = rank_baseline("own_frequency", data, SETTINGS)
    for ranked, met in zip(found.served.tolist(), past_of(data), strict=True):
        own = sorted(met, key=lambda row: (-met[row], -everyone[row], row))
        assert ranked == [*own, *(row for row in order if row not in met)][:20]


def test_own_decayed_ranks_by_weights_halved_with_the_age(data):
    """Against a loop, with the half-life that the validation part chose."""
    half_life = chosen_half_life(data.past, data.schema.action_weights, data.num_items)
    order = by_count(summed(events_of(data)), len(data.item_ids))
    found = rank_baseline("own_decayed", data, SETTINGS)
    for user, ranked in zip(data.held_out.users.tolist(), found.served.tolist(), strict=True):
        own: Counter = Counter()
        for _, row, time, weight in events_of(data, [user]):
            own[row] += weight * (1.0 if half_life is None else 0.5 ** ((TEST_FROM_US - time) / DAY_US / half_life))
        wanted = sorted(own, key=lambda row: (-round(np.log(own[row]), 9), order.index(row)))
        assert ranked == [*wanted, *(row for row in order if row not in own)][:20]


def drifting(half_life_days: float, seed: int = 3) -> EventLists:
    """Users who choose anew among their own items by recency: train for 300 days, then ten of validation."""
    rng = np.random.default_rng(seed)
    rows, times = [], []
    for _ in range(150):
        when = np.sort(rng.uniform(0, 310, 160))
        chosen = rng.integers(0, 3000, 160)
        for place in range(1, 160):
            ages = when[place] - when[:place]
            chances = 0.5 ** (ages / half_life_days)
            if rng.random() < 0.5:
                chosen[place] = chosen[rng.choice(place, p=chances / chances.sum())]
        rows.append(chosen)
        times.append(when)
    whole = np.concatenate(times)
    return EventLists(
        offsets_of(np.full(150, 160)),
        np.concatenate(rows).astype(np.int32),
        (whole * DAY_US).astype(np.int64),
        np.zeros(len(whole), np.int8),
        (whole >= 300).astype(np.int8),
    )


def test_the_half_life_follows_how_fast_users_forget():
    """Users who forget within a week get a shorter one than users who forget in half a year."""
    short, long = (chosen_half_life(drifting(days), (1.0,), 3000) for days in (5.0, 1000.0))
    assert short is not None
    assert short <= 30
    assert long is None or long > short


def test_the_half_life_is_chosen_without_the_test_part(data):
    """Whatever happens in the test part, the choice is the same."""
    events = data.users.events
    rows = np.where(events.splits == 2, 0, events.rows).astype(np.int32)
    other = with_events(data, dataclasses.replace(events, rows=rows), data.schema)
    weights = data.schema.action_weights
    assert chosen_half_life(other.past, weights, data.num_items) == chosen_half_life(data.past, weights, data.num_items)


def test_without_a_validation_part_nothing_decays(data):
    train = data.past.before(1)
    assert chosen_half_life(train, data.schema.action_weights, data.num_items) is None


def with_events(data: EvaluationData, events: EventLists, schema) -> EvaluationData:
    """The same users with other events."""
    users = UserRecords(data.features, Sequences(data.users.user_ids, events))
    return dataclasses.replace(data, users=users, schema=schema, held_out=held_out(users, schema))


def with_context(data: EvaluationData, seed: int) -> EvaluationData:
    """The same events among impressions, which weigh nothing: many of few items, at any time."""
    events, rng = data.users.events, np.random.default_rng(seed)
    added = rng.integers(0, 30, events.num_users)
    owners = np.concatenate([events.owners, np.repeat(np.arange(events.num_users), added)])
    n = int(added.sum())
    when = np.concatenate([events.times, rng.integers(TEST_FROM_US - 60 * DAY_US, TEST_FROM_US + 7 * DAY_US, n)])
    order = np.lexsort((when, owners))
    valid_from = TEST_FROM_US - 7 * DAY_US
    split = np.concatenate(
        [events.splits, np.digitize(when[len(events.rows) :], [valid_from, TEST_FROM_US]).astype(np.int8)]
    )
    mixed = EventLists(
        offsets_of(np.bincount(owners, minlength=events.num_users)),
        np.concatenate([events.rows, rng.integers(0, 9, n)])[order].astype(np.int32),
        when[order],
        np.concatenate([events.actions, np.full(n, 2)])[order].astype(np.int8),
        split[order].astype(np.int8),
        np.concatenate([events.values, np.ones(n, np.float32)])[order],
    )
    schema = data.schema.model_copy(update={"actions": {**data.schema.actions, "impression": 0.0}})
    return with_events(data, mixed, schema)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), name=st.sampled_from(BASELINES))
def test_events_of_weight_0_change_no_baseline_no_truth_and_nothing_novel(data, seed, name):
    mixed = with_context(data, seed)
    before, after = (rank_baseline(name, one, SETTINGS) for one in (data, mixed))
    np.testing.assert_array_equal(before.served, after.served)
    np.testing.assert_array_equal(before.novel, after.novel)
    for part in ("truth", "seen"):
        sets = (getattr(one.held_out, part) for one in (data, mixed))
        np.testing.assert_array_equal(*(one.keys for one in sets))
    np.testing.assert_array_equal(data.item_events, mixed.item_events)


@pytest.mark.parametrize("name", ["item_knn", "als"])
def test_learned_baselines_are_those_of_implicit(data, name):
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore")
        from implicit.als import AlternatingLeastSquares
        from implicit.nearest_neighbours import CosineRecommender

        users, rows, _, weights = zip(*events_of(data), strict=True)
        counts = csr_matrix(
            (np.array(weights, np.float32), (users, rows)), shape=(data.users.num_users, data.num_items)
        )
        model = (
            CosineRecommender(K=500)
            if name == "item_knn"
            else AlternatingLeastSquares(factors=64, iterations=15, random_state=17)
        )
        model.fit(counts, show_progress=False)
        user = int(data.held_out.users[3])
        expected = model.recommend(user, counts[user], N=20, filter_already_liked_items=False)[0]
    found = rank_baseline(name, data, SETTINGS)
    assert found.served[3].tolist() == expected.tolist()
    for ranked, met in zip(found.novel.tolist(), past_of(data), strict=True):
        assert not set(ranked) & set(met)


@pytest.mark.parametrize("name", BASELINES)
def test_no_row_twice(data, name):
    found = rank_baseline(name, data, SETTINGS)
    for ranked in (*found.served.tolist(), *found.novel.tolist()):
        rows = [row for row in ranked if row >= 0]
        assert len(set(rows)) == len(rows)


def test_ties_go_to_the_lower_row():
    assert popular_order(np.array([0.0, 2.0, 1.0, 2.0, 0.0])).tolist() == [1, 3, 2, 0, 4]


def test_own_items_come_before_popular_ones_and_the_end_is_marked():
    """One user has item 2 for 3.0 and item 0 for 1.0, the other nothing; of four items six are asked."""
    events = EventLists(
        np.array([0, 2, 2]),
        np.array([2, 0], np.int32),
        np.zeros(2, np.int64),
        np.array([1, 0], np.int8),
        np.zeros(2, np.int8),
    )
    ranked = own_then_popular(own_strengths(events, (1.0, 3.0), None), np.array([3, 0, 1, 2], np.int32), 6)
    assert ranked.tolist() == [[2, 0, 3, 1, -1, -1], [3, 0, 1, 2, -1, -1]]
