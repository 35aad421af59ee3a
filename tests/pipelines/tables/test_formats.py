"""A world written in any format, with any representation its declared types allow, comes to the same features.

The world is drawn as plain Python values. The writers below turn them into cells by the rules in ``docs/data.md``,
without the product's own code: the reference is Parquet in the columns' own types.
"""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import hashlib
import io
import json
import lzma
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipelines.contracts.manifest import read_manifest
from pipelines.contracts.schema import parse_schema
from pipelines.features import job as features

UTC = datetime.UTC
START = datetime.datetime(2025, 1, 1, tzinfo=UTC)
LONGEST = 2**63
# Words that some readers take for a missing value, and other texts that are easily damaged.
WORDS = (
    "NA",
    "null",
    "N/A",
    "None",
    "nan",
    "true",
    "0",
    "007",
    "1e5",
    " padded ",
    "a,b",
    'say "x"',
    "line\nend",
    "ü",
    "",
)
SUFFIXES: dict[str, Callable[[bytes], bytes]] = {
    "": lambda content: content,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: pa.compress(content, "zstd", asbytes=True),
}


@dataclass(frozen=True)
class Column:
    """A column of a table: its name, the type its TOML declares, and what a cell may be written as."""

    name: str
    kind: str
    unit: str | None = None
    zone_hours: int | None = None
    separator: str | None = None


@dataclass(frozen=True)
class World:
    """Three tables as rows of Python values, the type of the ids, and how times and lists are written."""

    ids: dict[str, str]
    events: list[dict[str, Any]]
    items: list[dict[str, Any]]
    users: list[dict[str, Any]]
    unit: str
    separator: str
    decimal: str

    def columns(self, table: str) -> list[Column]:
        user, item = Column("user", self.ids["user"]), Column("item", self.ids["item"])
        if table == "events":
            at = Column("at", "timestamp", unit=self.unit)
            return [user, item, at, Column("did", "string"), Column("paid", "float64")]
        if table == "users":
            return [user, Column("region", "string"), Column("age", "int64")]
        return [
            item,
            Column("brand", "string"),
            Column("words", "string"),
            Column("price", "float64"),
            Column("stock", "int64"),
            Column("live", "bool"),
            Column("listed", "timestamp", unit=self.unit),
            Column("tags", "list", separator=self.separator),
            Column("vector", "embedding", separator=self.separator),
        ]


def ids_of(kind: str) -> st.SearchStrategy[Any]:
    if kind == "int64":
        return st.one_of(st.integers(0, 40), st.integers(-LONGEST, LONGEST - 1))
    texts = st.text(
        st.characters(codec="utf-8", exclude_characters="\x00\r", exclude_categories=["Cs"]), min_size=1, max_size=6
    )
    return st.one_of(st.from_regex(r"0[0-9]{3}", fullmatch=True), st.sampled_from(WORDS[:-1]), texts)


def moments() -> st.SearchStrategy[datetime.datetime]:
    return st.integers(0, 60 * 86_400).map(lambda second: START + datetime.timedelta(seconds=second))


def numbers() -> st.SearchStrategy[float]:
    return st.one_of(st.integers(0, 999).map(float), st.integers(-99_999, 99_999).map(lambda cents: cents / 100))


@st.composite
def worlds(draw: st.DrawFn) -> World:
    kinds = {"user": draw(st.sampled_from(["int64", "string"])), "item": draw(st.sampled_from(["int64", "string"]))}
    items = draw(st.lists(ids_of(kinds["item"]), min_size=2, max_size=8, unique=True))
    users = draw(st.lists(ids_of(kinds["user"]), min_size=2, max_size=6, unique=True))
    maybe = lambda values: st.one_of(st.none(), values)  # noqa: E731
    separator = draw(st.sampled_from(["|", ";", "/"]))
    words = st.sampled_from(WORDS)
    tags = st.lists(st.sampled_from(["a", "NA", "07", "b c"]), min_size=1, max_size=3)
    item_rows = [
        {
            "item": item,
            "brand": draw(maybe(words)),
            "words": draw(maybe(words)),
            "price": draw(maybe(numbers())),
            "stock": draw(maybe(st.integers(-LONGEST, LONGEST - 1))),
            "live": draw(maybe(st.booleans())),
            "listed": draw(maybe(moments())),
            "tags": draw(maybe(tags)),
            "vector": draw(maybe(st.lists(st.integers(1, 8).map(lambda eighths: eighths / 8), min_size=2, max_size=2))),
        }
        for item in items
    ]
    user_rows = [{"user": user, "region": draw(maybe(words)), "age": draw(maybe(st.integers(0, 99)))} for user in users]
    events = [
        {
            "user": draw(st.sampled_from(users)),
            "item": draw(st.sampled_from(items)),
            "at": draw(moments()),
            "did": draw(st.sampled_from(["click", "NA"])),
            "paid": draw(maybe(numbers())),
        }
        for _ in range(draw(st.integers(4, 14)))
    ]
    # One in each window, so that no window is empty.
    for day in (1, 45, 55):
        at = START + datetime.timedelta(days=day)
        events.append({"user": users[0], "item": items[0], "at": at, "did": "click", "paid": 1.0})
    unit = draw(st.sampled_from(["s", "ms", "us"]))
    return World(kinds, events, item_rows, user_rows, unit, separator, draw(st.sampled_from([".", ","])))


def schema_of(world: World, paths: dict[str, Path], options: dict[str, Any]) -> Any:
    """The schema with every type declared; ``options`` are further keys of each table."""
    tables: dict[str, dict[str, Any]] = {
        "events": {"user_id": "user", "item_id": "item", "time": "at", "action": "did", "value": "paid"},
        "items": {"item_id": "item"},
        "users": {"user_id": "user"},
    }
    for name, table in tables.items():
        types = {}
        for column in world.columns(name):
            if column.name in ("user", "item"):
                continue
            given = {"type": column.kind, "unit": column.unit, "separator": column.separator}
            types[column.name] = {key: value for key, value in given.items() if value is not None}
        table |= {"path": str(paths[name]), "types": types, **options}
    item_kinds = {
        "item": "id", "brand": "categorical", "words": "text", "price": "numeric", "stock": "numeric",
        "live": "categorical", "listed": "time_since", "tags": "list", "vector": "embedding",
    }  # fmt: skip
    item_features = [{"name": name, "kind": kind} for name, kind in item_kinds.items()]
    item_features[-1]["dim"] = 2
    return parse_schema(
        {
            "dataset": {"name": "any"},
            "tables": tables,
            "ids": world.ids,
            "actions": {"click": 1.0, "NA": 2.0},
            "features": {
                "item": item_features,
                "user": [{"name": "region", "kind": "categorical"}, {"name": "age", "kind": "numeric"}],
            },
            "split": {"valid_from": "2025-02-10", "test_from": "2025-02-20"},
            "validation": {"drift": "off"},
        },
        "any world",
    )


ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us", tz="UTC"),
    "list": pa.list_(pa.string()),
    "embedding": pa.list_(pa.float32()),
}


def as_reference(rows: list[dict[str, Any]], columns: list[Column]) -> bytes:
    """Parquet in the columns' own types."""
    sink = io.BytesIO()
    pq.write_table(
        pa.table({column.name: pa.array([row[column.name] for row in rows], ARROW[column.kind]) for column in columns}),
        sink,
    )
    return sink.getvalue()


def time_text(moment: datetime.datetime, form: int) -> str:
    """One of the forms in which systems export a moment."""
    eastern = moment.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))
    west = moment.astimezone(datetime.timezone(datetime.timedelta(hours=-5)))
    return [
        moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        moment.strftime("%Y-%m-%d %H:%M:%S"),
        moment.strftime("%Y-%m-%d %H:%M:%S+00"),
        moment.strftime("%Y-%m-%d %H:%M:%S UTC"),
        moment.strftime("%Y-%m-%dT%H:%M:%S.000000000Z"),
        moment.strftime("%Y-%m-%d %H:%M:%S.000000"),
        eastern.strftime("%Y-%m-%dT%H:%M:%S+05:30"),
        west.strftime("%Y-%m-%d %H:%M:%S-05"),
        west.strftime("%Y-%m-%dT%H:%M:%S-0500"),
    ][form]


UNIT_TO_NUMBER = {"s": 1, "ms": 1_000, "us": 1_000_000}


def cell(value: Any, column: Column, world: World, choose: Callable[[int], int]) -> Any:
    """The value as one of the texts that the declared type allows; None where it is missing."""
    if value is None:
        return None if column.kind in ("string", "list") else ("", "NA", "null", "\\N", "NaN", None)[choose(6)]
    if column.kind == "string":
        return value
    if column.kind == "int64":
        return str(value) + ("", "", f"{world.decimal}0")[choose(3)]
    if column.kind == "float64":
        exact = decimal.Decimal(repr(value))
        text = (format(exact, "f"), repr(value), format(exact, "E"))[choose(3)]
        return text.replace(".", world.decimal)
    if column.kind == "bool":
        return (("true", "True", "t", "1", "yes") if value else ("false", "FALSE", "f", "0", "no"))[choose(5)]
    if column.kind == "timestamp":
        form = choose(10)
        return str(int(value.timestamp()) * UNIT_TO_NUMBER[world.unit]) if form == 9 else time_text(value, form)
    texts = [repr(one).replace(".", world.decimal) if column.kind == "embedding" else one for one in value]
    return world.separator.join(texts)


def as_csv(rows: list[dict[str, Any]], columns: list[Column], world: World, choose: Any, delimiter: str) -> bytes:
    """CSV as a careful writer makes it: a missing text is an empty unquoted cell, an empty text a quoted one."""

    def written(value: str | None) -> str:
        if value is None:
            return ""
        special = any(mark in value for mark in (delimiter, '"', "\n", "\r")) or value == ""
        return '"' + value.replace('"', '""') + '"' if special or choose(3) == 0 else value

    end = ("\n", "\r\n")[choose(2)]
    lines = [delimiter.join(column.name for column in columns)]
    for row in rows:
        cells = [cell(row[column.name], column, world, choose) for column in columns]
        lines.append(delimiter.join(written(one) for one in cells))
    return (("\ufeff" if choose(2) else "") + end.join(lines) + end).encode()


def as_jsonl(rows: list[dict[str, Any]], columns: list[Column], world: World, choose: Any) -> bytes:
    """JSON lines: values in their own JSON types or as text; a missing one null or left out, but not in all lines."""
    lines = []
    for row in rows:
        found: dict[str, Any] = {}
        for column in columns:
            value = row[column.name]
            own = column.kind in ("int64", "float64", "bool", "list", "embedding") and choose(2) == 0
            if value is not None and not own:
                value = cell(value, column, world, choose)
            if value is not None or not lines or choose(2):
                found[column.name] = value
        lines.append(json.dumps(found, ensure_ascii=bool(choose(2))))
    return ("\n".join(lines) + "\n").encode()


def as_parquet(rows: list[dict[str, Any]], columns: list[Column], world: World, choose: Any) -> bytes:
    """Parquet whose columns are in another type that their declared one can read."""
    arrays = {}
    for column in columns:
        values = [row[column.name] for row in rows]
        form = choose(3)
        if form == 0 or column.kind in ("list", "embedding"):
            arrays[column.name] = pa.array(values, ARROW[column.kind])
        elif form == 1:
            texts = [None if one is None else cell(one, column, world, choose) for one in values]
            kind = (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.string_view())[choose(4)]
            arrays[column.name] = (
                pa.array(texts, pa.string()).cast(kind) if kind != pa.string_view() else pa.array(texts, kind)
            )
        elif column.kind == "timestamp":
            arrays[column.name] = pa.array(
                values, pa.timestamp(("s", "ms", "us", "ns")[choose(4)], tz="America/New_York")
            )
        else:
            arrays[column.name] = pa.array(values, ARROW[column.kind]).dictionary_encode()
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink, row_group_size=1 + choose(8))
    return sink.getvalue()


def digests(folder: Path) -> dict[str, str]:
    """Hashes of the artifact's data files: all but the manifest, the schema (it has the paths) and the rejects."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.name not in ("manifest.json", "schema.json")
        and path.relative_to(folder).parts[0] != "rejects"
    }


def rejects_of(folder: Path) -> dict[str, Any]:
    return {name: Counter(table["rejects"]) for name, table in read_manifest(folder).facts["tables"].items()}


TABLES = ("events", "items", "users")


def check_world(world: World, data: st.DataObject, folder: Path) -> None:
    choose = lambda count: data.draw(st.integers(0, count - 1))  # noqa: E731
    rows = {"events": world.events, "items": world.items, "users": world.users}
    plain = {name: folder / f"{name}.parquet" for name in TABLES}
    for name, path in plain.items():
        path.write_bytes(as_reference(rows[name], world.columns(name)))
    expected = features.run(schema_of(world, plain, {}), folder / "expected")
    form = data.draw(st.sampled_from(["csv", "tsv", "jsonl", "parquet", "semicolon"]))
    suffix = data.draw(st.sampled_from(list(SUFFIXES))) if form != "parquet" else ""
    other: dict[str, Path] = {}
    for name in TABLES:
        columns = world.columns(name)
        if form == "parquet":
            content = as_parquet(rows[name], columns, world, choose)
        elif form == "jsonl":
            content = as_jsonl(rows[name], columns, world, choose)
        else:
            delimiter = {"csv": ",", "tsv": "\t", "semicolon": ";"}[form]
            content = as_csv(rows[name], columns, world, choose, delimiter)
        other[name] = folder / f"{name}-written.{'csv' if form == 'semicolon' else form}{suffix}"
        other[name].write_bytes(SUFFIXES[suffix](content))
    options: dict[str, Any] = {"decimal": world.decimal}
    if form == "semicolon":
        options["delimiter"] = ";"
    written = features.run(schema_of(world, other, options), folder / "written")
    assert (found := digests(written)) == (wanted := digests(expected)), sorted(
        name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)
    )
    assert rejects_of(written) == rejects_of(expected)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds(), data=st.data())
def test_a_world_in_any_format_comes_to_the_same_features(world: World, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_world(world, data, Path(folder))


@pytest.mark.slow
@settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(world=worlds(), data=st.data())
def test_two_thousand_worlds_in_any_format_come_to_the_same_features(world: World, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_world(world, data, Path(folder))
