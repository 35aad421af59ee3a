"""Day lists hold the events of a base by day: a list equals a filter of all events, written as a loop."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.sequences.day_lists import NIGHTS, DayEvents, days_ahead, read_day_lists, write_day_lists
from pipelines.sequences.grouping import Grouped, group_events
from pipelines.sequences.repeats import repeats
from tests.pipelines.sequences.test_grouping import as_table

# (user, item's row, time, action, value, split), with events on either side of 1970 and of midnight.
events = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(0, 3),
        st.integers(-3 * 4, 5 * 4).map(lambda quarter: quarter * US_PER_DAY // 4),
        st.integers(0, 1),
        st.sampled_from([0.0, 1.0]),
        st.just(0),
    ),
    max_size=30,
)


def grouped_of(rows: list[tuple[int, int, int, int, float, int]]) -> Grouped:
    return group_events(as_table(rows), pa.array([9], pa.int64()), leave_last_out=False)


def as_rows(found: DayEvents) -> list[tuple[int, int, int, int]]:
    users = found.user_ids.to_pylist()
    columns = (found.rows.tolist(), found.actions.tolist(), found.days.tolist())
    return sorted(zip((users[owner] for owner in found.owners), *columns, strict=True))


@settings(max_examples=60)
@given(rows=events, listed=st.sets(st.integers(-3, 5)), asked=st.sets(st.integers(-6, 8), min_size=1))
def test_a_list_has_the_events_of_its_days_and_a_day_that_is_not_listed_is_not_taken_for_an_empty_one(
    rows: list[tuple[int, int, int, int, float, int]], listed: set[int], asked: set[int]
) -> None:
    grouped = grouped_of(rows)
    repeating = repeats(grouped, by_split=False)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lists.arrow"
        write_day_lists(grouped, repeating, listed, path)
        found = read_day_lists(path, grouped.user_ids, asked)
        days = [time // US_PER_DAY for _, _, time, *_ in rows]
        reached = {day for day in asked if days and min(days) <= day <= max(days)}
        if not reached <= listed:
            assert found is None
            return
        assert found is not None
        by_hand = [(user, row, action, day) for (user, row, _, action, *_), day in zip(rows, days, strict=True)]
        assert as_rows(found) == sorted(one for one in by_hand if one[3] in asked)
        kept = [one for one, day in zip(rows, days, strict=True) if day in asked]
        assert int(found.repeats.sum()) == len(kept) - len(set(kept))
        assert as_rows(DayEvents.of(grouped, repeating, asked)) == as_rows(found)


@given(old=events, new=events)
def test_pieces_together_have_the_events_of_each(old: list[tuple], new: list[tuple]) -> None:  # type: ignore[type-arg]
    pieces = [
        DayEvents.of(grouped, repeats(grouped, by_split=False), range(-9, 9)) for grouped in map(grouped_of, (old, new))
    ]
    together = DayEvents.together(pieces)
    assert as_rows(together) == sorted(as_rows(pieces[0]) + as_rows(pieces[1]))
    some = together.rows > 0
    assert together.users_of(some).to_pylist() == sorted({user for user, row, *_ in [*old, *new] if row > 0})


def test_no_lists_say_nothing_of_any_day(tmp_path: Path) -> None:
    assert read_day_lists(tmp_path / "none.arrow", pa.array([], pa.int64()), {1}) is None


def test_the_days_ahead_of_a_midnight_are_those_of_the_nights_until_the_base_is_written_again() -> None:
    assert days_ahead([5 * US_PER_DAY]) == frozenset(range(5, 5 + NIGHTS + 1))
