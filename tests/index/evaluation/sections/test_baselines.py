"""Baselines against counting by hand and against implicit asked directly."""

from __future__ import annotations

import warnings
from collections import Counter

import numpy as np
import pytest

from index.evaluation.sections.baselines import popularity_order, rank_baseline
from index.evaluation.settings import BASELINES, EvaluationSettings
from index.evaluation.subject import EvaluationData

SETTINGS = EvaluationSettings(k=(5, 20), waterfall_k=5, recent_days=7)
NEWEST_US = 7 * 86_400_000_000


@pytest.fixture(scope="module")
def data(written):
    return EvaluationData.open(written.features, SETTINGS)


def past_of(data) -> list[Counter]:
    """Each evaluated user's items before the test part, counted."""
    events = data.users.events
    return [
        Counter(
            row
            for row, split in zip(
                events.rows[events.offsets[user] : events.offsets[user + 1]].tolist(),
                events.splits[events.offsets[user] : events.offsets[user + 1]].tolist(),
                strict=True,
            )
            if split < 2
        )
        for user in data.held_out.users.tolist()
    ]


def by_count(counts: Counter, items: int) -> list[int]:
    return sorted(range(items), key=lambda row: (-counts[row], row))


def test_popularity_is_counting(data):
    before = data.users.events.splits < 2
    order = by_count(Counter(data.users.events.rows[before].tolist()), len(data.item_ids))
    found = rank_baseline("popularity", data.past, data.num_items, data.held_out, SETTINGS)
    assert (found.served == np.array(order[:20])).all()
    for ranked, met in zip(found.novel.tolist(), past_of(data), strict=True):
        assert ranked == [row for row in order if row not in met][:20]


def test_recent_popularity_counts_the_last_days(data):
    sequences = data.users.events
    before = sequences.splits < 2
    recent = before & (sequences.times > sequences.times[before].max() - NEWEST_US)
    order = by_count(Counter(sequences.rows[recent].tolist()), len(data.item_ids))
    assert (
        rank_baseline("recent_popularity", data.past, data.num_items, data.held_out, SETTINGS).served
        == np.array(order[:20])
    ).all()


def test_own_frequency_then_popularity(data):
    before = data.users.events.splits < 2
    everyone = Counter(data.users.events.rows[before].tolist())
    order = by_count(everyone, len(data.item_ids))
    found = rank_baseline("own_frequency", data.past, data.num_items, data.held_out, SETTINGS)
    for ranked, met in zip(found.served.tolist(), past_of(data), strict=True):
        own = sorted(met, key=lambda row: (-met[row], -everyone[row], row))
        assert ranked == [*own, *(row for row in order if row not in met)][:20]


@pytest.mark.parametrize("name", ["item_knn", "als"])
def test_learned_baselines_are_those_of_implicit(data, name):
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits

    with warnings.catch_warnings(), threadpool_limits(1, "blas"):
        warnings.simplefilter("ignore")
        from implicit.als import AlternatingLeastSquares
        from implicit.nearest_neighbours import CosineRecommender

        past = data.past
        counts = csr_matrix(
            (np.ones(len(past.rows), np.float32), (past.owners, past.rows)), shape=(past.num_users, data.num_items)
        )
        model = (
            CosineRecommender(K=500)
            if name == "item_knn"
            else AlternatingLeastSquares(factors=64, iterations=15, random_state=17)
        )
        model.fit(counts, show_progress=False)
        user = int(data.held_out.users[3])
        expected = model.recommend(user, counts[user], N=20, filter_already_liked_items=False)[0]
    found = rank_baseline(name, data.past, data.num_items, data.held_out, SETTINGS)
    assert found.served[3].tolist() == expected.tolist()
    for ranked, met in zip(found.novel.tolist(), past_of(data), strict=True):
        assert not set(ranked) & set(met)


@pytest.mark.parametrize("name", BASELINES)
def test_no_row_twice(data, name):
    found = rank_baseline(name, data.past, data.num_items, data.held_out, SETTINGS)
    for ranked in (*found.served.tolist(), *found.novel.tolist()):
        rows = [row for row in ranked if row >= 0]
        assert len(set(rows)) == len(rows)


def test_ties_go_to_the_lower_row():
    assert popularity_order(np.array([3, 1, 1, 2, 3], np.int32), 5).tolist() == [1, 3, 2, 0, 4]
