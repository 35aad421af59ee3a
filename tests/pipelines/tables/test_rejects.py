"""The rules of ``[validation.columns]``, each on rows with outcomes known by hand, and through the whole job."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import ColumnRule, DatasetSchema
from pipelines.features import job as features
from pipelines.sequences.reader import load_items
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects.checks import Checks
from pipelines.tables.rejects.place import Place
from pipelines.tables.rejects.remedies import remedy
from pipelines.tables.rejects.rules import check_columns
from tests.pipelines.conftest import EVENTS, ITEMS, USERS

TABLE = pa.table(
    {
        "price": [None, 0.5, 1.0, 3.0, 3.5],
        "text_price": ["", "0.5", "one", "3", "nan"],
        "name": [None, "", "abc", "abcd", "äöüß"],
        "tags": [None, [], ["a"], ["a", "b"], ["a", "b", "c"]],
        "stock": pa.array([0, 1, 2, 3, None], pa.int64()),
        "sizes": [{"a": 1}] * 5,
    }
)


def reasons(rules: dict[str, ColumnRule]) -> dict[int, str]:
    """Each rejected row of ``TABLE`` with its reason."""
    checks = Checks(TableBatch(TABLE, "file", 100), "events")
    check_columns(checks, lambda name: TABLE[name].combine_chunks(), rules)
    found = checks.rejects().to_pylist()
    assert [row for row in range(5) if not checks.accepted[row]] == [reject["row"] - 100 for reject in found]
    return {reject["row"] - 100: reject["reason"] for reject in found}


@pytest.mark.parametrize(
    ("name", "rule", "expected"),
    [
        ("price", {"nullable": False}, {0: "null:price"}),
        ("price", {"nullable": True}, {}),
        # The bounds belong to the range, and a null is outside of none.
        ("price", {"min": 1.0}, {1: "range:price"}),
        ("price", {"max": 3.0}, {4: "range:price"}),
        ("price", {"min": 1.0, "max": 1.0}, {1: "range:price", 3: "range:price", 4: "range:price"}),
        ("stock", {"min": 1, "max": 2}, {0: "range:stock", 3: "range:stock"}),
        ("text_price", {"min": 1.0}, {1: "range:text_price", 2: "type:text_price"}),
        # Characters, not bytes: of UTF-8, the last has eight.
        ("name", {"max_length": 3}, {3: "length:name", 4: "length:name"}),
        ("name", {"max_length": 4}, {}),
        ("tags", {"max_length": 2}, {4: "length:tags"}),
        ("stock", {"max_length": 0}, {0: "length:stock", 1: "length:stock", 2: "length:stock", 3: "length:stock"}),
        ("name", {"allowed": ("abc", "")}, {3: "allowed:name", 4: "allowed:name"}),
        ("stock", {"allowed": ("1", "3")}, {0: "allowed:stock", 2: "allowed:stock"}),
        ("name", {"nullable": False, "allowed": ("abc",)}, {
            0: "null:name", 1: "allowed:name", 3: "allowed:name", 4: "allowed:name",
        }),
    ],
)  # fmt: skip
def test_a_rule_rejects_these_rows(name: str, rule: dict[str, Any], expected: dict[int, str]) -> None:
    assert reasons({name: ColumnRule(**rule)}) == expected


def test_the_first_rule_that_a_row_breaks_is_its_reason() -> None:
    stock, price = ColumnRule(max=2), ColumnRule(min=1.0, max=3.0)
    assert reasons({"price": price, "stock": stock}) == {1: "range:price", 3: "range:stock", 4: "range:price"}
    both = ColumnRule(max_length=3, allowed=("abcd",))
    assert reasons({"name": both}) == {1: "allowed:name", 2: "allowed:name", 3: "length:name", 4: "length:name"}


def test_a_column_without_text_cannot_have_allowed_values() -> None:
    with pytest.raises(SchemaError, match=r"type struct<a: int64> has no text .* Remove the rule"):
        reasons({"sizes": ColumnRule(allowed=("a",))})


def test_the_job_applies_the_rules_of_each_table(small: Callable[..., DatasetSchema], tmp_path: Path) -> None:
    """Item 40 is too dear, user 9 of a country that is not allowed, the event of price 7 above the range."""

    def change(raw: dict[str, Any]) -> None:
        raw["validation"] = {
            "max_reject_rate": 0.5,
            "columns": {
                "events": {"price": {"max": 6.0}},
                "items": {"price": {"max": 8.5}, "title": {"nullable": False}},
                "users": {"country": {"allowed": ["US", "CA"]}},
            },
        }

    out = features.run(small(change), tmp_path / "features")
    tables = open_artifact(out, kind="features").manifest.facts["tables"]
    assert tables == {
        "events": {"rows": len(EVENTS), "rejects": {"range:price": 1}},
        "items": {"rows": len(ITEMS), "rejects": {"range:price": 1}},
        "users": {"rows": len(USERS), "rejects": {"allowed:country": 1}},
    }
    assert load_items(out)["item"].to_pylist() == [10, 20, 30]
    rejects = pq.read_table(out / "rejects").to_pylist()
    found = sorted((reject["table"], reject["row"], reject["reason"]) for reject in rejects)
    assert found == [("events", 6, "range:price"), ("items", 3, "range:price"), ("users", 0, "allowed:country")]


# Items 10 and 30 are sound; each other breaks the rule that it is named after.
RULED = [
    {"item": 10, "title": "Lamp", "stock": 0, "price": 0.5, "code": "a", "size": "M", "label": "été"},
    {"item": 20, "title": None, "stock": 5, "price": 1.0, "code": "a", "size": "M", "label": "été"},
    {"item": 80, "title": "Lamp", "stock": -1, "price": 1.0, "code": "a", "size": "M", "label": "été"},
    {"item": 40, "title": "Lamp", "stock": 5, "price": 99.5, "code": "a", "size": "M", "label": "été"},
    {"item": 50, "title": "Lamp", "stock": 5, "price": 1.0, "code": "a", "size": "m", "label": "été"},
    {"item": 60, "title": "Lamp", "stock": 5, "price": 1.0, "code": "a", "size": "M", "label": "étés"},
    {"item": 30, "title": "Lamp", "stock": 10, "price": 99.0, "code": None, "size": None, "label": None},
]
RULES = {
    "title": {"nullable": False},
    "stock": {"min": 0, "max": 10},
    "price": {"min": 0.5, "max": 99.0},
    "size": {"allowed": ["M", "L"]},
    "label": {"max_length": 3},
    "code": {"nullable": True},
}
BROKEN = {20: "null:title", 80: "range:stock", 40: "range:price", 50: "allowed:size", 60: "length:label"}


def write_as(form: str, path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as Parquet, CSV or JSONL; a missing cell is an empty one, or no key."""
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif form == "csv":
        cells = [",".join("" if value is None else str(value) for value in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *cells]) + "\n")
    else:
        kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in kept))


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl"])
def test_every_rule_gives_the_same_rejects_whatever_the_format(
    small: Callable[..., DatasetSchema], tmp_path: Path, form: str
) -> None:
    """Bounds belong to the range, lengths are of characters, and a missing value breaks only ``nullable = false``."""
    folder = tmp_path / "ruled"
    folder.mkdir()
    write_as(form, folder / f"goods.{form}", RULED)

    def change(raw: dict[str, Any]) -> None:
        raw["tables"]["items"].update(path=str(folder), types={"stock": "int64", "price": "float64"})
        raw["ids"] = {"item": "int64"}
        raw["features"]["item"] = [{"name": "size", "kind": "categorical"}]
        raw["validation"] = {"max_reject_rate": 1.0, "columns": {"items": RULES}, "min_joined": 0.0}

    out = features.run(small(change), tmp_path / "features")
    assert load_items(out)["item"].to_pylist() == [10, 30]
    rejects = [one for one in pq.read_table(out / "rejects").to_pylist() if one["table"] == "items"]
    assert {RULED[one["row"]]["item"]: one["reason"] for one in rejects} == BROKEN
    assert open_artifact(out, kind="features").manifest.facts["tables"]["items"] == {
        "rows": len(RULED),
        "rejects": dict.fromkeys(BROKEN.values(), 1),
    }


@pytest.mark.parametrize("table", ["events", "items", "users"])
def test_a_rule_for_a_column_that_the_table_lacks_is_an_error(
    small: Callable[..., DatasetSchema], tmp_path: Path, table: str
) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["validation"]["columns"] = {table: {"weight": {"min": 0.0}}}

    with pytest.raises(SchemaError, match="expected column 'weight'"):
        features.run(small(change), tmp_path / "features")


@pytest.mark.parametrize("value", ["1.234,56", "1,234.56", "1,234,567", "1 234,56", "1\u00a0234,56", "1'234.56"])
@pytest.mark.parametrize("decimal", [".", ","])
def test_numbers_with_separators_between_thousands_have_a_remedy_of_their_own(value: str, decimal: str) -> None:
    """A decimal comma would not make them readable: the remedy does not ask for one."""
    schema = DatasetSchema.model_validate(
        {
            "dataset": {"name": "shop"},
            "tables": {
                "events": {"path": "events.csv", "user_id": "user", "item_id": "item", "time": "time"},
                "items": {"path": "x", "item_id": "item", "delimiter": ";", "decimal": decimal},
            },
            "features": {"item": [{"name": "price", "kind": "numeric"}]},
            "split": {"leave_last_out": True},
        }
    )
    place = Place("items.csv", 0, "price", value, "a finite number")
    remedied = remedy(schema, "items", "type:price", place)
    assert remedied is not None
    assert "export them without" in remedied
    assert "decimal" not in remedied


def test_text_in_another_encoding_is_refused_with_the_line_that_declares_one(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_bytes("item,brand\n1,M\u00fcller\n".encode("cp1252"))
    (tmp_path / "events.csv").write_text("user,item,time\n1,1,2026-02-01\n")
    schema = DatasetSchema.model_validate(
        {
            "dataset": {"name": "shop"},
            "tables": {
                "events": {"path": str(tmp_path / "events.csv"), "user_id": "user", "item_id": "item", "time": "time"},
                "items": {"path": str(tmp_path / "items.csv"), "item_id": "item"},
            },
            "features": {"item": [{"name": "brand", "kind": "categorical"}]},
            "split": {"leave_last_out": True},
        }
    )
    with pytest.raises(SchemaError, match=r"(?s)items.csv row 0, brand = .*\[tables.items\] encoding = "):
        features.run(schema, tmp_path / "features")
