"""What is counted: windows against counting one by one, so that the future never counts; and a night by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.sequences.counted import Counted, Use, in_last_days
from tests import oracles


@given(
    events=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=25),
    half_day=st.integers(0, 40),
    days=st.sampled_from([1, 7, 28]),
)
def test_counts_equal_counting_one_by_one(events: list[tuple[int, int]], half_day: int, days: int) -> None:
    owners, times = (np.array([event[place] for event in events], np.int64) for place in (0, 1))
    times, moment = times * US_PER_DAY // 2, half_day * US_PER_DAY // 2
    expected = oracles.window_counts(owners, times, range(3), [moment] * 3, days * US_PER_DAY)
    assert np.bincount(owners[in_last_days(times, moment, days)], minlength=3).tolist() == expected


def test_what_is_counted_is_the_part_of_now_less_that_of_before_by_hand() -> None:
    """Three events: one moves from valid to train, one leaves, one is new in test; the last user is gone."""
    counted = Counted(
        places=np.array([0, -1, 1]),
        rows=np.array([2, 2, 0], np.int32),
        actions=np.zeros(3, np.int8),
        times=np.zeros(3, np.int64),
        now=Use(np.array([0, -1, 2], np.int8), 0),
        before=Use(np.array([1, 0, -1], np.int8), 0),
    )
    assert counted.by_split == [0, -1, 1]
    assert counted.by_user(2, lambda use: use.splits == 0).tolist() == [1, 0]
    for items in (3, 10_000_000):
        rows, counts = counted.by_item(items, lambda use: use.splits == 2)
        assert (rows.tolist(), counts.tolist()) == ([0], [1])
        rows, counts = counted.by_item(items, lambda use: use.splits == 0)
        assert (rows.tolist(), counts.tolist()) == ([], [])
