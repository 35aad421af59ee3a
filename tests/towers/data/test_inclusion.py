"""The probability of being a candidate against an exact count, and against drawing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import oracles
from towers.data.inclusion import Takers, log_inclusion


def found(number: int, users: int, drawn: int, uniform: float, chance: float = 1.0) -> float:
    return float(np.exp(log_inclusion(Takers(np.array([number]), chance), users, drawn, uniform)[0]))


batches = st.integers(1, 60).flatmap(lambda users: st.tuples(st.just(users), st.integers(1, users)))


@settings(max_examples=200, deadline=None)
@given(batches, st.data(), st.sampled_from([0.0, 0.1, 1.0]))
def test_users_are_drawn_without_replacement(batch: tuple[int, int], data: st.DataObject, uniform: float) -> None:
    """1 - C(U - c, B) / C(U, B) for c takers, exactly."""
    users, drawn = batch
    number = data.draw(st.integers(0 if uniform else 1, users))
    exact = oracles.inclusion([1.0] * number, users, drawn, uniform)
    assert found(number, users, drawn, uniform) == pytest.approx(exact, rel=1e-6)


@settings(max_examples=200, deadline=None)
@given(batches, st.data(), st.floats(0.05, 1.0))
def test_takers_who_show_it_by_chance_are_as_good_as_exact(
    batch: tuple[int, int], data: st.DataObject, chance: float
) -> None:
    """Exact for up to eight takers; otherwise the probability is off by a hundredth of itself at most, at 12 users."""
    users, drawn = batch
    number = data.draw(st.integers(1, users))
    exact = oracles.inclusion([chance] * number, users, drawn, 0.0)
    tolerance = 1e-6 if number <= 8 or drawn == users else 0.015
    assert found(number, users, drawn, 0.0, chance) == pytest.approx(exact, rel=tolerance)


def test_a_large_batch_by_hand() -> None:
    """2,048 of 2,445 users: an item that one user took is there with 2048 / 2445, by two with 1 - 397 * 396 / (2445 *
    2444). Draws with replacement would come to .57 and .81."""
    assert found(1, 2445, 2048, 0.0) == pytest.approx(2048 / 2445, rel=1e-6)
    assert found(2, 2445, 2048, 0.0) == pytest.approx(1 - 397 * 396 / (2445 * 2444), rel=1e-6)
    # More takers than users left out: one of them is there for certain.
    assert found(398, 2445, 2048, 0.0) == 1.0


def test_against_drawing() -> None:
    """40 users, of whom 15 are drawn; each shows an item that it took with its own chance. And 5 of 12 items evenly."""
    rng = np.random.default_rng(1)
    took = rng.random((40, 12)) < np.linspace(0.9, 0.0, 12)
    chances = np.where(took, rng.uniform(0.5, 1.0, (40, 12)), 0.0)
    seen, times = np.zeros(12), 8000
    for _ in range(times):
        users = rng.choice(40, 15, replace=False)
        there = (rng.random((15, 12)) < chances[users]).any(0)
        there[rng.choice(12, 5, replace=False)] = True
        seen += there
    number = took.sum(0)
    mean = chances.sum(0) / np.maximum(number, 1)
    probability = np.exp(log_inclusion(Takers(number, mean), 40, 15, 5 / 12))
    np.testing.assert_allclose(probability, seen / times, atol=4.5 * 0.5 / np.sqrt(times))
    # No floor: what nobody took has the probability of the uniform draw, 5 / 12.
    assert probability[-1] == pytest.approx(5 / 12, rel=1e-6)


def test_many_users_lose_no_digits() -> None:
    """One taker among ten million, a batch of 256: 256 / 10^7."""
    assert found(1, 10_000_000, 256, 0.0) == pytest.approx(256 / 10_000_000, rel=1e-6)
