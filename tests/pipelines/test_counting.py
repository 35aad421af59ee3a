"""Counts over windows against counting one by one; the future never counts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipelines.counting import US_PER_DAY, counts_before, window_counts

pairs = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 40)), max_size=25)


@given(events=pairs, asked=pairs, days=st.sampled_from([1, 7, 28]))
def test_counts_equal_counting_one_by_one(
    events: list[tuple[int, int]], asked: list[tuple[int, int]], days: int
) -> None:
    owners, times = (np.array([event[place] for event in events], np.int64) for place in (0, 1))
    askers, moments = (np.array([one[place] for one in asked], np.int64) for place in (0, 1))
    times, moments = times * US_PER_DAY // 2, moments * US_PER_DAY // 2
    expected = [
        sum(
            owner == asker and moment - days * US_PER_DAY <= time < moment
            for owner, time in zip(owners, times, strict=True)
        )
        for asker, moment in zip(askers, moments, strict=True)
    ]
    assert counts_before(owners, times, askers, moments, days).tolist() == expected
    for asker, moment, count in zip(askers, moments, expected, strict=True):
        assert window_counts(owners, times, 3, int(moment), days)[asker] == count
