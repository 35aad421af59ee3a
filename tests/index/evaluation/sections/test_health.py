"""Health of the marketplace by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from index.evaluation.sections.health import Spread, calibration, diversity, gini, item_bits, lorenz
from pipelines.sequences.item_sets import ItemSets


def test_gini_by_hand():
    assert gini(np.ones(4)) == pytest.approx(0.0)
    # One of n has everything: (n - 1) / n.
    assert gini(np.array([0.0, 0.0, 0.0, 8.0])) == pytest.approx(3 / 4)
    # Mean absolute difference over twice the mean: values 1, 3 differ by 2 in half of the pairs; 1 / (2 · 2).
    assert gini(np.array([1.0, 3.0])) == pytest.approx(1 / 4)


def test_gini_is_the_mean_absolute_difference():
    values = np.random.default_rng(0).pareto(1.5, 200)
    expected = np.abs(values[:, None] - values).mean() / (2 * values.mean())
    assert gini(values) == pytest.approx(expected)


def test_spread_against_scipy():
    exposures = np.array([5.0, 0.0, 3.0, 2.0])
    spread = Spread.of(exposures)
    assert spread.coverage == 3 / 4
    assert spread.effective_number == pytest.approx(math.exp(stats.entropy([5, 3, 2])))
    assert Spread.of(np.full(7, 3.0)).effective_number == pytest.approx(7.0)


def test_nothing_shown_has_no_spread():
    spread = Spread.of(np.zeros(3))
    assert spread.as_json() == {"things": 3, "coverage": 0.0, "gini": None, "effective_number": None}


def test_lorenz_ends_in_everything():
    curve = lorenz(np.array([1.0, 3.0]), points=2)
    assert curve.tolist() == [[0.0, 0.0], [0.5, 0.25], [1.0, 1.0]]


def test_calibration_by_hand():
    category = np.array([0, 0, 1, 1], np.int32)
    past = ItemSets.of(np.array([0, 0, 1]), np.array([0, 2, 0], np.int32), 3)
    top = np.array([[0, 2], [2, 3], [0, 1]], np.int32)
    found = calibration(top, past, category, 2)
    assert found[0] == pytest.approx(0.0)
    # Past all in category 0, shown all in 1: log(1 / .01), the smoothing's own share.
    assert found[1] == pytest.approx(math.log(100))
    assert math.isnan(found[2])


def test_diversity_is_the_mean_over_pairs():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(20, 6))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    top = np.array([[1, 5, 7, 9], [2, 3, -1, -1], [4, -1, -1, -1]], np.int32)
    found = diversity(top, vectors)
    for user, rows in enumerate(([1, 5, 7, 9], [2, 3])):
        cosines = [vectors[a] @ vectors[b] for place, a in enumerate(rows) for b in rows[place + 1 :]]
        assert found[user] == pytest.approx(1 - np.mean(cosines), abs=1e-6)
    assert math.isnan(found[2])


def test_bits_by_hand():
    # 7 users; met by 3: (3 + 1) / 8 is one half: 1 bit. Met by nobody: 1 / 8: 3 bits.
    assert item_bits(7, np.array([3.0, 0.0, 7.0])).tolist() == [1.0, 3.0, 0.0]
