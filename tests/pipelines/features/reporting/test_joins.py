"""How events join their tables: shares by hand, and the pair of ids that shows why they do not."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.features.reporting.data_summary import UnknownIds
from pipelines.features.reporting.joins import Joins, example_pair
from tests.pipelines.conftest import raw_schema, schema_of


@pytest.mark.parametrize(
    ("unknown", "known", "expected"),
    [
        (["7", "0042"], pa.array([41, 42]), ("0042", "42")),
        (["7", "42.0"], pa.array([41, 42]), ("42.0", "42")),
        (["b-1", "SKU-17"], pa.array(["a", "sku 17"]), ("SKU-17", "sku 17")),
        (["7", "8"], pa.array([41, 42]), ("7", "41")),
        ([], pa.array([41]), (None, None)),
        (["7"], pa.array([], pa.int64()), ("7", None)),
    ],
)
def test_the_example_is_a_pair_that_differs_in_spelling_alone_where_there_is_one(
    unknown: list[str], known: pa.Array, expected: tuple[str | None, str | None]
) -> None:
    assert example_pair(unknown, known) == expected


def test_the_share_counts_events_whose_user_and_item_are_known() -> None:
    """Of 10 events 2 have an unknown item; of the 8 others 1 has an unknown user: 7 of 10 join."""
    joins = Joins(8, {"user": UnknownIds(1), "item": UnknownIds(2)})
    assert joins.events == 10
    assert joins.share == pytest.approx(0.7)
    assert joins.share_of("item") == pytest.approx(0.8)
    assert joins.share_of("user") == pytest.approx(7 / 8)
    assert Joins(8, {}).share is None
    assert Joins(0, {"item": UnknownIds(0)}).share is None


@pytest.mark.parametrize(
    ("example", "known", "remedy"),
    [
        ("42.0", "42", r'Write \[ids\] item = "int64"'),
        ("0042", "42", "Write the item ids of both tables in one way"),
        ("abc", "42", r"Complete tables\.items"),
    ],
)
def test_the_error_says_what_to_do(tmp_path: Any, example: str, known: str, remedy: str) -> None:
    schema = schema_of({**raw_schema(tmp_path), "validation": {"min_joined": 0.6}})
    joins = Joins(5, {"item": UnknownIds(5, example, known)})
    with pytest.raises(SchemaError, match=rf"(?s)50\.00% of 10 events .* events have '{example}'.*{remedy}"):
        joins.require(schema)
    Joins(6, {"item": UnknownIds(4)}).require(schema)
