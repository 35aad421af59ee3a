"""Shards merged, by hand: rows are counted on from shard to shard, the best of all come first."""

from __future__ import annotations

import numpy as np

from index.search.exact import ExactSearcher
from index.search.shards import ShardedSearcher
from index.search.utility import Utility

# Three shards of 3, 2 and 4 rows; a row scores its first number, and its second is there for another query.
PARTS = ([[5, 0], [1, 9], [7, 0]], [[7, 1], [2, 8]], [[0, 0], [9, 2], [4, 0], [5, 3]])


def merged_searcher() -> ShardedSearcher:
    return ShardedSearcher([ExactSearcher(np.array(part, np.float32)) for part in PARTS])  # type: ignore[list-item]


def test_the_best_of_all_shards_by_hand() -> None:
    """Scores of rows 0 to 8: 5, 1, 7, 7, 2, 0, 9, 4, 5. Of equal ones the lower row comes first."""
    searcher = merged_searcher()
    assert searcher.num_items == 9
    found = searcher.search(np.array([1, 0], np.float32), 5)
    assert found.rows.tolist() == [6, 2, 3, 0, 8]
    assert found.scores.tolist() == [9, 7, 7, 5, 5]
    batch = searcher.search_batch(np.array([[1, 0], [0, 1]], np.float32), 4)
    # By the second number: 0, 9, 0, 1, 8, 0, 2, 0, 3.
    assert batch.rows.tolist() == [[6, 2, 3, 0], [1, 4, 8, 6]]


def test_more_rows_than_there_are_come_once_each_by_hand() -> None:
    found = merged_searcher().search(np.array([1, 0], np.float32), 20)
    assert found.rows.tolist() == [6, 2, 3, 0, 8, 7, 4, 1, 5]


def test_the_best_by_utility_take_their_own_rows_values() -> None:
    """Half the log value is added: 3, 0, 0, 4, 0, 9, 0, 0, 0 over scores 5, 1, 7, 7, 2, 0, 9, 4, 5."""
    values = np.array([6, 0, 0, 8, 0, 18, 0, 0, 0], np.float32)
    found = merged_searcher().search_utility(np.array([1, 0], np.float32), 4, Utility(0.5, values))
    assert found.rows.tolist() == [3, 5, 6, 0]
    assert found.scores.tolist() == [11, 9, 9, 8]
