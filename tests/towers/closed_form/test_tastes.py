"""Tastes against loops, and the weights of a world in which they are known."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest
import scipy.sparse

from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from tests.towers.tiny import ITEMS, tiny_data
from towers.closed_form.balance import VectorBlocks, find_balance
from towers.closed_form.start import _fill, start_from_svd
from towers.closed_form.tastes import fit_tastes
from towers.data.training_data import DAY_US
from towers.network.history_encoders import PooledHistory
from towers.network.model import TwoTowers
from towers.runtime import tf
from towers.settings import settings_for
from towers.training.recall import recall_at
from towers.training.validation_recall import evaluate

Float = npt.NDArray[np.float64]


def market(users: int = 60, items: int = 40, kinds: int = 6, seed: int = 0) -> tuple[Float, Float]:
    """``[users, items]`` counts of what was taken, and ``[items, kinds]`` of which kind each item is."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.3, 3.0, (users, items))).astype(np.float64), np.eye(kinds)[
        rng.integers(0, kinds, items)
    ]


def test_scores_of_tastes_are_logs_of_category_counts() -> None:
    """With a column and a unit a kind: a fifth of log(1 + count / (what 60 events of anybody's have of the kind))."""
    counts, kinds = market()
    tastes = fit_tastes(
        scipy.sparse.csr_matrix(counts), int(counts.sum()), scipy.sparse.csr_matrix(kinds), dim=6, units=6
    )
    found = tastes.of(scipy.sparse.csr_matrix(counts)) @ tastes.items.T
    for user in range(len(counts)):
        for item in range(len(kinds)):
            of_kind = kinds[:, int(kinds[item].argmax())]
            prior = 60 * (counts @ of_kind).sum() / counts.sum()
            assert found[user, item] == pytest.approx(0.2 * np.log1p(counts[user] @ of_kind / prior), abs=0.02)


def test_fewer_kinds_than_columns_and_units_leave_the_rest_empty() -> None:
    counts, kinds = market(kinds=3)
    tastes = fit_tastes(scipy.sparse.csr_matrix(counts), 10, scipy.sparse.csr_matrix(kinds), dim=8, units=5)
    assert np.abs(tastes.rows[:, 3:]).max() == 0
    assert np.abs(tastes.to_tastes[:, 3:]).max() == 0
    assert all(np.isfinite(part).all() for part in vars(tastes).values())


def test_nothing_taken_gives_no_tastes() -> None:
    nothing = scipy.sparse.csr_matrix((5, 4))
    tastes = fit_tastes(nothing, 0, scipy.sparse.csr_matrix(np.eye(4)), dim=2, units=3)
    assert all(np.abs(part).max() == 0 for part in vars(tastes).values())


def test_the_tower_adds_up_content_and_takes_its_log() -> None:
    """Against loops: 5 own columns and 2 of content, heads of no decay and of ten days."""
    rng = np.random.default_rng(2)
    pool = PooledHistory(7, 2, 3, (0.0, 10.0), 1)
    vectors, ages = rng.normal(size=(4, 6, 7)).astype(np.float32), rng.uniform(0, 30, (4, 6)).astype(np.float32)
    mask = (np.arange(6) < np.array([6, 3, 1, 0])[:, None]).astype(np.float32)
    found = pool(vectors, mask, ages, np.zeros((4, 6), np.int32)).numpy()
    mix, to_tastes, of_tastes = pool.mix.numpy(), pool.to_tastes.numpy(), pool.of_tastes.numpy()
    for user in range(4):
        heads = []
        for rate in (0.0, 0.1):
            mean = sum(
                (np.exp(-rate * ages[user, e]) * mask[user, e] * vectors[user, e, :5] for e in range(6)), np.zeros(5)
            )
            heads.append(mean / max(np.linalg.norm(mean), 1e-6))
        content = sum((mask[user, e] * vectors[user, e, 5:] for e in range(6)), np.zeros(2))
        tastes = np.log1p(np.maximum(content @ to_tastes, 0)) @ of_tastes
        np.testing.assert_allclose(found[user], np.concatenate([np.concatenate(heads) @ mix, tastes]), atol=2e-3)


def test_the_balance_of_a_world_is_found() -> None:
    """Users take an item of the window with the odds exp(1.5 own + .5 content - 3): the ratio 3 comes back."""
    rng = np.random.default_rng(4)
    users, window = 400, 14 * DAY_US
    data = tiny_data("time")
    own, content = (
        (rng.normal(size=(n, 4)) / 2 for n in (users, ITEMS)),
        (rng.normal(size=(n, 3)) for n in (users, ITEMS)),
    )
    (users_own, items_own), (users_content, items_content) = own, content
    logits = 1.5 * users_own @ items_own.T + 0.5 * users_content @ items_content.T - 3
    taken = rng.random((2, users, ITEMS)) < 1 / (1 + np.exp(-logits))
    taken[1] &= ~taken[0]
    owners, rows, times = [np.arange(users)], [np.zeros(users, np.int64)], [np.zeros(users, np.int64)]
    for place in range(2):
        owner, row = np.nonzero(taken[place])
        owners.append(owner)
        rows.append(row)
        times.append(window * (place + 1) + rng.integers(1, window, len(row)))
    owner, row, time = (np.concatenate(each) for each in (owners, rows, times))
    order = np.lexsort((time, owner))
    zeros = np.zeros(len(order), np.int8)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=users))])
    events = EventLists(offsets, row[order].astype(np.int32), time[order], zeros, zeros)
    found = find_balance(
        lambda known, now: VectorBlocks(items_own, items_content, users_own, users_content),
        dataclasses.replace(data, events=events),
        events,
        window_days=14.0,
    )
    assert found.own == pytest.approx(1.5, rel=0.15)
    assert found.content == pytest.approx(0.5, rel=0.15)
    assert found.scale > 0
    assert np.abs(found.demand).max() < 1.0


@pytest.mark.parametrize("given", [{"history_encoder": "mean"}, {"content_share": 0.0}, {"item_bias": False}])
def test_other_towers_for_windows_start_as_well(given: dict[str, object]) -> None:
    data = tiny_data("time")
    settings = settings_for(data.schema, **({"embedding_dim": 16, "window_days": 7.0} | given))
    events, model = data.events.before(1), TwoTowers(data, settings, 1)
    start_from_svd(model, data, events)
    figures = evaluate(model, data, 1, (10,), names=("novel",))["novel"]
    popular = np.argsort(-np.bincount(events.rows, minlength=ITEMS), kind="stable")
    order = np.zeros(ITEMS, np.float32)
    order[popular] = -np.arange(ITEMS)
    truth = HeldOut.of(data.events, 1).without_seen()
    base = recall_at(np.ones((len(truth.users), 1), np.float32), order[:, None], truth, (10,), remove_seen=True)
    assert figures.capped_recall[10] > base.capped_recall[10]


def test_without_a_window_the_usual_balance_is_used() -> None:
    data = tiny_data("time")
    events = data.events.where(data.events.times < 0)
    one = EventLists(
        np.array([0, 1]), np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int8), np.zeros(1, np.int8)
    )
    assert len(events.rows) == 0
    found = find_balance(lambda *_: pytest.fail("nothing to make vectors for"), data, one, window_days=14.0)
    assert (found.own, found.content, found.scale) == (1.7, 0.5, 1.0)
    assert not found.demand.any()


def test_items_that_share_a_code_start_from_their_mean_and_an_unknown_one_leaves_its_row() -> None:
    rng = np.random.default_rng(4)
    factors = rng.normal(size=(7, 3)).astype(np.float32)
    codes = np.array([2, 5, 1, 2, 4, 2, 0])
    before = rng.normal(size=(6, 5)).astype(np.float32)
    table = tf.Variable(before)
    _fill(table, codes, factors)
    expected = before.copy()
    for code in (2, 4, 5):
        expected[code, :3] = factors[codes == code].mean(0)
    np.testing.assert_allclose(table.numpy(), expected, rtol=1e-6)
