"""Grouping against a slow reference: sort each user's events one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sequences.grouping import Grouped, group_events, order_by
from pipelines.tables.event_checks import checked_schema
from tests import oracles
from tests.oracles import Event

events = st.lists(
    st.tuples(
        st.integers(-3, 5),
        st.integers(0, 4),
        st.sampled_from([0, 1, 5, 1_000_000, 2_000_000, 7_000_000_000_000_000]),
        st.integers(0, 1),
        st.sampled_from([-2.5, -1.0, 0.0, 1.0, 3.5]),
        st.integers(0, 2),
    ),
    max_size=40,
)


def as_table(rows: list[Event]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    schema = checked_schema(pa.int64())
    return pa.table([pa.array(list(column), field.type) for column, field in zip(columns, schema, strict=True)], schema)


def as_lists(grouped: Grouped) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = {}
    for place, user in enumerate(grouped.user_ids.to_pylist()):
        span = range(grouped.offsets[place], grouped.offsets[place + 1])
        found[user] = [
            (
                user,
                int(grouped.rows[at]),
                int(grouped.times[at]),
                int(grouped.actions[at]),
                float(grouped.values[at]),
                int(grouped.splits[at]),
            )
            for at in span
        ]
    return found


@given(rows=events, seed=st.integers(0, 5))
def test_every_user_has_its_events_in_canonical_order_whatever_the_input_order(rows: list[Event], seed: int) -> None:
    shuffled = [rows[place] for place in np.random.default_rng(seed).permutation(len(rows))]
    grouped = group_events(as_table(shuffled), pa.array([4, 9], pa.int64()), leave_last_out=False)
    expected = oracles.grouped(rows, users=(4, 9))
    assert as_lists(grouped) == expected
    assert grouped.user_ids.to_pylist() == sorted(expected)


def test_leave_last_out_gives_the_last_to_test_and_the_one_before_to_valid() -> None:
    rows = [(1, 0, 30, 0, 0.0, -1), (1, 1, 10, 0, 0.0, -1), (1, 2, 20, 0, 0.0, -1), (2, 0, 5, 0, 0.0, -1)]
    grouped = group_events(as_table(rows), pa.array([], pa.int64()), leave_last_out=True)
    assert grouped.splits.tolist() == [0, 1, 2, 2]
    assert grouped.rows.tolist() == [1, 2, 0, 0]


def test_text_ids_are_grouped_in_the_order_of_their_text() -> None:
    table = as_table([(1, 0, 1, 0, 0.0, 0), (2, 1, 1, 0, 0.0, 0)]).set_column(0, "user_id", pa.array(["b", "a"]))
    grouped = group_events(table, pa.array(["c"]), leave_last_out=False)
    assert grouped.user_ids.to_pylist() == ["a", "b", "c"]
    assert grouped.offsets.tolist() == [0, 1, 2, 2]


@settings(max_examples=50)
@given(
    groups=st.lists(st.integers(0, 3), min_size=1, max_size=30),
    wide=st.booleans(),
    data=st.data(),
)
def test_order_by_equals_a_lexicographic_sort_even_where_keys_do_not_pack(
    groups: list[int], wide: bool, data: st.DataObject
) -> None:
    number = st.integers(-(2**62) + 1, 2**61) if wide else st.integers(-2, 2)
    first, second = (
        np.array(data.draw(st.lists(number, min_size=len(groups), max_size=len(groups)))) for _ in range(2)
    )
    owners = np.array(groups)
    order = order_by(owners, 4, (first, second))
    keys = list(zip(owners[order], first[order], second[order], strict=True))
    assert sorted(order.tolist()) == list(range(len(groups)))
    assert keys == sorted(zip(owners, first, second, strict=True))
