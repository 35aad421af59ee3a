"""Ids and rows: every layout of the table and every form of an id equals a dictionary."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.inference.item_ids import ItemIds
from index.retrieval.live.layout import FreshItemIds
from pipelines.contracts.errors import SchemaError

BIG = 2**63 - 1


@pytest.mark.parametrize(
    "ids",
    [
        [5],
        list(range(100, 200)),
        list(range(0, 100_000, 37)),
        [-(2**63), -5, 0, 3, BIG],
        [*range(1000), 10**15, 10**15 + 1],
        list(np.random.default_rng(0).choice(10**12, 3000, replace=False)),
        list(np.sort(np.random.default_rng(1).choice(10**9, 3000, replace=False))),
        [],
    ],
)
def test_rows_are_those_of_a_dictionary(ids: list[int]) -> None:
    items = ItemIds(pa.array([int(item) for item in ids], pa.int64()))
    row_of_id = {int(item): row for row, item in enumerate(ids)}
    rng = np.random.default_rng(2)
    asked = [0, -1, 1, BIG, -(2**63), 10**15, *rng.integers(-(2**62), 2**62, 50).tolist()]
    asked += [int(item) + shift for item in ids[:500] for shift in (0, 1, -1) if abs(int(item)) < 2**62]
    asked += [int(item) for item in ids]
    assert items.rows(asked, "ids").tolist() == [row_of_id.get(item, -1) for item in asked]
    assert items.of(np.arange(len(ids), dtype=np.int32)).tolist() == [int(item) for item in ids]


# How an int64 id may be given; a float only where it is exact.
FORMS: dict[str, Callable[[int], Any]] = {
    "int": int,
    "text": str,
    "text of a float": lambda number: f"{number}.0",
    "numpy": np.int64,
    "numpy text": lambda number: np.str_(number),
    "arrow": lambda number: pa.scalar(number, pa.int64()),
    "arrow text": lambda number: pa.scalar(str(number)),
    "decimal": decimal.Decimal,
    "float": lambda number: float(number) if abs(number) < 2**53 else number,
}
numbers = st.integers(-(2**63), BIG) | st.integers(-10, 10)


@given(st.lists(numbers, unique=True, min_size=1), st.lists(numbers, min_size=1), st.data())
def test_a_number_is_found_in_every_form(ids: list[int], asked: list[int], data: st.DataObject) -> None:
    items = ItemIds(pa.array(ids, pa.int64()))
    asked = [*asked, *ids[:5]]
    row_of_id = {item: row for row, item in enumerate(ids)}
    expected = [row_of_id.get(number, -1) for number in asked]
    form = FORMS[data.draw(st.sampled_from(sorted(FORMS)))]
    assert items.rows([form(number) for number in asked], "ids").tolist() == expected
    mixed = [FORMS[data.draw(st.sampled_from(sorted(FORMS)))](number) for number in asked]
    assert items.rows(mixed, "ids").tolist() == expected
    for column in (pa.array(asked, pa.int64()), pa.chunked_array([pa.array(list(map(str, asked)))]), np.array(asked)):
        assert items.rows(column, "ids").tolist() == expected
    fresh = FreshItemIds(items, pa.array(ids[:1], pa.int64()))
    after = [len(ids) if number == ids[0] else row for number, row in zip(asked, expected, strict=True)]
    assert fresh.rows(mixed, "ids").tolist() == after


@given(st.lists(numbers, unique=True, min_size=1), st.data())
def test_a_text_that_is_a_number_is_found_from_the_number(ids: list[int], data: st.DataObject) -> None:
    items = ItemIds(pa.array([*map(str, ids), "007", "a", "NA", " a"]))
    forms = [name for name in sorted(FORMS) if name != "text of a float"]
    asked = [FORMS[data.draw(st.sampled_from(forms))](number) for number in ids]
    texts = ["007", "a", "NA", " a", "nobody", "7.0 "]
    assert items.rows([*asked, *texts], "ids").tolist() == [*range(len(ids) + 4), -1, -1]
    assert items.rows(texts, "ids").tolist() == [len(ids) + place for place in range(4)] + [-1, -1]
    fresh = FreshItemIds(items, pa.array([str(ids[0])]))
    assert fresh.rows([ids[0], "nobody"], "ids").tolist() == [len(ids) + 4, -1]


NO_NUMBERS = ["abc", "007", "+7", "0x1F", "1e3", "7.5", 7.5, 2**63, -(2**63) - 1, str(2**63), True, np.True_, None, ""]
NO_NUMBERS += [float("nan"), float("inf"), b"x", {}, [7], object(), datetime.date(2026, 1, 1)]


@pytest.mark.parametrize("value", NO_NUMBERS)
def test_what_can_be_no_number_is_refused_by_place(value: Any) -> None:
    items = ItemIds(pa.array([0, 1, 7]))
    for given_ids in ([value], [7, value], (7, value)):
        with pytest.raises(SchemaError, match=r"history(\[[01]\])?: expected"):
            items.rows(given_ids, "history")


@pytest.mark.parametrize("value", [None, "", float("nan"), float("inf"), b"\xff", {}, ["a"], object()])
def test_what_can_be_no_text_is_refused_by_place(value: Any) -> None:
    items = ItemIds(pa.array(["a", "7"]))
    for given_ids in ([value], ["a", value], ("a", value)):
        with pytest.raises(SchemaError, match=r"history(\[[01]\])?: expected"):
            items.rows(given_ids, "history")


@pytest.mark.parametrize("ids", [[[3], [7, 8]], [[3, 7]], np.array([[3]]), np.array(3), pa.array([[3]])])
def test_what_is_no_flat_list_is_refused(ids: Any) -> None:
    for items in (ItemIds(pa.array([3, 7])), ItemIds(pa.array(["3", "7"]))):
        with pytest.raises(SchemaError, match="history"):
            items.rows(ids, "history")
