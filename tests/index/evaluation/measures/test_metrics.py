"""Metrics against ranx, scikit-learn and hand arithmetic: ties, duplicates, empty truths, k above the list."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.held_out import held_out, users_with_truth
from index.evaluation.measures.metrics import hits_of, user_metrics, weighted_recall, without
from index.inference.user_records import UserRecords
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.schema import parse_schema
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.reader import Sequences

ITEMS = 30
K = (1, 3, 5, 10, 50)


def pairs(lists: list[list[int]], values: list[list[float]] | None = None) -> ItemSets:
    owners = np.array([user for user, rows in enumerate(lists) for _ in rows], np.int64)
    rows = np.array([row for rows in lists for row in rows], np.int32)
    worth = None if values is None else [value for line in values for value in line]
    return ItemSets.of(owners, rows, len(lists), worth)


def rankings(lists: list[list[int]], depth: int) -> np.ndarray:
    ranked = np.full((len(lists), depth), -1, np.int32)
    for line, rows in zip(ranked, lists, strict=True):
        line[: len(rows)] = rows
    return ranked


def random_case(seed: int) -> tuple[list[list[int]], list[list[int]]]:
    """Rankings and truths of 40 users; every user has a truth and a ranking, some shorter than k."""
    rng = np.random.default_rng(seed)
    ranked = [rng.permutation(ITEMS)[: rng.integers(1, 21)].tolist() for _ in range(40)]
    truth = [rng.permutation(ITEMS)[: rng.integers(1, 9)].tolist() for _ in range(40)]
    return ranked, truth


def test_by_hand():
    # Truth {1, 2, 3}; the ranking hits at places 1 and 3 of 4.
    found = user_metrics(rankings([[1, 9, 3, 8]], 4), pairs([[1, 2, 3]]), (1, 2, 4))
    assert found.recall.tolist() == [[1.0, 1 / 2, 2 / 3]]
    gained = 1 + 1 / math.log2(4)
    assert found.at("ndcg", 4)[0] == pytest.approx(gained / (1 + 1 / math.log2(3) + 1 / math.log2(4)))
    assert found.at("ndcg", 2)[0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert found.mrr.tolist() == [[1.0, 1.0, 1.0]]
    assert found.hit_rate.tolist() == [[1.0, 1.0, 1.0]]


def test_first_hit_below_the_cut_off_counts_nothing():
    found = user_metrics(rankings([[9, 8, 1]], 3), pairs([[1]]), (2, 3))
    assert found.mrr.tolist() == [[0.0, 1 / 3]]
    assert found.hit_rate.tolist() == [[0.0, 1.0]]
    assert found.recall.tolist() == [[0.0, 1.0]]


@pytest.mark.slow  # ranx compiles itself with numba for half a minute
@pytest.mark.parametrize("seed", range(5))
def test_equals_ranx(seed):
    with warnings.catch_warnings():
        # ranx's own: it compiles with numba, which warns of its caches.
        warnings.simplefilter("ignore")
        from ranx import Qrels, Run, evaluate

    ranked, truth = random_case(seed)
    qrels = Qrels({f"q{user:02d}": {f"d{row}": 1 for row in rows} for user, rows in enumerate(truth)})
    run = Run(
        {
            f"q{user:02d}": {f"d{row}": float(len(rows) - place) for place, row in enumerate(rows)}
            for user, rows in enumerate(ranked)
        }
    )
    found = user_metrics(rankings(ranked, 20), pairs(truth), K)
    sizes = np.array([len(rows) for rows in truth])
    for k in K:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = evaluate(
                qrels, run, [f"recall@{k}", f"ndcg@{k}", f"mrr@{k}", f"hit_rate@{k}"], return_mean=False
            )
        # ranx divides by the truth's size, we by what k places can hold.
        ours = found.at("recall", k) * np.minimum(sizes, k) / sizes
        assert ours == pytest.approx(expected[f"recall@{k}"], abs=1e-9)
        assert found.at("ndcg", k) == pytest.approx(expected[f"ndcg@{k}"], abs=1e-9)
        assert found.at("mrr", k) == pytest.approx(expected[f"mrr@{k}"], abs=1e-9)
        assert found.at("hit_rate", k) == pytest.approx(expected[f"hit_rate@{k}"], abs=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_ndcg_equals_scikit_learn(seed):
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(seed)
    ranked = [rng.permutation(ITEMS).tolist() for _ in range(20)]
    truth = [rng.permutation(ITEMS)[: rng.integers(1, 9)].tolist() for _ in range(20)]
    found = user_metrics(rankings(ranked, ITEMS), pairs(truth), (5, 10))
    for user in range(20):
        gains, scores = np.zeros((1, ITEMS)), np.zeros((1, ITEMS))
        gains[0, truth[user]] = 1
        scores[0, ranked[user]] = np.arange(ITEMS, 0, -1)
        for k in (5, 10):
            assert found.at("ndcg", k)[user] == pytest.approx(ndcg_score(gains, scores, k=k))


def test_duplicates_count_once_at_their_first_place():
    twice = user_metrics(rankings([[4, 1, 1, 1, 2]], 5), pairs([[1, 2, 7]]), (2, 4, 5))
    once = user_metrics(rankings([[4, 1, 5, 6, 2]], 5), pairs([[1, 2, 7]]), (2, 4, 5))
    for name in ("recall", "ndcg", "mrr", "hit_rate"):
        assert getattr(twice, name).tolist() == getattr(once, name).tolist()
    assert hits_of(rankings([[4, 1, 1, 1, 2]], 5), pairs([[1, 2, 7]])).tolist() == [[False, True, False, False, True]]


def test_repeated_truth_is_one_item_with_the_sum_of_its_values():
    truth = pairs([[5, 5, 2]], [[1.0, 2.0, 4.0]])
    assert truth.rows.tolist() == [2, 5]
    assert truth.values.tolist() == [4.0, 3.0]
    assert truth.events.tolist() == [1, 2]


def test_a_user_without_truth_has_no_value():
    found = user_metrics(rankings([[1, 2], [1, 2]], 2), pairs([[], [2]]), (1, 2))
    assert np.isnan(found.recall[0]).all()
    assert np.isnan(found.hit_rate[0]).all()
    assert found.recall[1].tolist() == [0.0, 1.0]


def test_no_user_with_truth_at_all():
    found = user_metrics(rankings([[1, 2]], 2), pairs([[]]), (1,))
    assert np.isnan(found.recall).all()
    assert np.isnan(weighted_recall(rankings([[1]], 1), pairs([[]]), np.zeros(0), 1)).all()


def test_an_empty_ranking_hits_nothing():
    found = user_metrics(np.full((1, 5), -1, np.int32), pairs([[1]]), (1, 5))
    assert found.recall.tolist() == [[0.0, 0.0]]
    assert user_metrics(np.zeros((1, 0), np.int32), pairs([[1]]), (3,)).recall.tolist() == [[0.0]]


def test_truth_outside_the_catalogue_is_no_pair():
    truth = pairs([[-1, 3]])
    assert truth.rows.tolist() == [3]


def test_k_of_zero_and_rankings_of_others_are_refused():
    ranked, truth = rankings([[1]], 1), pairs([[1]])
    with pytest.raises(ConfigError, match=r"k: expected cut-offs of 1 or more, got \[0, 5\]"):
        user_metrics(ranked, truth, (0, 5))
    with pytest.raises(ConfigError, match=r"got \[\]"):
        user_metrics(ranked, truth, ())
    with pytest.raises(ConfigError, match=r"got \[0\]"):
        weighted_recall(ranked, truth, np.ones(1), 0)
    with pytest.raises(ConfigError, match=r"expected shape \(1, k\).*got \(2, 1\)"):
        user_metrics(rankings([[1], [2]], 1), truth, (1,))


def test_weighted_recall_by_hand():
    # Weights 5, 1, 3: two places hold at most 8; the ranking's two places gain 1.
    truth = pairs([[1, 2, 3]])
    weights = np.array([5.0, 1.0, 3.0])
    assert weighted_recall(rankings([[2, 9, 1]], 3), truth, weights, 2).tolist() == [1 / 8]
    assert weighted_recall(rankings([[2, 9, 1]], 3), truth, weights, 10).tolist() == [6 / 9]


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_with_equal_weights_it_is_recall(seed, k):
    ranked, truth = random_case(seed)
    sets = pairs(truth)
    weighted = weighted_recall(rankings(ranked, 20), sets, np.full(len(sets.rows), 2.5), k)
    assert weighted == pytest.approx(user_metrics(rankings(ranked, 20), sets, (k,)).at("recall", k))


@given(st.integers(0, 10_000))
@settings(max_examples=50, deadline=None)
def test_recall_is_what_sets_say(seed):
    ranked, truth = random_case(seed)
    found = user_metrics(rankings(ranked, 20), pairs(truth), K)
    for user in range(len(ranked)):
        for k in K:
            hits = len(set(ranked[user][:k]) & set(truth[user]))
            assert found.at("recall", k)[user] == pytest.approx(hits / min(k, len(truth[user])))


@given(st.integers(0, 10_000), st.integers(1, 25))
@settings(max_examples=50, deadline=None)
def test_without_is_what_lists_say(seed, k):
    ranked, seen = random_case(seed)
    left = without(rankings(ranked, 20), pairs(seen), k)
    for user in range(len(ranked)):
        expected = [row for row in ranked[user] if row not in seen[user]][:k]
        assert left[user].tolist() == expected + [-1] * (k - len(expected))


def test_pairs_of_some_users_in_another_order():
    some = pairs([[1], [], [4, 2], [7]]).of_users(np.array([2, 1, 0]))
    assert some.offsets.tolist() == [0, 2, 2, 3]
    assert some.rows.tolist() == [2, 4, 1]
    assert some.owners.tolist() == [0, 0, 2]


def test_context_actions_are_no_truth_and_do_not_make_a_user_evaluated() -> None:
    """User 0 bought item 2 and was shown item 1; user 1 was only shown something."""
    events = EventLists(
        offsets=np.array([0, 3, 4]),
        rows=np.array([0, 1, 2, 1], np.int32),
        times=np.arange(4),
        actions=np.array([1, 0, 1, 0], np.int8),
        values=np.ones(4, np.float32),
        splits=np.array([0, 2, 2, 2], np.int8),
    )
    users = UserRecords(Path(), Sequences(pa.array([10, 11]), events))
    columns = {"path": "e.parquet", "user_id": "u", "item_id": "i", "time": "t", "action": "a"}
    raw = {
        "dataset": {"name": "shown"},
        "tables": {"events": columns},
        "split": {"valid_from": "2025-01-01", "test_from": "2025-02-01"},
    }
    schema = parse_schema({**raw, "actions": {"shown": 0.0, "bought": 1.0}}, "shown")
    found = held_out(users, schema)
    assert users_with_truth(users, schema).tolist() == found.users.tolist() == [0]
    assert (found.truth.rows.tolist(), found.seen.rows.tolist()) == ([2], [0])
