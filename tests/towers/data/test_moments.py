"""Counts as of a moment, against counting one by one; the future never counts; demand follows what sells."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import FittedNumbers
from pipelines.sequences.event_lists import EventLists
from tests import oracles
from tests.towers.tiny import EVENTS_PER_USER, ITEMS, USERS, tiny_data
from towers.closed_form.start import start_from_svd
from towers.data.moments import Clock, MomentSampler, Moving, MovingCounts
from towers.data.sampler import Sampler
from towers.data.training_data import DAY_US, TrainingData
from towers.network.model import TwoTowers, tensors_of
from towers.runtime import tf
from towers.settings import settings_for
from towers.training.validation_recall import known_at

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
    assert found.tolist() == oracles.window_counts(owners, times, askers, stops, width)


@given(
    events=pairs,
    asked=st.lists(st.tuples(st.integers(0, 2), st.integers(-4, 170)), min_size=1, max_size=25),
    width=st.integers(0, 40),
)
def test_a_clock_asked_between_two_seconds_counts_what_was_before(
    events: list[tuple[int, int]], asked: list[tuple[int, int]], width: int
) -> None:
    """Events at whole seconds, moments at quarters of one: what happened a quarter of a second ago has happened."""
    owners, times = (np.array([event[place] for event in sorted(events)], np.int64) for place in (0, 1))
    askers, quarters = (np.array([one[place] for one in asked], np.int64) for place in (0, 1))
    stops, width_us = quarters * 250_000, width * 250_000
    found = Clock(owners, times * 1_000_000).count(askers, stops - width_us, stops)
    assert found.tolist() == oracles.window_counts(owners, times * 1_000_000, askers, stops, width_us)


def test_the_takers_of_an_item_in_a_window_are_users_who_were_there_before() -> None:
    """Moment: day 10, window: 4 days. By hand, (item, day) of each user, with what counts:

    user 0: (0, 1) (1, 11) (1, 12) (0, 13) (4, 14): items 1 and 0 once each; day 14 is after the window.
    user 1: (2, 11) (0, 12): joins within the window, so that nothing tells what it wants.
    user 2: (3, 5) (5, 10) (3, 12): items 5, on the moment itself, and 3, which it had before.
    user 3: (6, 10) (7, 11): its first event is at the moment, not before it.
    """
    lives = [
        [(0, 1), (1, 11), (1, 12), (0, 13), (4, 14)], [(2, 11), (0, 12)], [(3, 5), (5, 10), (3, 12)], [(6, 10), (7, 11)]
    ]  # fmt: skip
    lives += [[] for _ in range(USERS - len(lives))]
    offsets = np.cumsum([0, *map(len, lives)])
    rows, days = (np.array([event[place] for life in lives for event in life]) for place in (0, 1))
    zeros = np.zeros(len(rows), np.int8)
    events = EventLists(offsets, rows.astype(np.int32), days.astype(np.int64) * DAY_US, zeros, zeros)
    data = dataclasses.replace(tiny_data("time"), events=events)
    settings = settings_for(data.schema, window_days=4.0)
    moments = MomentSampler(data, events, np.ones(len(rows), np.bool_), settings)
    takers = moments.takers(np.arange(8, dtype=np.int32), 10 * DAY_US)
    assert takers.tolist() == [1, 1, 0, 1, 0, 1, 0, 0]


def test_a_batch_counts_what_was_before_its_moment() -> None:
    """The moment is the only one that explains the ages of the histories; counts are recounted from the events."""
    data = tiny_data("time")
    settings = settings_for(data.schema, batch_users=32, uniform_negatives=20, min_steps=4, window_days=7.0)
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
        assert min(np.abs(batch.item_moving - one).max() for one in expected) < np.log(2) + 1e-6
        assert min((np.abs(batch.item_moving - one) > 1e-5).mean() for one in expected) < 0.02


def test_later_events_never_change_counts() -> None:
    data = tiny_data("time")
    moment = 30 * DAY_US
    early = data.events.where(data.events.times < moment)
    everyone = np.arange(ITEMS, dtype=np.int32)
    known, all_of_it = (MovingCounts(data, events, "item").at(everyone, moment) for events in (early, data.events))
    np.testing.assert_array_equal(known, all_of_it)
    assert known.sum() > 0


def sells_only_in(data: TrainingData, item: int, first: int, stop: int) -> TrainingData:
    """The same data; ``item`` is in every event of the days ``first`` to ``stop``, and in no other."""
    events = data.events
    within = (events.times >= first * DAY_US) & (events.times < stop * DAY_US)
    rows = np.where(events.rows == item, (item + 1) % ITEMS, events.rows)
    return dataclasses.replace(
        data, events=dataclasses.replace(events, rows=np.where(within, item, rows).astype(np.int32))
    )


def test_what_sells_in_validation_alone_has_never_sold_in_training() -> None:
    """Days 0 to 40 are train, to 50 valid. The item's count columns in the artifact are full: none may be used."""
    data, item = sells_only_in(tiny_data("time"), 7, 40, 50), 7
    full = np.full((ITEMS, 2), 5.0, np.float32)
    data = dataclasses.replace(data, items={**data.items, "sold": full})
    settings = settings_for(data.schema, batch_users=64, uniform_negatives=ITEMS, min_steps=30, window_days=7.0)
    batches = 0
    for batch in Sampler(data, data.events.before(1), settings).epoch(np.random.default_rng(0)):
        place = batch.rows.tolist().index(item)
        assert batch.item_moving[place].tolist() == [0.0, 0.0]
        assert batch.item_moving.max() < np.log1p(EVENTS_PER_USER * USERS)
        batches += 1
    assert batches >= 30
    # Validation asks at its start, the test at its own: by then the item has sold, in the last 7 and 28 days.
    assert known_at(data, np.arange(3, dtype=np.int32), 1).item_moving["sold"][item].tolist() == [0.0, 0.0]
    times = data.events.times
    sold = [
        ((times >= (50 - days) * DAY_US) & (times < 50 * DAY_US) & (data.events.rows == item)).sum() for days in (7, 28)
    ]
    found = known_at(data, np.arange(3, dtype=np.int32), 2).item_moving["sold"][item]
    np.testing.assert_allclose(found, np.log1p(sold), rtol=1e-6)
    assert sold[0] < sold[1]


@pytest.mark.parametrize("protocol", ["positions", "sets"])
@pytest.mark.parametrize("side", ["user", "item"])
@pytest.mark.parametrize("kind", ["count", "time_since"])
def test_features_of_a_moment_are_refused_where_examples_have_none(protocol: str, side: str, kind: str) -> None:
    raw = tiny_data("time").schema.model_dump(mode="json")
    raw["features"]["item"] = [one for one in raw["features"]["item"] if one["kind"] != "count"]
    settings_for(DatasetSchema.model_validate(raw), protocol=protocol)
    raw["features"][side].append({"name": "lately", "kind": kind})
    schema = DatasetSchema.model_validate(raw)
    settings_for(schema, protocol="windows")
    words = rf"features\.{side} 'lately' \({kind}\)\. The examples of '{protocol}' .* Set protocol = \"windows\" in "
    with pytest.raises(SchemaError, match=words):
        settings_for(schema, protocol=protocol)


def test_splits_that_leave_the_last_events_out_name_the_remedy_and_take_it() -> None:
    raw = tiny_data("time").schema.model_dump(mode="json")
    raw["split"] = {"leave_last_out": True}
    schema = DatasetSchema.model_validate(raw)
    with pytest.raises(
        SchemaError, match=r"expected no features that change with the moment, got features\.item 'sold'"
    ):
        settings_for(schema)
    assert settings_for(schema, protocol="windows").protocol == "windows"


def test_demand_lifts_what_sells_more_of_late() -> None:
    """Half of the items sell in the first half of the time, the others in the second: those are lifted."""
    rng = np.random.default_rng(3)
    data = tiny_data("time")
    users, each = data.events.num_users, 40
    times = np.sort(rng.integers(0, 120 * DAY_US, (users, each)), axis=1).reshape(-1)
    late = times > 60 * DAY_US
    rows = np.where(rng.random(len(times)) < 0.9, late, ~late) * (ITEMS // 2) + rng.integers(0, ITEMS // 2, len(times))
    zeros = np.zeros(len(rows), np.int8)
    events = EventLists(np.arange(users + 1) * each, rows.astype(np.int32), times, zeros, zeros)
    data = dataclasses.replace(data, events=events, item_frequency=np.bincount(rows, minlength=ITEMS))
    settings = settings_for(data.schema, embedding_dim=32, content_share=0.15, window_days=14.0)
    model = TwoTowers(data, settings, 1)
    start_from_svd(model, data, events)
    lift = model.item_tower.lift(MovingCounts(data, events, "item").at(np.arange(ITEMS), int(times.max()))).numpy()[
        :, 0
    ]
    assert lift[ITEMS // 2 :].mean() > lift[: ITEMS // 2].mean() + 0.3


def test_a_time_since_is_what_the_features_job_would_give_at_the_moment() -> None:
    """Users who joined at different times, one of them unknown: recomputed by the job's own encoder."""
    data, as_of, moment = tiny_data("time"), 60 * DAY_US, 25 * DAY_US + 12_345
    joined = np.random.default_rng(2).integers(0, 50 * DAY_US, USERS)
    column = pa.array(joined, pa.int64(), mask=np.arange(USERS) == 7).cast(pa.timestamp("us", tz="UTC"))
    raw = data.schema.model_dump(mode="json")
    raw["features"]["user"].append({"name": "joined", "kind": "time_since"})
    schema = DatasetSchema.model_validate(raw)
    feature = [schema.side("user")[-1]]
    fitted = {"joined": FittedNumbers("log", 3.1, 0.7)}
    table = pa.table({"joined": column})
    encoded = encode_table(feature, fitted, table, as_of_us=as_of)["joined"]
    data = dataclasses.replace(
        data, schema=schema, users={**data.users, "joined": encoded}, as_of_us=as_of,
        numbers={"item": data.numbers["item"], "user": fitted},
    )  # fmt: skip
    expected = encode_table(feature, fitted, table, as_of_us=moment)["joined"]
    everyone = np.arange(USERS, dtype=np.int32)
    np.testing.assert_allclose(Moving(data, data.events, "user").at(everyone, moment), expected, atol=2e-4)
    assert expected[7].tolist() == [0.0, 0.0]
    settings = settings_for(schema, batch_users=32, uniform_negatives=20, min_steps=3, window_days=7.0)
    model = TwoTowers(data, settings, 1)
    for batch in Sampler(data, data.events.before(1), settings).epoch(np.random.default_rng(0)):
        found = model.user_inputs(tf.zeros([len(batch.rows), settings.vector_dim]), tensors_of(batch))["joined"].numpy()
        ages = np.expm1(found[:, 0].astype(np.float64) * 0.7 + 3.1)
        known = (found[:, 1] > 0) & (ages > 1e-6)
        # One moment for all of a batch, and it lies in the data.
        moments = ages[known] + joined[batch.users[known]] / DAY_US
        assert np.ptp(moments) < 0.01
        assert 0 < moments.mean() < 40
