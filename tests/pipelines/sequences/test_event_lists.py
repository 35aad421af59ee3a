"""Event lists against plain lists of events, and the held-out truth against sets made by a loop."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut, truth_by_action

COLUMNS = ("rows", "times", "actions", "splits", "values")
WEIGHTS = (1.0, 0.0, 2.0)
Event = tuple[int, int, int, int, float]


def drawn(seed: int) -> EventLists:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, rng.integers(1, 12))
    total = int(counts.sum())
    times = np.concatenate([np.sort(rng.integers(0, 50, count)) for count in counts]).astype(np.int64)
    return EventLists(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        rows=rng.integers(0, 6, total).astype(np.int32),
        times=times,
        actions=rng.integers(0, 3, total).astype(np.int8),
        splits=np.digitize(times, [20, 35]).astype(np.int8),
        values=rng.integers(1, 5, total).astype(np.float32),
    )


def lists(events: EventLists) -> list[list[Event]]:
    columns = zip(*(getattr(events, name).tolist() for name in COLUMNS), strict=True)
    whole = list(columns)
    bounds = events.offsets.tolist()
    return [whole[start:stop] for start, stop in itertools.pairwise(bounds)]


def kept(events: EventLists, wanted: object) -> list[list[Event]]:
    return [[event for event in user if wanted(event)] for user in lists(events)]  # type: ignore[operator]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31))
def test_parts_of_lists_are_parts_of_each_users_list(seed: int) -> None:
    events = drawn(seed)
    assert lists(events.before(2)) == kept(events, lambda event: event[3] < 2)
    assert lists(events.of_split(1)) == kept(events, lambda event: event[3] == 1)
    assert lists(events.window(10, 30)) == kept(events, lambda event: 10 <= event[1] < 30)
    assert lists(events.window(None, 30)) == kept(events, lambda event: event[1] < 30)
    assert lists(events.window(10, None)) == kept(events, lambda event: event[1] >= 10)
    assert lists(events.latest(3)) == [user[-3:] for user in lists(events)]
    users = np.random.default_rng(seed).permutation(events.num_users)[: events.num_users // 2 + 1]
    assert lists(events.of_users(users)) == [lists(events)[user] for user in users]
    assert events.owners.tolist() == [user for user, own in enumerate(lists(events)) for _ in own]
    assert events.counts.tolist() == [len(own) for own in lists(events)]
    assert (events.num_events, events.num_users) == (len(events.rows), len(lists(events)))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2), st.booleans())
def test_the_held_out_truth_is_what_a_loop_finds(seed: int, split: int, context_is_seen: bool) -> None:
    """Actions of weight 0 are no truth, and they are seen only if that is asked for."""
    events = drawn(seed)
    truth = [{row for row, _, action, part, _ in own if part == split and WEIGHTS[action]} for own in lists(events)]
    seen = [
        {row for row, _, action, part, _ in own if part < split and (WEIGHTS[action] or context_is_seen)}
        for own in lists(events)
    ]
    users = [user for user, items in enumerate(truth) if items]

    def check(found: HeldOut, users: list[int], wanted: list[set[int]]) -> None:
        assert found.users.tolist() == users
        parts = zip((found.truth, found.seen), (wanted, seen), strict=True)
        for sets, expected in parts:
            assert [own.tolist() for own in np.split(sets.rows, sets.offsets[1:-1])] == [
                sorted(expected[user]) for user in users
            ] or not users

    def held_out(chosen: np.ndarray | None = None) -> HeldOut:
        return HeldOut.of(events, split, WEIGHTS, chosen, context_is_seen=context_is_seen)

    check(held_out(), users, truth)
    everyone = np.arange(events.num_users)[::-1]
    check(held_out(everyone), everyone.tolist(), truth)
    novel = [own - had for own, had in zip(truth, seen, strict=True)]
    check(held_out().without_seen(), [u for u in users if novel[u]], novel)
    assert truth_by_action(events, split, WEIGHTS, everyone)[1].rows.tolist() == []
    bought = truth_by_action(events, split, WEIGHTS, everyone)[2]
    loop = [sorted({row for row, _, action, part, _ in own if part == split and action == 2}) for own in lists(events)]
    assert bought.rows.tolist() == [row for user in everyone for row in loop[user]]


def test_the_values_of_an_item_add_up_and_its_events_are_counted() -> None:
    """User 0 took item 4 twice, for 1.5 and 2, and item 3 for nothing known."""
    events = EventLists(
        np.array([0, 3]),
        np.array([4, 3, 4], np.int32),
        np.arange(3),
        np.zeros(3, np.int8),
        np.full(3, 2, np.int8),
        np.array([1.5, np.nan, 2.0], np.float32),
    )
    truth = HeldOut.of(events, 2).truth
    assert (truth.rows.tolist(), truth.values.tolist(), truth.events.tolist()) == ([3, 4], [0.0, 3.5], [1, 2])


def test_nobody_changes_the_events_and_they_may_be_a_memory_map(tmp_path: Path) -> None:
    events = drawn(3)
    np.save(tmp_path / "rows.npy", events.rows)
    mapped = EventLists(
        events.offsets,
        np.load(tmp_path / "rows.npy", mmap_mode="r"),
        events.times,
        events.actions,
        events.splits,
        events.values,
    )
    assert lists(mapped.before(1).latest(2)) == lists(events.before(1).latest(2))
    assert isinstance(mapped.rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        events.rows[0] = 1


def test_event_lists_and_the_truth_need_numpy_alone() -> None:
    script = (
        "import sys, pipelines.sequences.held_out\n"
        "print(sorted({'pyarrow', 'pydantic', 'tensorflow', 'apache_beam', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"
