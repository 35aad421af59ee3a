"""Rows of a table by number: from memory, from a file, and of item features, in any order and number."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from index.inference import item_features, item_rows
from index.inference.item_features import ItemFeatures, write_item_features
from index.inference.item_rows import read_rows, taken, write_items

ROWS = 23


@given(st.lists(st.integers(0, ROWS - 1)), st.integers(1, 30), st.integers(0, 5), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_the_table(
    tmp_path: Path, rows: list[int], group: int, few: int, data: st.DataObject
) -> None:
    table = pa.table({"id": range(ROWS), "list": [[row] * (row % 3) if row % 5 else None for row in range(ROWS)]})
    chosen, expected = np.array(rows, np.int64), [table.slice(row, 1).to_pylist()[0] for row in rows]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(item_rows, "GROUP_ROWS", group)
        patched.setattr(item_rows, "_FEW_ROWS", few)
        patched.setattr(item_features, "_BATCH_ROWS", group)
        assert taken(table, chosen).to_pylist() == expected
        write_items(table, tmp_path / "items.parquet")
        assert read_rows(tmp_path / "items.parquet", chosen).to_pylist() == expected
        cuts = sorted(data.draw(st.lists(st.integers(0, ROWS), max_size=3)))
        parts = [table.slice(start, end - start) for start, end in zip([0, *cuts], [*cuts, ROWS], strict=True)]
        write_item_features(table.schema, parts, tmp_path / "features.arrow")
        assert ItemFeatures(tmp_path / "features.arrow").take(chosen).to_pylist() == expected
