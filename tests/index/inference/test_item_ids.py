"""Ids and rows: every layout of the table equals a dictionary."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from index.inference.item_ids import ItemIds
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


def test_ids_of_other_types_follow_the_vocabularys_rule() -> None:
    numbers = ItemIds(pa.array([3, 7, 900_000]))
    assert numbers.rows(["7", "x", "03"], "ids").tolist() == [1, -1, -1]
    assert numbers.rows([3.0, 3.5], "ids").tolist() == [0, -1]
    assert numbers.rows([None, 3], "ids").tolist() == [-1, 0]
    texts = ItemIds(pa.array(["a", "7"]))
    assert texts.rows(["a", "b"], "ids").tolist() == [0, -1]
    assert texts.rows([7, 8], "ids").tolist() == [1, -1]
    with pytest.raises(SchemaError, match="ids: expected"):
        texts.rows([["a"]], "ids")
    with pytest.raises(SchemaError, match="ids: expected a flat list"):
        numbers.rows([[3], [7, 8]], "ids")
