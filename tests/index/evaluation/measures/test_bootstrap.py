"""The bootstrap: its intervals hold the truth as often as they say, and equal scipy's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from index.evaluation.measures.bootstrap import (
    bootstrap,
    clustered_bootstrap,
    clustered_means,
    paired_bootstrap,
)

WORLDS = 1000
USERS = 300


def recall_like(rng: np.random.Generator, users: int) -> np.ndarray:
    """Recalls of users whose truths have 1 to 8 items and whose chance of a hit differs: skewed, with many zeros."""
    sizes = rng.integers(1, 9, users)
    return rng.binomial(sizes, rng.beta(0.7, 2.8, users)) / sizes


# Mean of the Beta(.7, 2.8) above: hits are binomial with it, whatever the sizes.
TRUE_MEAN = 0.7 / (0.7 + 2.8)


def test_intervals_hold_the_truth_in_95_percent_of_worlds():
    held = 0
    for world in range(WORLDS):
        values = recall_like(np.random.default_rng(world), USERS)
        interval = bootstrap(values, resamples=500, seed=world)[0]
        held += interval.low <= TRUE_MEAN <= interval.high
    assert 0.93 <= held / WORLDS <= 0.97


def test_paired_intervals_hold_the_true_difference():
    held = 0
    for world in range(WORLDS):
        rng = np.random.default_rng(10_000 + world)
        first = recall_like(rng, USERS)
        # The second version finds a hit more, of five, for a fifth of the users: .04 on average.
        second = first + np.where(rng.random(USERS) < 0.2, 0.2, 0.0)
        difference = paired_bootstrap(first, second, resamples=500, seed=world)
        held += difference.low <= 0.04 <= difference.high
    assert 0.93 <= held / WORLDS <= 0.97


def test_no_difference_is_called_certain_in_5_percent_of_worlds():
    certain = 0
    for world in range(500):
        rng = np.random.default_rng(20_000 + world)
        certain += paired_bootstrap(recall_like(rng, 200), recall_like(rng, 200), resamples=500, seed=world).is_certain
    assert 0.02 <= certain / 500 <= 0.08


def test_equals_scipy():
    values = recall_like(np.random.default_rng(3), 200)
    ours = bootstrap(values, resamples=20_000)[0]
    theirs = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", rng=1).confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.low, abs=0.002)
    assert ours.high == pytest.approx(theirs.high, abs=0.002)


def test_users_without_a_value_are_left_out():
    columns = np.array([[1.0, np.nan], [0.0, np.nan], [np.nan, 0.5], [1.0, np.nan]])
    first, second = bootstrap(columns, resamples=200)
    assert (first.mean, first.users) == (pytest.approx(2 / 3), 3)
    assert (second.mean, second.users, second.low, second.high) == (0.5, 1, 0.5, 0.5)


def test_nobody_has_a_value():
    for values in (np.zeros(0), np.full(5, np.nan)):
        interval = bootstrap(values)[0]
        assert interval.users == 0
        assert math.isnan(interval.mean)
    assert paired_bootstrap(np.full(3, np.nan), np.ones(3)).users == 0


def test_a_pair_needs_both_values():
    difference = paired_bootstrap([0.0, 1.0, np.nan, 0.5], [1.0, np.nan, 1.0, 0.5], resamples=200)
    assert difference.users == 2
    assert difference.difference == pytest.approx(0.5)
    assert difference.relative == pytest.approx(2.0) or math.isnan(difference.relative)


def test_relative_difference_of_nothing_is_no_number():
    assert math.isnan(paired_bootstrap(np.zeros(5), np.ones(5)).relative)


def test_the_same_seed_gives_the_same_interval_and_blocks_do_not_matter(monkeypatch):
    values = recall_like(np.random.default_rng(5), 100)
    first = bootstrap(values, resamples=300, seed=4)
    assert bootstrap(values, resamples=300, seed=4) == first
    assert bootstrap(values, resamples=300, seed=5) != first


def test_rows_of_one_cluster_each_are_drawn_as_users_are() -> None:
    values = np.random.default_rng(2).random((40, 2))
    alone = bootstrap(values, resamples=300)
    assert clustered_bootstrap(values, np.arange(40)[::-1] * 7, resamples=300)[0].mean == pytest.approx(alone[0].mean)
    ordered = clustered_bootstrap(values, np.arange(40) * 7, resamples=300)
    for one, other in zip(alone, ordered, strict=True):
        assert (other.low, other.high, other.users) == (pytest.approx(one.low), pytest.approx(one.high), one.users)


def test_means_of_whole_clusters_are_those_of_a_loop() -> None:
    values = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 4.0], [7.0, 8.0]])
    clusters = np.array([0, 0, 1, 2])
    means = clustered_means(values, clusters, 50, seed=4)
    drawn = np.random.default_rng(4).integers(0, 3, (50, 3))
    for found, chosen in zip(means, drawn, strict=True):
        rows = np.concatenate([values[clusters == cluster] for cluster in chosen])
        np.testing.assert_allclose(found, np.nanmean(rows, axis=0))


def test_clusters_that_repeat_a_user_widen_the_interval() -> None:
    rng = np.random.default_rng(6)
    values = np.repeat(rng.random(30), 20)
    clustered = clustered_bootstrap(values, np.repeat(np.arange(30), 20))[0]
    as_if_alone = bootstrap(values)[0]
    assert clustered.high - clustered.low > 3 * (as_if_alone.high - as_if_alone.low)
    assert clustered.users == 30


def test_clusters_without_a_value_have_no_interval() -> None:
    none = clustered_bootstrap(np.array([[np.nan], [np.nan]]), np.array([3, 4]))[0]
    assert np.isnan(none.mean)
    assert none.users == 0
    assert clustered_bootstrap(np.zeros((0, 2)), np.zeros(0, np.int64))[1].users == 0
