"""Impressions without action as negatives: in a world that shows some ads far more often than others, they help."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from tests.towers.tiny import ITEMS, tiny_data
from towers.data import training_data as inputs
from towers.data.sampler import Sampler
from towers.data.training_data import TrainingData
from towers.settings import settings_for
from towers.training.job import train
from towers.training.recall import recall_at
from towers.training.validation_recall import all_vectors

USERS, SHOWN, HELD = 600, 120, 45


def world(seed: int) -> TrainingData:
    """Whom an ad is shown to has nothing to do with taste, and a few are shown most of the time; a click goes by taste
    alone. Held out are clicks on ads shown evenly: what users want, not what they were shown.
    """
    rng = np.random.default_rng(seed)
    taste, kinds = rng.normal(size=(USERS, 6)), rng.normal(size=(ITEMS, 6))
    chance = 1 / (1 + np.exp(2.0 - taste @ kinds.T))
    shares = np.exp(rng.normal(0, 2.0, ITEMS))
    parts: list[tuple[npt.NDArray[np.int64], ...]] = []
    for user in range(USERS):
        shown = rng.choice(ITEMS, SHOWN, p=shares / shares.sum())
        clicked = rng.random(SHOWN) < chance[user, shown]
        even = rng.permutation(ITEMS)[:HELD]
        held = even[rng.random(HELD) < chance[user, even]]
        splits = np.sort(rng.integers(1, 3, len(held)))
        whole = np.r_[shown, held], np.r_[clicked, np.ones(len(held))], np.r_[np.zeros(SHOWN), splits]
        parts.append(tuple(column.astype(np.int64) for column in whole))
    rows, actions, splits = (np.concatenate(column) for column in zip(*parts, strict=True))
    offsets = np.concatenate([[0], np.cumsum([len(part[0]) for part in parts])])
    events = EventLists(
        offsets, rows.astype(np.int32), np.zeros_like(rows), actions.astype(np.int8), splits.astype(np.int8)
    )
    data = tiny_data("set")
    clicks = np.bincount(rows[(splits == 0) & (actions == 1)], minlength=ITEMS)
    return dataclasses.replace(
        data,
        schema=data.schema.model_copy(update={"actions": {"impression": 0.0, "click": 1.0}}),
        users={"user": (np.arange(USERS) + 2).astype(np.int32)},
        table_sizes={**data.table_sizes, "user": {"user": USERS + 2}},
        events=events,
        item_frequency=clicks,
        frequencies={"item": clicks},
    )


@pytest.mark.parametrize("seed", [1, 2])
def test_what_was_shown_and_not_taken_tells_taste_from_exposure(seed: int) -> None:
    """Each counts as ten items: the whole catalogue is a candidate as it is, and one more of it would say nothing."""
    data = world(seed)
    clicks = data.events.where((data.events.splits < 2) | (data.events.actions == 1))
    truth = HeldOut.of(clicks, 2)
    found = []
    for negatives in ({}, {"impression": 10.0}):
        chosen = settings_for(
            data.schema,
            embedding_dim=17, epochs=8, patience=8, batch_users=32, uniform_negatives=ITEMS, learning_rate=0.01,
            select="all", select_k=(10,), refit=False, negative_actions=negatives,
        )  # fmt: skip
        vectors = all_vectors(train(data, chosen, seed=1).model, data, truth.users, 2)
        found.append(recall_at(vectors.users, vectors.items, truth, (10,), remove_seen=False).recall[10])
    without, with_impressions = found
    assert with_impressions > 1.03 * without


def test_the_first_bias_counts_what_was_taken_not_what_was_shown() -> None:
    """Of an id, as a bias starts there; of a category all events, which say how rare it is."""
    data = world(1)
    shown = np.bincount(data.events.rows[data.events.splits == 0], minlength=ITEMS)
    of_category = np.arange(5)
    counted = inputs._counted(dataclasses.replace(data, frequencies={"item": shown, "category": of_category}))
    assert not np.array_equal(shown, data.frequencies["item"])
    np.testing.assert_array_equal(counted.frequencies["item"], data.frequencies["item"])
    np.testing.assert_array_equal(counted.frequencies["category"], of_category)
    plain = dataclasses.replace(
        data,
        schema=data.schema.model_copy(update={"actions": {"seen": 1.0, "click": 1.0}}),
        frequencies={"item": shown},
    )
    assert inputs._counted(plain) is plain


@pytest.mark.parametrize("seed", range(5))
def test_an_item_that_was_only_shown_before_is_novel(seed: int) -> None:
    """By a loop over the batch: what a user took before is neither novel nor a negative of the novel part."""
    data, rng = tiny_data("time"), np.random.default_rng(seed)
    schema = data.schema.model_copy(update={"actions": {"impression": 0.0, "click": 1.0}})
    actions = rng.integers(0, 2, data.events.num_events).astype(np.int8)
    data = dataclasses.replace(data, schema=schema, events=dataclasses.replace(data.events, actions=actions))
    chosen = settings_for(schema, novel_weight=1.0, batch_users=60)
    batch = next(Sampler(data, data.events.before(1), chosen).epoch(rng))
    took = [
        {int(batch.rows[place]) for place, action in zip(places, actions, strict=True) if place >= 0 and action == 1}
        for places, actions in zip(batch.history.tolist(), batch.actions.tolist(), strict=True)
    ]
    assert any(batch.history[batch.actions == 0] >= 0)
    rows = batch.rows[batch.positives[:, 1]].tolist()
    novel = [row not in took[query] for query, row in zip(batch.positives[:, 0].tolist(), rows, strict=True)]
    assert (batch.novel > 0).tolist() == novel
    candidates = batch.rows[batch.candidates].tolist()
    expected = {(query, place) for query, own in enumerate(took) for place, row in enumerate(candidates) if row in own}
    assert set(map(tuple, batch.seen.tolist())) == expected
