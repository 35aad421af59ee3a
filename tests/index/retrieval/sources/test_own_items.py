"""A user's own items against a loop over the events."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from index.inference.records import Request
from index.retrieval.sources.own_items import own_items

WEIGHTS = (1.0, 0.0, 2.5)
Event = tuple[int, int, int]


def request(events: list[Event]) -> Request:
    rows, ages, actions = (np.array([event[place] for event in events]) for place in range(3))
    columns = (rows.astype(np.int32), ages.astype(np.float32), actions.astype(np.int32))
    return Request(*columns, *columns, now_us=0, unknown=0)


events = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 2)), max_size=12)


@given(events.map(lambda drawn: sorted(drawn, key=lambda event: -event[1])))
def test_own_items_are_those_that_were_chosen_the_strongest_first(history: list[Event]) -> None:
    """Items that were only shown (weight 0) are none of them. Strengths of equal sums may come in either order."""
    strength: dict[int, float] = {}
    for row, age, action in history:
        if WEIGHTS[action]:
            strength[row] = strength.get(row, 0.0) + WEIGHTS[action] * 0.5 ** (age / 10.0)
    found = own_items(request(history), np.array(WEIGHTS), 10.0).tolist()
    assert sorted(found) == sorted(strength)
    ordered = [strength[row] for row in found]
    assert all(first >= second - 1e-9 for first, second in itertools.pairwise(ordered))


@given(events)
def test_context_changes_none_of_the_own_items(history: list[Event]) -> None:
    chosen = [event for event in history if WEIGHTS[event[2]]]
    with_context, without = (own_items(request(one), np.array(WEIGHTS), 10.0).tolist() for one in (history, chosen))
    assert with_context == without


def test_at_equal_strength_the_later_one_is_first() -> None:
    assert own_items(request([(4, 3, 0), (2, 3, 0), (1, 3, 1)]), np.array(WEIGHTS), 10.0).tolist() == [2, 4]
