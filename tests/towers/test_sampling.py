"""Batches: nothing of the future in a history, positives and candidates where they belong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.towers.tiny import tiny_data
from towers.inputs import DAY_US, Events
from towers.sampling import Sampler, histories, ranges
from towers.settings import TowersSettings


def sampler(kind: str, **given_settings: object) -> Sampler:
    data = tiny_data(kind)
    wanted = {"batch_users": 32, "uniform_negatives": 20, "min_steps": 4} | given_settings
    resolved = TowersSettings.model_validate(wanted).resolved(data.schema)
    return Sampler(data, data.events.before(1), resolved)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_positives_are_candidates_and_weights_add_up_to_one(kind: str) -> None:
    for batch in sampler(kind).epoch(np.random.default_rng(0)):
        assert batch.candidates.max() < len(batch.rows)
        assert batch.positives[:, 1].max() < len(batch.candidates)
        assert batch.weights.sum() == pytest.approx(1.0, rel=1e-5)
        assert len(np.unique(batch.positives, axis=0)) == len(batch.positives)
        assert len(batch.log_inclusion) == len(batch.candidates)
        assert np.all(batch.log_inclusion <= 0)


def test_a_window_lies_after_its_history() -> None:
    """Each history event is older than each positive: with the user's own events as witness."""
    given_events = tiny_data("time").events.before(1)
    for batch in sampler("time", window_days=7.0).epoch(np.random.default_rng(1)):
        catalogue = batch.rows
        for query, user in enumerate(batch.users):
            own = slice(given_events.offsets[user], given_events.offsets[user + 1])
            times, rows = given_events.times[own], given_events.rows[own]
            length = int((batch.history[query] >= 0).sum())
            known = catalogue[batch.history[query][:length]]
            # The moment is where the history ends: it is a run of the user's events, and the positives follow it.
            ends = [end for end in range(length, len(rows) + 1) if np.array_equal(rows[end - length : end], known)]
            positives = set(catalogue[batch.candidates[batch.positives[batch.positives[:, 0] == query, 1]]])
            assert any(
                end < len(rows)
                and positives == set(rows[end:][times[end:] < times[end] + 7 * DAY_US]) & positives
                and set(rows[end:][times[end:] <= times[end]]) <= positives
                for end in ends
            )


def test_the_next_item_is_the_positive_of_a_position() -> None:
    events = tiny_data("order").events.before(1)
    batch = next(iter(sampler("order").epoch(np.random.default_rng(0))))
    for query, candidate in batch.positives:
        user, position = batch.query_users[query], batch.query_positions[query]
        start = max(int(events.offsets[batch.users[user] + 1]) - 11, int(events.offsets[batch.users[user]]))
        assert batch.rows[batch.history[user, position]] == events.rows[start + position]
        assert batch.rows[batch.candidates[candidate]] == events.rows[start + position + 1]


def test_in_sets_a_positive_is_not_in_its_own_history() -> None:
    """Unless the user has the item twice: the tiny data are made unique for this test."""
    data = tiny_data("set")
    unique = np.concatenate(
        [
            np.isin(np.arange(16), np.unique(data.events.rows[u * 16 : u * 16 + 16], return_index=True)[1])
            for u in range(120)
        ]
    )
    resolved = TowersSettings(history_encoder="mean", batch_users=32, uniform_negatives=10).resolved(data.schema)
    made = Sampler(data, data.events.before(1).where(unique[data.events.splits < 1]), resolved)
    for batch in made.epoch(np.random.default_rng(0)):
        for query, candidate in batch.positives:
            assert batch.candidates[candidate] not in batch.history[query]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=12), st.integers(1, 6), st.integers(0, 5))
def test_later_events_never_change_a_history(first: list[tuple[int, int]], length: int, more: int) -> None:
    first = sorted(first)
    later = [(60 + step, 1) for step in range(more)]

    def of(events: list[tuple[int, int]]) -> Events:
        columns = np.array(events, np.int64).reshape(-1, 2)
        zeros = np.zeros(len(columns), np.int8)
        return Events(np.array([0, len(columns)]), columns[:, 1].astype(np.int32), columns[:, 0], zeros, zeros)

    starts, stops = np.array([0]), np.array([len(first)])
    now = np.array([100 * DAY_US])
    short, long = (histories(of(events), starts, stops, now, length) for events in (first, first + later))
    np.testing.assert_array_equal(short.rows, long.rows)
    np.testing.assert_array_equal(short.ages_days, long.ages_days)
    kept = [row for _, row in first][-length:]
    assert short.rows[0].tolist() == kept + [-1] * (length - len(kept))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=10))
def test_ranges_are_those_of_python(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], np.int64)
    stops = starts + np.array([count for _, count in pairs], np.int64)
    expected = [value for start, stop in zip(starts, stops, strict=True) for value in range(start, stop)]
    assert ranges(starts, stops).tolist() == expected


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    made = sampler("order", batch_users=10_000)
    assert made.steps == 1
    assert len(next(iter(made.epoch(np.random.default_rng(0)))).users) == len(made.users)


def test_the_same_generator_gives_the_same_batches() -> None:
    one, two = (list(sampler("time").epoch(np.random.default_rng(4))) for _ in range(2))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(left.positives, right.positives)
