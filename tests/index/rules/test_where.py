"""The ``where`` expression: each construct against plain Python over the rows, three-valued if values are missing."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.rules.attributes import Attributes
from index.rules.where import MAX_LENGTH, mask_of
from pipelines.contracts.errors import SchemaError

ROWS: list[dict[str, Any]] = [
    {"price": 5.0, "stock": 3, "live": True, "shop": "A", "countries": ["US", "CA"], "seen": 1},
    {"price": 10.0, "stock": -1, "live": False, "shop": "B", "countries": ["US"], "seen": 2},
    {"price": None, "stock": 0, "live": None, "shop": None, "countries": None, "seen": None},
    {"price": 19.5, "stock": 2**40, "live": True, "shop": "", "countries": [], "seen": 3},
    {"price": float("nan"), "stock": 7, "live": False, "shop": "A", "countries": ["DE", None], "seen": 4},
]
DAYS = [None if row["seen"] is None else datetime.datetime(2025, 1, row["seen"]) for row in ROWS]
TABLE = pa.table(
    {
        "price": pa.array([row["price"] for row in ROWS], pa.float64()),
        "stock": [row["stock"] for row in ROWS],
        "live": [row["live"] for row in ROWS],
        "shop": pa.array([row["shop"] for row in ROWS]).dictionary_encode(),
        "countries": [row["countries"] for row in ROWS],
        "seen": pa.array(DAYS, pa.timestamp("us", tz="UTC")),
        "nested": [{"a": 1}] * len(ROWS),
    }
)


@pytest.mark.parametrize(
    ("where", "passing"),
    [
        ("price < 10", [0]),
        ("price <= 10", [0, 1]),
        ("10 > price", [0]),
        ("5 < price <= 19.5", [1, 3]),
        ("not price < 10", [1, 3]),
        ("not (5 < price < 15)", [0, 3]),
        ("price == 5 or stock == 7", [0, 4]),
        ("stock >= -1 and stock < 4", [0, 1, 2]),
        ("stock == 1099511627776", [3]),
        ("stock > 1e300", []),
        ("stock in (3, 7, 1.5, 1e400)", [0, 4]),
        ("stock not in [3, 7]", [1, 2, 3]),
        ("live", [0, 3]),
        ("not live", [1, 4]),
        ("live == True", [0, 3]),
        ("live in (True, False)", [0, 1, 3, 4]),
        ("live is None", [2]),
        ("not (live is None)", [0, 1, 3, 4]),
        ("shop == 'A'", [0, 4]),
        ("shop != 'A'", [1, 3]),
        ("not shop == 'A'", [1, 3]),
        ("shop in {'A', 'unheard of'}", [0, 4]),
        ("shop in ()", []),
        ("shop not in ('A',)", [1, 3]),
        ("shop is None", [2]),
        ("price is None", [2, 4]),
        ("price is not None", [0, 1, 3]),
        ("'US' in countries", [0, 1]),
        ("'US' not in countries", [4]),
        ("not 'US' in countries", [4]),
        ("countries in ('CA', 'DE')", [0, 4]),
        ("countries is None", [2, 3]),
        ("seen < '2025-01-02'", [0]),
        ("seen == '2025-01-03T00:00:00+00:00'", [3]),
        ("True", [0, 1, 2, 3, 4]),
        ("False", []),
        ("not (live or price < 11)", []),
        ("not (live and price < 11)", [1, 3, 4]),
    ],
)
def test_a_rule_passes_these_rows(where: str, passing: list[int]) -> None:
    assert mask_of(where, Attributes(TABLE)).nonzero()[0].tolist() == passing


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("prise < 10", "unknown attribute 'prise'; did you mean 'price'.*\\[index\\] attributes"),
        ("price < 'ten'", "'price' is a number; it cannot be compared with 'ten'"),
        ("shop == 3", "'shop' is text; it cannot be compared with 3"),
        ("shop < 'B'", "'shop' is text: expected == or !=, got <"),
        ("live == 1", "'live' is true or false; it cannot be compared with 1"),
        ("live < True", "expected == or !=, got <"),
        ("price", "'price' is a number: compare it with something"),
        ("countries", "'countries' is a list"),
        ("countries == 'US'", "write ... in countries"),
        ("'A' in shop", "not a list: write shop == ..."),
        ("stock in 3", "after 'in', expected a list of constants"),
        ("price < stock", "'stock' is not a constant"),
        ("1 < 2", "needs an attribute on one side"),
        ("price is 3", "only None is allowed"),
        ("seen < 'soon'", "seen: expected a time, such as"),
        ("nested == 1", "cannot be in a rule"),
        ("", "cannot be read"),
        ("price <", "cannot be read at column"),
        ("price < 1; live", "cannot be read"),
        ("__import__('os').system('true')", "neither a comparison nor"),
        ("price.real < 1", "needs an attribute on one side"),
        ("(lambda: 1)()", "neither a comparison nor"),
        ("not " * 100 + "live", "nested deeper than"),
        ("(" * 10000 + "live" + ")" * 10000, "cannot be read"),
        ("x" * (MAX_LENGTH + 1), "at most 100000 characters, got 100001"),
        ("live \x00", "cannot be read"),
        (7, "expected text"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(where: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        mask_of(where, Attributes(TABLE))


# Kleene's logic over the rows: None is unknown.
Truth = Callable[[dict[str, Any]], bool | None]


def known(value: Any) -> bool:
    return value is not None and value == value


LEAVES: list[tuple[str, Truth]] = [
    ("price < 10", lambda row: row["price"] < 10 if known(row["price"]) else None),
    ("live", lambda row: row["live"]),
    ("shop == 'A'", lambda row: row["shop"] == "A" if known(row["shop"]) else None),
    ("stock in (3, 7)", lambda row: row["stock"] in (3, 7)),
    ("shop is None", lambda row: row["shop"] is None),
]


def negation(inner: tuple[str, Truth]) -> tuple[str, Truth]:
    def truth(row: dict[str, Any]) -> bool | None:
        value = inner[1](row)
        return None if value is None else not value

    return f"not ({inner[0]})", truth


def conjunction(pair: tuple[tuple[str, Truth], tuple[str, Truth]], word: str) -> tuple[str, Truth]:
    def truth(row: dict[str, Any]) -> bool | None:
        values = [side[1](row) for side in pair]
        decisive = word == "or"
        if decisive in values:
            return decisive
        return None if None in values else not decisive

    return f"({pair[0][0]}) {word} ({pair[1][0]})", truth


EXPRESSIONS = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(negation),
        st.tuples(inner, inner).map(lambda pair: conjunction(pair, "and")),
        st.tuples(inner, inner).map(lambda pair: conjunction(pair, "or")),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(EXPRESSIONS)
def test_only_what_is_known_to_pass_passes(expression: tuple[str, Truth]) -> None:
    where, truth = expression
    expected = [row for row, values in enumerate(ROWS) if truth(values) is True]
    assert mask_of(where, Attributes(TABLE)).nonzero()[0].tolist() == expected


@pytest.mark.parametrize("ids", [[7, -5, 2**63 - 1], ["7", "-5", str(2**63 - 1)]])
@pytest.mark.parametrize(
    ("where", "passing"),
    [
        ("item_id == 7", [0]),
        ("item_id == '7'", [0]),
        ("item_id in (9223372036854775807, '-5')", [1, 2]),
        ("item_id != '7'", [1, 2]),
        ("'-5' == item_id", [1]),
        ("item_id == 8", []),
    ],
)
def test_an_id_in_a_rule_is_found_from_number_and_text(ids: list[object], where: str, passing: list[int]) -> None:
    attributes = Attributes(pa.table({"item_id": ids}))
    assert mask_of(where, attributes).nonzero()[0].tolist() == passing


def test_what_can_be_no_id_in_a_rule_is_refused() -> None:
    with pytest.raises(SchemaError, match=r"where: item_id: expected an integer .* got '007'"):
        mask_of("item_id == '007'", Attributes(pa.table({"item_id": [7]})))
    with pytest.raises(SchemaError, match="'stock' is a number"):
        mask_of("stock == '7'", Attributes(pa.table({"item_id": [7], "stock": [7]})))
