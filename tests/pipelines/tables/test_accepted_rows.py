"""Which rows are accepted and why the others are not: against an oracle that looks at one cell after the other.

The oracle reads texts with Python's own means and imports nothing of ours.
"""

from __future__ import annotations

import datetime
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.schema import DatasetSchema, TableName
from pipelines.tables.catalogue import read_items
from pipelines.tables.column_types import id_types, table_types
from pipelines.tables.event_checks import EventChecker, ItemLookup, columns_of
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.readers import plan_shards, read_shard
from tests.pipelines.conftest import schema_of

Row = dict[str, str | None]
MISSING = {"", "na", "n/a", "#n/a", "nan", "null", "none", "\\n"}


class Broken:
    """A rule that a cell breaks; no text is equal to one."""

    def __init__(self, rule: str) -> None:
        self.rule = rule

    def __str__(self) -> str:
        return self.rule


NULL, WRONG, RANGE, LONG, OTHER = (Broken(rule) for rule in ("null", "type", "range", "length", "allowed"))
US = datetime.timedelta(microseconds=1)
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
FIRST, LAST = (datetime.datetime(year, 1, 1, tzinfo=datetime.UTC) for year in (1990, 2100))


# The oracle: a cell's value, or the name of the rule it breaks.


def integer(text: str | None) -> object:
    plain = None if text is None else text.strip()
    if plain is None or plain.lower() in MISSING:
        return NULL
    whole = re.sub(r"^(-?[0-9]+)\.0+$", r"\1", plain)
    if not re.fullmatch(r"-?(0|[1-9][0-9]*)", whole) or not -(2**63) <= int(whole) < 2**63:
        return WRONG
    return int(whole)


def number(text: str | None) -> object:
    plain = None if text is None else text.strip()
    if plain is None or plain.lower() in MISSING:
        return NULL
    if not re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?", plain, re.IGNORECASE):
        return WRONG
    return float(plain)


def moment(text: str | None, unit: str | None) -> object:
    plain = None if text is None else text.strip()
    if plain is None or plain.lower() in MISSING:
        return NULL
    found: datetime.datetime | None = None
    if re.fullmatch(r"-?(0|[1-9][0-9]*)", plain):
        if unit is None:
            return WRONG
        per_second = {"s": 1, "ms": 1_000}[unit]
        if abs(int(plain)) // per_second > 10**11:
            return RANGE
        found = EPOCH + int(plain) * 1_000_000 // per_second * US
    elif re.fullmatch(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?)?", plain):
        try:
            read = datetime.datetime.fromisoformat(plain)
        except ValueError:
            return WRONG
        found = read.replace(tzinfo=datetime.UTC) if read.tzinfo is None else read.astimezone(datetime.UTC)
    if found is None:
        return WRONG
    return found if FIRST <= found < LAST else RANGE


def boolean(text: str | None) -> object:
    plain = None if text is None else text.strip().lower()
    if plain is None or plain in MISSING:
        return NULL
    known = {"true": True, "t": True, "yes": True, "y": True, "1": True}
    known |= {"false": False, "f": False, "no": False, "n": False, "0": False}
    return known.get(plain, WRONG)


def identity(text: str | None, kind: str) -> object:
    if kind == "int64":
        return integer(text)
    if text is None or text == "":
        return NULL
    return LONG if len(text.encode()) > 1_024 else text


def items_oracle(rows: Sequence[Row], ids: str, unit: str | None) -> tuple[list[dict[str, Any]], dict[int, str]]:
    """The accepted rows, and the reason of each other row."""
    accepted, refused = [], {}
    for place, row in enumerate(rows):
        cells = {
            "item": identity(row["item"], ids),
            "price": number(row["price"]),
            "since": moment(row["since"], unit),
            "active": boolean(row["active"]),
            "color": NULL if row["color"] is None else row["color"],
        }
        reason = next(
            (f"{cells[name]}:{name}" for name in cells if name != "color" and cells[name] in (WRONG, RANGE)), None
        )
        if cells["item"] in (NULL, WRONG, LONG):
            reason = f"{cells['item']}:item"
        if reason is None and isinstance(cells["price"], float) and not 0 <= cells["price"] <= 100:
            reason = "range:price"
        if reason is None and cells["color"] not in (NULL, "red", "NA", ""):
            reason = "allowed:color"
        if reason is None:
            accepted.append({name: None if value == NULL else value for name, value in cells.items()})
        else:
            refused[place] = reason
    return accepted, refused


def events_oracle(rows: Sequence[Row], ids: str, unit: str | None, known: set[object]) -> dict[int, str]:
    """The reason of each row that is not accepted; ``unknown`` where its item is in no table."""
    refused = {}
    for place, row in enumerate(rows):
        action = row["action"]
        checks = [
            ("user", identity(row["user"], ids), (NULL, WRONG, LONG)),
            ("item", identity(row["item"], ids), (NULL, WRONG, LONG)),
            ("time", moment(row["time"], unit), (NULL, WRONG, RANGE)),
            (
                "action",
                NULL if action is None else action if action in ("click", "buy") else OTHER,
                (NULL, OTHER),
            ),
            ("price", number(row["price"]), (WRONG,)),
        ]
        reason = next((f"{value}:{name}" for name, value, rules in checks if value in rules), None)
        value = number(row["price"])
        if reason is None and isinstance(value, float) and value > 100:
            reason = "range:price"
        if reason is None and identity(row["item"], ids) not in known:
            reason = "unknown"
        if reason is not None:
            refused[place] = reason
    return refused


INTEGERS = ["0", "-1", "42", " 7 ", "5007.0", "007", "+3", "0x1F", "9223372036854775807", "9223372036854775808", "1.5"]
NUMBERS = ["1", "0.5", "-3", "101", "1e2", "abc", "inf", "1,5", "nan", " 2 ", "1_000"]
TIMES = [
    "2026-02-01",
    "2026-02-01T12:30:15Z",
    "2026-02-01 12:30:15+05:30",
    "2026-02-01 12:30",
    "01/02/2026",
    "1989-12-31",
]
TIMES += ["2150-01-01", "1767225600", "1767225600000", "2026-02-30", "yesterday"]
TEXTS = ["red", "NA", "null", "", "blue", " red"]
BOOLEANS = ["true", "F", "yes", "0", "2", "maybe"]
ABSENT = [None, "", "NA", "NaN"]


def cells(*choices: str) -> st.SearchStrategy[str | None]:
    return st.sampled_from([*choices, *ABSENT])


ITEM_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "item": cells("a", "-5", "x" * 1_025, "007"),
            "price": cells(*NUMBERS),
            "since": cells(*TIMES),
            "active": cells(*BOOLEANS),
            "color": cells(*TEXTS),
        }
    ),
    min_size=1,
    max_size=12,
)
EVENT_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "user": cells(*INTEGERS, "u1", "x" * 1_025),
            "item": cells(*INTEGERS, "i1", "x" * 1_025),
            "time": cells(*TIMES),
            "action": cells("click", "buy", "sell", " click"),
            "price": cells(*NUMBERS),
        }
    ),
    min_size=1,
    max_size=12,
)
# The first cell that does not fit is the reason: the order of the columns counts.
COLUMNS = ("user", "item", "time", "action", "price", "since", "active", "color")
FORMS = ("parquet", "csv", "jsonl")


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as texts: a missing cell is null, in CSV an empty one without quotes."""
    names = [name for name in COLUMNS if name in rows[0]]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: pa.array([row[name] for row in rows], pa.string()) for name in names}), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({name: row[name] for name in names}) + "\n" for row in rows))
    else:
        lines = [",".join(quoted(row[name]) for name in names) for row in rows]
        path.write_text("\n".join([",".join(names), *lines]) + "\n")


def quoted(cell: str | None) -> str:
    return "" if cell is None else '"' + cell.replace('"', '""') + '"'


def world(folder: Path, ids: str, unit: str | None) -> DatasetSchema:
    moment_type = {"type": "timestamp"} if unit is None else {"type": "timestamp", "unit": unit}
    return schema_of(
        {
            "dataset": {"name": "random"},
            "ids": {"user": ids, "item": ids},
            "tables": {
                "events": {
                    "path": str(folder / "events.*"), "user_id": "user", "item_id": "item", "time": "time",
                    "action": "action", "value": "price", "types": {"time": moment_type},
                },
                "items": {
                    "path": str(folder / "items.*"), "item_id": "item",
                    "types": {"since": moment_type, "active": "bool", "color": "string"},
                },
            },
            "actions": {"click": 1.0, "buy": 2.0},
            "features": {"item": [{"name": "price", "kind": "numeric"}, {"name": "since", "kind": "time_since"}]},
            "split": {"leave_last_out": True},
            "validation": {
                "columns": {
                    "items": {"price": {"min": 0, "max": 100}, "color": {"allowed": ["red", "NA", ""]}},
                    "events": {"price": {"max": 100}},
                }
            },
        }
    )  # fmt: skip


def found_files(schema: DatasetSchema, table: TableName) -> dict[TableName, tuple[SourceFile, ...]]:
    return {table: find_files(getattr(schema.tables, table), table)}


@pytest.mark.parametrize("form", FORMS)
@given(rows=ITEM_ROWS, ids=st.sampled_from(["string", "int64"]), unit=st.sampled_from([None, "s", "ms"]))
@settings(max_examples=60)
def test_items_are_accepted_as_the_oracle_says(form: str, rows: list[Row], ids: str, unit: str | None) -> None:
    for place, row in enumerate(rows):  # An item may occur once.
        if row["item"] in ("a", "-5", "007", "NA", "NaN") and identity(row["item"], ids) not in (NULL, WRONG):
            row["item"] = f"{row['item']}{place}"
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / f"items.{form}", rows)
        schema = world(Path(name), ids, unit)
        files = found_files(schema, "items")
        types = table_types(schema, "items", files["items"], id_types(schema, files))
        items = read_items(schema, files["items"], types)
    accepted, refused = items_oracle(rows, ids, unit)
    assert {reject["row"]: reject["reason"] for reject in items.rejects.to_pylist()} == refused
    table = items.table.select(["item", "price", "since", "active", "color"]).to_pylist()
    assert sorted(table, key=lambda row: str(row["item"])) == sorted(accepted, key=lambda row: str(row["item"]))
    for reject in items.rejects.to_pylist():
        cell = rows[reject["row"]][reject["column"]]
        assert reject["value"] == (None if cell is None else cell[:256])
        assert reject["expected"]


@pytest.mark.parametrize("form", FORMS)
@given(rows=EVENT_ROWS, ids=st.sampled_from(["string", "int64"]), unit=st.sampled_from([None, "s", "ms"]))
@settings(max_examples=60)
def test_events_are_accepted_as_the_oracle_says(form: str, rows: list[Row], ids: str, unit: str | None) -> None:
    catalogue = pa.array([-1, 0, 42, 5007]) if ids == "int64" else pa.array(["-1", "0", "42", "i1"])
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / f"events.{form}", rows)
        schema = world(Path(name), ids, unit)
        files = found_files(schema, "events")
        types = table_types(schema, "events", files["events"], id_types(schema, files)).only(columns_of(schema))
        checker = EventChecker(schema, types, ItemLookup(catalogue))
        checked = [
            checker.check(batch)
            for shard in plan_shards(files["events"], schema.tables.events, "events")
            for batch in read_shard(shard, schema.tables.events, types.columns, types.kinds)
        ]
    rejects = [row for one in checked for row in one.rejects.to_pylist()]
    found = {reject["row"]: reject["reason"] for reject in rejects}
    found |= {row["row"]: "unknown" for one in checked for row in one.unknown.to_pylist()}
    assert found == events_oracle(rows, ids, unit, set(catalogue.to_pylist()))
    assert sum(len(one.events) for one in checked) == len(rows) - len(found)
