"""Strengths of events against a loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sequences.strengths import by_item, counting, strengths
from tests.pipelines.sequences.test_event_lists import WEIGHTS, drawn

DAY_US = 86_400_000_000


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([None, 0.5, 7.0]), st.integers(0, 60))
def test_strengths_are_weights_halved_with_each_half_life(seed: int, half_life: float | None, newest: int) -> None:
    events = drawn(seed)
    in_days = type(events)(
        events.offsets, events.rows, events.times * DAY_US, events.actions, events.splits, events.values
    )
    expected = [
        WEIGHTS[action] * (1.0 if half_life is None else 0.5 ** (max(newest - time, 0) / half_life))
        for action, time in zip(events.actions.tolist(), events.times.tolist(), strict=True)
    ]
    found = strengths(in_days, WEIGHTS, half_life, newest * DAY_US)
    assert found == pytest.approx(expected)
    assert counting(events, WEIGHTS).tolist() == [WEIGHTS[action] > 0 for action in events.actions.tolist()]
    sums = [sum(value for value, row in zip(expected, events.rows.tolist(), strict=True) if row == r) for r in range(7)]
    assert by_item(events, found, 7) == pytest.approx(sums)


def test_a_strength_by_hand() -> None:
    """Weight 2, 14 days old, half-life 7: 2 / 4."""
    events = drawn(0).where(np.zeros(drawn(0).num_events, bool))
    one = type(events)(
        np.array([0, 1]), np.array([3], np.int32), np.array([0]), np.array([2], np.int8), np.array([0], np.int8)
    )
    assert strengths(one, WEIGHTS, 7.0, 14 * DAY_US).tolist() == [0.5]
