"""Counts over windows against counting one by one; the future never counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.sequences.window_counts import window_counts
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
    assert window_counts(owners, times, 3, moment, days).tolist() == expected
