"""Exact recall against a slow loop, and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets
from tests import oracles
from towers.training.recall import recall_at, recall_of


def sets(lists: list[list[int]]) -> ItemSets:
    owners = np.repeat(np.arange(len(lists)), [len(entry) for entry in lists])
    return ItemSets.of(owners, np.array([row for entry in lists for row in entry], np.int32), len(lists))


def truth(wanted: list[list[int]], seen: list[list[int]]) -> HeldOut:
    return HeldOut(np.arange(len(wanted), dtype=np.int32), sets(wanted), sets(seen))


def test_by_hand() -> None:
    """Scores 5, 4, 3, 2, 1 for items 0 to 4; truth {1, 4}; seen {0}; k = 2.

    All: top 2 = 0, 1: one hit, recall 1/2; DCG = 1/log2(3), ideal = 1 + 1/log2(3).
    Removed: top 2 = 1, 2: recall 1/2, DCG = 1.
    """
    users, items = np.array([[1.0]], np.float32), np.array([[5.0], [4], [3], [2], [1]], np.float32)
    ideal = 1 + 1 / np.log2(3)
    figures = recall_at(users, items, truth([[1, 4]], [[0]]), (2,), remove_seen=False)
    assert figures.recall[2] == 0.5
    assert figures.ndcg[2] == pytest.approx((1 / np.log2(3)) / ideal)
    assert recall_at(users, items, truth([[1, 4]], [[0]]), (2,), remove_seen=True).ndcg[2] == pytest.approx(1 / ideal)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.booleans())
def test_it_is_what_a_loop_finds(seed: int, remove: bool) -> None:
    rng = np.random.default_rng(seed)
    users, items = rng.normal(size=(7, 3)).astype(np.float32), rng.normal(size=(23, 3)).astype(np.float32)
    seen = [rng.choice(23, 4, replace=False).tolist() for _ in range(7)]
    wanted = [rng.choice(23, int(rng.integers(1, 6)), replace=False).tolist() for _ in range(7)]
    figures = recall_at(users, items, truth(wanted, seen), (3, 9), remove_seen=remove, block=3)
    for k in (3, 9):
        without = [set(rows) for rows in seen] if remove else None
        expected = oracles.recall_figures(users @ items.T, [set(rows) for rows in wanted], k, without)
        found = (figures.recall[k], figures.capped_recall[k], figures.ndcg[k], figures.users)
        assert found == pytest.approx(expected)


def test_novel_truth_leaves_out_what_was_seen_and_users_without_any() -> None:
    novel = truth([[1, 2], [3], [5]], [[2], [3], []]).without_seen()
    assert novel.users.tolist() == [0, 2]
    assert novel.truth.rows.tolist() == [1, 5]
    assert novel.seen.rows.tolist() == [2]


def test_a_list_longer_than_the_catalogue_is_the_catalogue() -> None:
    figures = recall_at(
        np.ones((1, 1), np.float32), np.ones((1, 1), np.float32), truth([[0]], [[]]), (5,), remove_seen=False
    )
    assert figures.recall[5] == 1.0


def test_of_equal_scores_the_lower_row_comes_first() -> None:
    """Four items score 1; the list has room for two of them, rows 1 and 2."""
    scores = np.array([[0.0, 1.0, 1.0, 0.5, 1.0, 1.0]], np.float32)
    for row, hit in enumerate((0.0, 1.0, 1.0, 0.0, 0.0, 0.0)):
        figures = recall_of(lambda part: scores[part].copy(), truth([[row]], [[]]), (2,), remove_seen=False)
        assert figures.recall[2] == hit


def test_parts_of_a_truth_hold_their_users_own_items() -> None:
    """Users at even distances, and users of chosen items, against picking them out by hand."""
    held, seen = [[3], [1, 4], [2], [0, 5]], [[0], [], [4, 5], [1]]
    whole = truth(held, seen)

    def by_user(part: HeldOut) -> dict[int, tuple[list[int], list[int]]]:
        def lists(sets: ItemSets) -> list[list[int]]:
            return [found.tolist() for found in np.split(sets.rows, sets.offsets[1:-1])]

        return dict(zip(part.users.tolist(), zip(lists(part.truth), lists(part.seen), strict=True), strict=True))

    assert by_user(whole.spread(2)) == {0: ([3], [0]), 2: ([2], [4, 5])}
    assert whole.spread(9) is whole
    assert by_user(whole.where(whole.truth.rows >= 3)) == {0: ([3], [0]), 1: ([4], []), 3: ([5], [1])}
