"""Validation's figures by action against a loop over users and events."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipelines.contracts.schema import Window
from tests import oracles
from tests.towers.tiny import USERS, tiny_data
from towers.data.training_data import TrainingData
from towers.network.model import TwoTowers
from towers.settings import settings_for
from towers.training.validation_recall import all_vectors, evaluate, known_at, split_start_us

VIEW, CLICK, BUY = range(3)
KS = (3, 10)


def shop() -> TrainingData:
    """Half of all events are views, which weigh nothing; a click and a purchase weigh something each."""
    data = tiny_data("time")
    actions = np.random.default_rng(2).choice(3, len(data.events.rows), p=[0.5, 0.3, 0.2]).astype(np.int8)
    schema = data.schema.model_copy(update={"actions": {"view": 0.0, "click": 1.0, "buy": 3.0}})
    return dataclasses.replace(data, schema=schema, events=dataclasses.replace(data.events, actions=actions))


def held_out(data: TrainingData, user: int, split: int, actions: tuple[int, ...]) -> set[int]:
    """Different items of the user's events of the split with one of these actions."""
    events = data.events
    own = range(int(events.offsets[user]), int(events.offsets[user + 1]))
    return {
        int(events.rows[place]) for place in own if events.splits[place] == split and events.actions[place] in actions
    }


def had_before(data: TrainingData, user: int, split: int) -> set[int]:
    """Different items of the user's clicks and purchases before the split: what was only viewed is novel."""
    events = data.events
    own = range(int(events.offsets[user]), int(events.offsets[user + 1]))
    return {int(events.rows[place]) for place in own if events.splits[place] < split and events.actions[place] != VIEW}


@pytest.mark.parametrize("split", [1, 2])
def test_figures_of_each_action_are_what_a_loop_finds(split: int) -> None:
    data = shop()
    model = TwoTowers(data, settings_for(data.schema, embedding_dim=9), 4)
    figures = evaluate(model, data, split, KS)
    # An action that weighs nothing is never sought, so there is no "all view".
    assert set(figures) == {"all", "novel", "all click", "all buy"}
    vectors = all_vectors(model, data, np.arange(USERS, dtype=np.int32), split)
    scores = vectors.users @ vectors.items.T
    for name, actions in (("all", (CLICK, BUY)), ("all click", (CLICK,)), ("all buy", (BUY,))):
        wanted = [held_out(data, user, split, actions) for user in range(USERS)]
        for k in KS:
            *expected, users = oracles.recall_figures(scores, wanted, k)
            found = figures[name]
            assert [found.recall[k], found.capped_recall[k], found.ndcg[k]] == pytest.approx(expected)
            assert found.users == users < USERS
    assert len({figure.recall[10] for figure in figures.values()}) == 4
    # Novel: without what the user had before, in the ranking and in the truth.
    had = [had_before(data, user, split) for user in range(USERS)]
    wanted = [held_out(data, user, split, (CLICK, BUY)) - seen for user, seen in enumerate(had)]
    for k in KS:
        *expected, users = oracles.recall_figures(scores, wanted, k, without=had)
        found = figures["novel"]
        assert [found.recall[k], found.capped_recall[k], found.ndcg[k]] == pytest.approx(expected)
        assert found.users == users < figures["all"].users


def test_figures_of_each_action_are_of_the_users_that_were_chosen() -> None:
    """Forty at even distances of those who want anything; some of them bought nothing."""
    data = shop()
    model = TwoTowers(data, settings_for(data.schema, embedding_dim=9), 4)
    figures = evaluate(model, data, 1, KS, max_users=40)
    asking = [user for user in range(USERS) if held_out(data, user, 1, (CLICK, BUY))]
    chosen = np.array([asking[place * len(asking) // 40] for place in range(40)], np.int32)
    vectors = all_vectors(model, data, chosen, 1)
    wanted = [held_out(data, user, 1, (BUY,)) for user in chosen.tolist()]
    recall, *_, users = oracles.recall_figures(vectors.users @ vectors.items.T, wanted, 10)
    assert figures["all buy"].recall[10] == pytest.approx(recall)
    assert figures["all buy"].users == users < figures["all"].users == 40


def test_a_single_action_has_no_figures_of_its_own() -> None:
    data = tiny_data("time")
    model = TwoTowers(data, settings_for(data.schema, embedding_dim=9), 4)
    assert set(evaluate(model, data, 1, KS)) == {"all", "novel"}


def test_a_part_of_rolling_windows_begins_at_its_midnight_and_not_at_its_first_event() -> None:
    """Counts and histories are those of the window's start, whatever the schema says."""
    data = tiny_data("time")
    events = data.events
    later = int(events.times[events.splits == 2].min()) + 3 * 86_400_000_000
    rolling = dataclasses.replace(data, window=Window(valid_from=later - 1, test_from=later, end=2 * later))
    assert (split_start_us(rolling, 1), split_start_us(rolling, 2)) == (later - 1, later)
    users = np.arange(USERS, dtype=np.int32)
    before, after = (known_at(one, users, 2).item_moving["sold"] for one in (data, rolling))
    assert (before != after).any()
