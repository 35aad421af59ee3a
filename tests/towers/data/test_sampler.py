"""Batches: nothing of the future in a history, positives and candidates where they belong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.errors import SchemaError
from pipelines.sequences.event_lists import EventLists, ranges
from tests import oracles
from tests.towers.tiny import tiny_data
from towers.data.histories import histories
from towers.data.sampler import Sampler
from towers.data.training_data import DAY_US, TrainingData
from towers.settings import settings_for


def sampler(kind: str, **given_settings: object) -> Sampler:
    data = tiny_data(kind)
    steps = {} if kind == "set" else {"min_steps": 4}
    wanted = {"batch_users": 32, "uniform_negatives": 20} | steps | given_settings
    resolved = settings_for(data.schema, **wanted)
    return Sampler(data, data.events.before(1), resolved)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_positives_are_candidates_and_weights_add_up_to_one(kind: str) -> None:
    for batch in sampler(kind).epoch(np.random.default_rng(0)):
        assert batch.candidates.max() < len(batch.rows)
        assert batch.positives[:, 1].max() < len(batch.rows)
        placed = {(query, int(batch.candidates[place])) for query, place in batch.excluded.tolist()}
        own = {tuple(pair) for pair in batch.positives.tolist()}
        assert own <= placed if kind == "order" else own == placed
        assert batch.weights.sum() == pytest.approx(1.0, rel=1e-5)
        # Each once, ascending: gradients are added up in this order.
        np.testing.assert_array_equal(np.unique(batch.positives, axis=0), batch.positives)
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
            positives = set(catalogue[batch.positives[batch.positives[:, 0] == query, 1]])
            assert any(
                end < len(rows)
                and positives == set(rows[end:][times[end:] < times[end] + 7 * DAY_US]) & positives
                and set(rows[end:][times[end:] <= times[end]]) <= positives
                for end in ends
            )


def test_the_next_item_is_the_positive_of_a_position() -> None:
    events = tiny_data("order").events.before(1)
    batch = next(iter(sampler("order", lookahead=0.0).epoch(np.random.default_rng(0))))
    for query, positive in batch.positives:
        user, position = batch.query_users[query], batch.query_positions[query]
        start = max(int(events.offsets[batch.users[user] + 1]) - 11, int(events.offsets[batch.users[user]]))
        assert batch.rows[batch.history[user, position]] == events.rows[start + position]
        assert batch.rows[positive] == events.rows[start + position + 1]
    for query in range(len(batch.query_users)):
        user = batch.users[batch.query_users[query]]
        sequence = set(events.rows[max(events.offsets[user + 1] - 11, events.offsets[user]) : events.offsets[user + 1]])
        excluded = set(batch.rows[batch.candidates[batch.excluded[batch.excluded[:, 0] == query, 1]]])
        assert excluded == sequence & set(batch.rows[batch.candidates])


@pytest.mark.parametrize(("lookahead", "reach"), [(0.0, 1), (0.4, 6), (0.5, 7), (1.0, 10)])
def test_a_further_event_counts_less_and_a_query_as_much_as_any_other(lookahead: float, reach: int) -> None:
    """Weights of each position by a loop over its sequence; of an item taken twice, the earlier event counts."""
    events = tiny_data("order").events.before(1)
    batch = next(iter(sampler("order", lookahead=lookahead).epoch(np.random.default_rng(0))))
    expected = {}
    for query, owner in enumerate(batch.query_users):
        first, stop = int(events.offsets[batch.users[owner]]), int(events.offsets[batch.users[owner] + 1])
        place = max(stop - 11, first) + int(batch.query_positions[query])
        ahead = [int(row) for row in events.rows[place + 1 : stop]][:reach]
        whole = sum(lookahead**n for n in range(len(ahead)))
        for n in reversed(range(len(ahead))):
            expected[query, ahead[n]] = lookahead**n / whole
    found = [(query, int(batch.rows[place])) for query, place in batch.positives.tolist()]
    weights = np.array([expected[pair] for pair in found])
    assert set(found) == set(expected)
    np.testing.assert_allclose(batch.weights, weights / weights.sum(), rtol=1e-5)
    # An event comes into the batch once, however many positions it follows.
    alone = next(iter(sampler("order", lookahead=0.0).epoch(np.random.default_rng(0))))
    np.testing.assert_array_equal(batch.rows[batch.candidates], alone.rows[alone.candidates])
    np.testing.assert_array_equal(batch.log_inclusion, alone.log_inclusion)


def test_in_sets_a_positive_is_not_in_its_own_history() -> None:
    """Unless the user has the item twice: the tiny data are made unique for this test."""
    data = tiny_data("set")
    unique = np.concatenate(
        [
            np.isin(np.arange(16), np.unique(data.events.rows[u * 16 : u * 16 + 16], return_index=True)[1])
            for u in range(120)
        ]
    )
    resolved = settings_for(data.schema, history_encoder="mean", batch_users=32, uniform_negatives=10)
    made = Sampler(data, data.events.before(1).where(unique[data.events.splits < 1]), resolved)
    for batch in made.epoch(np.random.default_rng(0)):
        for query, positive in batch.positives:
            assert positive not in batch.history[query]


def test_no_more_candidates_than_asked_for_and_own_positives_among_them_excluded() -> None:
    made = sampler("set", in_batch_negatives=8, uniform_negatives=5)
    for batch in made.epoch(np.random.default_rng(0)):
        assert len(batch.candidates) <= 13
        own = {tuple(pair) for pair in batch.positives.tolist()}
        found = {(query, int(batch.candidates[place])) for query, place in batch.excluded.tolist()}
        everywhere = {(query, int(row)) for query in range(len(batch.users)) for row in batch.candidates}
        assert found == own & everywhere


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=12), st.integers(1, 6), st.integers(0, 5))
def test_later_events_never_change_a_history(first: list[tuple[int, int]], length: int, more: int) -> None:
    first = sorted(first)
    later = [(60 + step, 1) for step in range(more)]

    def of(events: list[tuple[int, int]]) -> EventLists:
        columns = np.array(events, np.int64).reshape(-1, 2)
        zeros = np.zeros(len(columns), np.int8)
        return EventLists(np.array([0, len(columns)]), columns[:, 1].astype(np.int32), columns[:, 0], zeros, zeros)

    starts, stops = np.array([0]), np.array([len(first)])
    now = np.array([100 * DAY_US])
    short, long = (histories(of(events), starts, stops, now, length) for events in (first, first + later))
    np.testing.assert_array_equal(short.rows, long.rows)
    np.testing.assert_array_equal(short.ages_days, long.ages_days)
    kept = oracles.history(first, 100, length)
    assert short.rows[0].tolist() == kept + [-1] * (length - len(kept))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 5)), max_size=10))
def test_ranges_are_those_of_python(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs], np.int64)
    stops = starts + np.array([count for _, count in pairs], np.int64)
    expected = [value for start, stop in zip(starts, stops, strict=True) for value in range(start, stop)]
    assert ranges(starts, stops).tolist() == expected


def test_a_batch_larger_than_the_data_is_all_of_it() -> None:
    made = sampler("order", batch_users=10_000, min_steps=1)
    assert made.steps == 1
    assert len(next(iter(made.epoch(np.random.default_rng(0)))).users) == len(made.users)


@pytest.mark.parametrize(
    ("kind", "given", "steps"), [("time", {"min_steps": 9}, 9), ("order", {"min_steps": 9}, 9), ("set", {}, 1)]
)
def test_few_users_come_again_until_an_epoch_has_its_least_steps(
    kind: str, given: dict[str, object], steps: int
) -> None:
    small = sampler(kind, batch_users=1000, **given)
    assert small.steps == steps == len(list(small.epoch(np.random.default_rng(0))))


def test_the_same_generator_gives_the_same_batches() -> None:
    one, two = (list(sampler("time").epoch(np.random.default_rng(4))) for _ in range(2))
    for left, right in zip(one, two, strict=True):
        np.testing.assert_array_equal(left.rows, right.rows)
        np.testing.assert_array_equal(left.positives, right.positives)


def test_a_positive_weighs_as_its_strongest_action_and_context_is_none() -> None:
    """Action 0 is context only, 1 weighs 1, 2 weighs 3; counted by hand from the events."""
    data = tiny_data("set")
    actions = np.random.default_rng(0).integers(0, 3, len(data.events.rows)).astype(np.int8)
    schema = data.schema.model_copy(update={"actions": {"view": 0.0, "click": 1.0, "buy": 3.0}})
    data = dataclasses.replace(data, schema=schema, events=dataclasses.replace(data.events, actions=actions))
    events = data.events.before(1)
    chosen = settings_for(schema, batch_users=32, uniform_negatives=10)
    for batch in Sampler(data, events, chosen).epoch(np.random.default_rng(0)):
        for query, user in enumerate(batch.users):
            own = slice(events.offsets[user], events.offsets[user + 1])
            expected: dict[int, float] = {}
            for row, action in zip(events.rows[own].tolist(), events.actions[own].tolist(), strict=True):
                expected[row] = max(expected.get(row, 0.0), [0.0, 1.0, 3.0][action])
            expected = {row: weight for row, weight in expected.items() if weight > 0}
            mine = batch.positives[:, 0] == query
            found = dict(zip(batch.rows[batch.positives[mine, 1]].tolist(), batch.weights[mine].tolist(), strict=True))
            assert set(found) == set(expected)
            total = sum(found.values())
            for row, weight in expected.items():
                assert found[row] / total == pytest.approx(weight / sum(expected.values()), rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["time", "set"])
def test_a_users_positives_together_weigh_their_number_to_a_power(kind: str, power: float) -> None:
    for batch in sampler(kind, activity_power=power).epoch(np.random.default_rng(0)):
        counts = np.bincount(batch.positives[:, 0])
        total = np.bincount(batch.positives[:, 0], batch.weights)[counts > 0]
        expected = counts[counts > 0] ** power
        np.testing.assert_allclose(total, expected / expected.sum(), rtol=1e-4)


def test_mined_items_and_impressions_are_certain_negatives_but_never_a_positive() -> None:
    data = tiny_data("set")
    rng = np.random.default_rng(0)
    actions = rng.integers(0, 2, len(data.events.rows)).astype(np.int8)
    schema = data.schema.model_copy(update={"actions": {"impression": 0.0, "click": 1.0}})
    mined = rng.integers(-1, data.num_items, (data.events.num_users, 3)).astype(np.int32)
    data = dataclasses.replace(
        data, schema=schema, events=dataclasses.replace(data.events, actions=actions), mined=mined
    )
    events = data.events.before(1)
    chosen = settings_for(schema, batch_users=32, uniform_negatives=40, negative_actions={"impression": 2.5})
    for batch in Sampler(data, events, chosen).epoch(np.random.default_rng(0)):
        for query, user in enumerate(batch.users):
            own = slice(events.offsets[user], events.offsets[user + 1])
            taken = set(events.rows[own][events.actions[own] == 1].tolist())
            shown = set(events.rows[own][events.actions[own] == 0].tolist()) - taken
            expected = dict.fromkeys(set(mined[user].tolist()) - {-1} - taken, 1.0) | dict.fromkeys(shown, 2.5)
            mine = batch.certain[:, 0] == query
            rows = batch.rows[batch.certain[mine, 1]].tolist()
            assert dict(zip(rows, batch.certain_weights[mine].tolist(), strict=True)) == expected
            excluded = set(batch.rows[batch.candidates[batch.excluded[batch.excluded[:, 0] == query, 1]]].tolist())
            assert excluded == (set(expected) | taken) & set(batch.rows[batch.candidates].tolist())


def test_what_counts_as_a_positive_is_no_negative_action() -> None:
    with pytest.raises(SchemaError, match="weight 0"):
        schema = tiny_data("set").schema.model_copy(update={"actions": {"click": 1.0}})
        settings_for(schema, negative_actions={"click": 1.0})


def test_what_was_only_shown_stays_a_negative_where_positions_are_queries() -> None:
    """The shown item that follows a position, unless the user took it at another one; counted by hand."""
    data = tiny_data("order")
    actions = np.random.default_rng(1).integers(0, 2, len(data.events.rows)).astype(np.int8)
    schema = data.schema.model_copy(update={"actions": {"impression": 0.0, "click": 1.0}})
    data = dataclasses.replace(data, schema=schema, events=dataclasses.replace(data.events, actions=actions))
    events = data.events.before(1)
    given = {"batch_users": 32, "uniform_negatives": 40, "lookahead": 0.0}
    chosen = settings_for(schema, **given, negative_actions={"impression": 2.0})
    batch = next(Sampler(data, events, chosen).epoch(np.random.default_rng(0)))
    found = {(query, int(batch.rows[place])) for query, place in batch.certain.tolist()}
    expected = set()
    for query, owner in enumerate(batch.query_users):
        first, stop = events.offsets[batch.users[owner]], events.offsets[batch.users[owner] + 1]
        start = max(int(stop) - 11, int(first))
        taken = set(events.rows[start:stop][events.actions[start:stop] == 1].tolist())
        following = start + int(batch.query_positions[query]) + 1
        row = int(events.rows[following])
        if events.actions[following] == 0 and row not in taken:
            expected.add((query, row))
    assert found == expected
    assert len(found) > 10


def test_the_share_of_an_item_in_a_window_leaves_out_what_was_only_shown() -> None:
    """Every event of item 0 is an impression: it can come into a batch by the uniform draw alone."""
    data = tiny_data("time")
    actions = (data.events.rows != 0).astype(np.int8)
    schema = data.schema.model_copy(update={"actions": {"impression": 0.0, "click": 1.0}})
    data = dataclasses.replace(data, schema=schema, events=dataclasses.replace(data.events, actions=actions))
    chosen = settings_for(schema, batch_users=120, uniform_negatives=45, min_steps=8, window_days=7.0)
    seen = 0
    for batch in Sampler(data, data.events.before(1), chosen).epoch(np.random.default_rng(0)):
        place = np.flatnonzero(batch.rows[batch.candidates] == 0)
        seen += len(place)
        np.testing.assert_allclose(np.exp(batch.log_inclusion[place]), 45 / data.num_items, rtol=1e-5)
    assert seen > 0


def drifting(kind: str) -> TrainingData:
    """A catalogue in motion, of which users take the newest third most: of a sequence, old items are not read any more;
    of a window, a few items are taken again and again. Sets are small: what a user's one positive is counts.
    """
    data, rng = tiny_data(kind), np.random.default_rng(5)
    users, each = data.events.num_users, 5 if kind == "set" else 100
    moment = np.tile(np.arange(each), users)
    rows = np.minimum(moment * 60 // each + rng.integers(0, 30, users * each), data.num_items - 1).astype(np.int32)
    times = moment.astype(np.int64)
    if kind == "time":
        rows = np.where(rng.random(len(rows)) < 0.5, np.repeat(np.arange(users) % 10, each), rows).astype(np.int32)
        times = times * DAY_US // 3 + np.repeat(np.arange(users), each) * 60_000_000
    zeros = np.zeros(len(rows), np.int8)
    events = EventLists(np.arange(users + 1, dtype=np.int64) * each, rows, times, zeros, zeros)
    return dataclasses.replace(data, events=events, item_frequency=np.bincount(rows, minlength=data.num_items))


@pytest.mark.parametrize("batch_users", [6, 100])
@pytest.mark.parametrize("limit", [{}, {"in_batch_negatives": 40}])
@pytest.mark.parametrize(
    ("kind", "given"),
    [("time", {"window_days": 4.0}), ("order", {}), ("set", {}), ("set", {"history_encoder": "mean"})],
)
def test_an_item_is_among_the_candidates_as_often_as_its_probability_says(
    kind: str, given: dict[str, object], limit: dict[str, int], batch_users: int
) -> None:
    """1 / probability, summed over the batches with an item, is 1 per batch: the partition's estimate needs it.

    Also where most users are in each batch, and where only some of its positives are candidates: then the number of
    these differs from batch to batch, which is worth a few percent.
    """
    tolerance = 0.05 if limit else 0.01
    given = {**given, **limit}
    data = drifting(kind)
    chosen = settings_for(data.schema, **({"batch_users": batch_users, "uniform_negatives": 9, **given}))
    made, generator = Sampler(data, data.events, chosen), np.random.default_rng(0)
    batches = []
    while len(batches) < 600:
        for batch in made.epoch(generator):
            found = np.zeros(data.num_items)
            found[batch.rows[batch.candidates]] = np.exp(-batch.log_inclusion)
            batches.append(found)
    inclusion = np.array(batches)
    sums = np.bincount(data.events.rows, minlength=data.num_items)
    rare, early = np.argsort(sums, kind="stable"), np.arange(data.num_items)
    for group in (*np.array_split(rare, 4), *np.array_split(early, 4)):
        each = inclusion[:, group].mean(1)
        error = each.std() / np.sqrt(len(each))
        assert abs(each.mean() - 1.0) < 4 * error + tolerance, (group, each.mean(), error)


def test_of_a_sequence_the_first_basket_that_is_read_can_be_no_positive() -> None:
    """Log q by hand, with two of four users in the batch and no uniform draw: an item that one user took has 1 / 2.

    User 0 has the baskets {0, 1}, {2, 3}: items 2 and 3 may be drawn. User 1 has {4, 2}, {0}: item 0. User 2 has 13
    events, of which 11 are read: the first that is read, item 12, shares its basket with item 13, so that 14 to 22 may
    be drawn. User 3 has 12 events, each a basket: of the 11 that are read all but the first, items 32 to 41.
    """
    rows = [0, 1, 2, 3, 2, 4, 0, *range(10, 23), *range(30, 42)]
    baskets = [0, 0, 1, 1, 0, 0, 3, 0, 1, 2, 2, *range(3, 12), *range(12)]
    data = tiny_data("order")
    offsets = np.array([0, 4, 7, 20, *[32] * (data.events.num_users - 3)])
    zeros = np.zeros(32, np.int8)
    events = EventLists(offsets, np.array(rows, np.int32), np.array(baskets, np.int64), zeros, zeros)
    wanted = settings_for(data.schema, batch_users=2, uniform_negatives=0, min_steps=2)
    made = Sampler(dataclasses.replace(data, events=events), events, wanted)
    batches = list(made.epoch(np.random.default_rng(0)))
    drawn = sorted(row for batch in batches for row in batch.rows[batch.candidates].tolist())
    assert drawn == [0, 2, 3, *range(14, 23), *range(32, 42)]
    for batch in batches:
        np.testing.assert_allclose(np.exp(batch.log_inclusion), 0.5, rtol=1e-5)


def test_what_a_user_took_at_any_time_is_no_hard_negative() -> None:
    data = tiny_data("time")
    known = data.events.before(1)
    mined = np.tile(np.arange(data.num_items, dtype=np.int32), (data.events.num_users, 1))
    chosen = settings_for(data.schema, batch_users=32, uniform_negatives=20, min_steps=3, window_days=7.0)
    for batch in Sampler(dataclasses.replace(data, mined=mined), known, chosen).epoch(np.random.default_rng(0)):
        for query, user in enumerate(batch.users):
            taken = set(known.rows[known.offsets[user] : known.offsets[user + 1]].tolist())
            found = batch.rows[batch.certain[batch.certain[:, 0] == query, 1]].tolist()
            assert sorted(found) == sorted(set(range(data.num_items)) - taken)


def test_of_one_basket_no_item_foretells_another() -> None:
    """Baskets of four: a place's positives begin with all of the next basket, all of equal weight."""
    data = tiny_data("order")
    events = dataclasses.replace(data.events, times=data.events.times // 4).before(1)
    chosen = settings_for(data.schema, batch_users=32, uniform_negatives=20, lookahead=0.5)
    made = Sampler(data, events, chosen)
    batch = next(iter(made.epoch(np.random.default_rng(0))))
    assert set(batch.positives[:, 0].tolist()) < set(range(len(batch.query_users)))
    for query, owner in enumerate(batch.query_users):
        stop = int(events.offsets[batch.users[owner] + 1])
        start = max(stop - 11, int(events.offsets[batch.users[owner]]))
        place = start + int(batch.query_positions[query])
        expected: dict[int, float] = {}
        for later in range(place + 1, stop):
            distance = int(events.times[later] - events.times[place])
            if distance > 0:
                row = int(events.rows[later])
                expected[row] = max(expected.get(row, 0.0), 0.5 ** (distance - 1))
        mine = batch.positives[:, 0] == query
        found = dict(zip(batch.rows[batch.positives[mine, 1]].tolist(), batch.weights[mine].tolist(), strict=True))
        assert set(found) == set(expected)
        for row, credit in expected.items():
            assert found[row] / max(found.values()) == pytest.approx(credit / max(expected.values()), rel=1e-4)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_data_without_a_positive_or_without_users_to_learn_from_are_refused(kind: str) -> None:
    data = tiny_data(kind)
    chosen = settings_for(data.schema, batch_users=32)
    shown = data.schema.model_copy(update={"actions": {"impression": 0.0}})
    with pytest.raises(SchemaError, match=r"weighs something.*\[actions\]"):
        Sampler(dataclasses.replace(data, schema=shown), data.events.before(1), chosen)
    first = np.zeros(len(data.events.rows), np.bool_)
    first[data.events.offsets[:-1]] = kind != "set"
    with pytest.raises(SchemaError, match="got 0 such users"):
        Sampler(data, data.events.where(first), chosen)
