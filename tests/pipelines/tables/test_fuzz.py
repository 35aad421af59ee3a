"""Thousands of broken tables: each ends in rejects or in one SchemaError; never in a trace or half an artifact."""

from __future__ import annotations

import bz2
import datetime
import decimal
import gzip
import io
import json
import lzma
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import ConfigError, SchemaError
from pipelines.contracts.schema import TableName
from pipelines.features import job as features
from pipelines.tables.catalogue import read_items
from pipelines.tables.column_types import id_types, require_convertible, table_types
from pipelines.tables.entity_checks import EntityChecker
from pipelines.tables.event_checks import EventChecker, ItemLookup, columns_of
from pipelines.tables.files import find_files
from pipelines.tables.readers import plan_shards, read_shard
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, raw_schema, schema_of, write_rows

STRANGE: tuple[Any, ...] = (
    None,
    "",
    "x" * 5_000,
    "\u0000",
    "a\nb",
    '"',
    -1,
    2**62,
    1.5,
    float("nan"),
    float("inf"),
    True,
    [1, [2]],
    {"a": 1},
    b"\xff\xfe",
    datetime.datetime(1969, 12, 31),
    datetime.datetime(2999, 1, 1),
    datetime.date(2025, 1, 1),
    "2025-13-45",
    "not a number",
    "NA",
    "\\N",
    "007",
    "9223372036854775807",
    "-9223372036854775809",
    2**64 + 1,
    "5007.0",
    "1,5",
    "1.234,56",
    "0x1F",
    "１２",
    "2026-02-01 12:30:15+00",
    "2026-02-01 12:30:15.123456789 UTC",
    "2026-02-30",
    1_735_689_600,
    "Action|Comedy",
    "[1, 2",
    "{a,b}",
    "\ufeffbom",
    decimal.Decimal("1.50"),
)
# What the TOML may say of the table besides.
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"delimiter": ";"},
    {"encoding": "utf-16"},
    {"encoding": "latin-1"},
    {"decimal": ","},
)
TYPES: tuple[Any, ...] = (
    "string",
    "int64",
    "float64",
    "bool",
    "timestamp",
    {"type": "timestamp", "unit": "s", "timezone": "Europe/Berlin"},
    "list",
    {"type": "list", "separator": "|", "of": "int64"},
    "embedding",
)
PACKED: dict[str, Any] = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
PLAIN: dict[TableName, list[dict[str, Any]]] = {"events": EVENTS, "items": ITEMS, "users": USERS}


def rows_with_strange_cells(rng: np.random.Generator, plain: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in plain]
    column = list(rows[0])[rng.integers(len(rows[0]))]
    strange = STRANGE[rng.integers(len(STRANGE))]
    for row in rows:
        if rng.random() < 0.6:
            row[column] = strange
    return rows


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    try:
        table = pa.Table.from_pylist(rows)
    except (ValueError, TypeError, OverflowError):  # Mixed types: no such column in Parquet; take their texts.
        table = pa.Table.from_pylist([{name: str(value) for name, value in row.items()} for row in rows])
    pq.write_table(table, sink)
    return sink.getvalue()


def as_csv(rows: list[dict[str, Any]], rng: np.random.Generator, delimiter: str) -> bytes:
    names = list(rows[0])
    if rng.random() < 0.1:
        names[-1] = names[0]  # The header names a column twice.
    lines = [delimiter.join(names)]
    for row in rows:
        cells = [
            str(value) if rng.random() < 0.7 else '"' + str(value).replace('"', '""') + '"' for value in row.values()
        ]
        lines.append(delimiter.join(cells[: len(cells) - int(rng.random() < 0.1)]))
    encoding = ["utf-8", "utf-16", "latin-1"][rng.integers(3)]
    return ("\n", "\r\n", "\r")[rng.integers(3)].join(lines).encode(encoding, errors="replace")


def as_jsonl(rows: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    lines = [json.dumps(row, default=str) for row in rows]
    if rng.random() < 0.2:
        lines[rng.integers(len(lines))] = "{broken"
    return "\n".join(lines).encode()


def broken_file(rng: np.random.Generator, plain: list[dict[str, Any]]) -> tuple[str, bytes]:
    """A suffix and the bytes of one broken table."""
    rows = rows_with_strange_cells(rng, plain)
    form = ("parquet", "csv", "tsv", "jsonl")[rng.integers(4)]
    if form == "parquet":
        content = as_parquet(rows)
    elif form == "jsonl":
        content = as_jsonl(rows, rng)
    else:
        content = as_csv(rows, rng, ("\t" if form == "tsv" else ",;"[rng.integers(2)]))
    packed = "" if form == "parquet" else list(PACKED)[rng.integers(len(PACKED))] if rng.random() < 0.2 else ""
    content = PACKED[packed](content)
    harm = rng.integers(6)
    if harm == 0:
        content = content[: rng.integers(len(content))]
    elif harm == 1 and content:
        damaged = bytearray(content)
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = rng.integers(256)
        content = bytes(damaged)
    elif harm == 2:
        content = b""
    return form + packed, content


def broken_schema(rng: np.random.Generator, folder: Path, name: TableName, form: str) -> dict[str, Any]:
    """The small marketplace's schema, one of its tables read in some way, with types that may not fit."""
    raw = raw_schema(folder)
    table = raw["tables"][name]
    table["path"] = str(folder / f"{name}.{form}")
    table |= OPTIONS[rng.integers(len(OPTIONS))] if rng.random() < 0.3 else {}
    if rng.random() < 0.3:
        column = list(PLAIN[name][0])[rng.integers(len(PLAIN[name][0]))]
        table["types"] = {column: TYPES[rng.integers(len(TYPES))]}
    if rng.random() < 0.3:
        raw["ids"] = {"user": ("int64", "string")[rng.integers(2)], "item": ("int64", "string")[rng.integers(2)]}
    return raw


def check_all(raw: dict[str, Any], name: TableName) -> None:
    """What the job does to a table, without Beam around it."""
    schema = schema_of(raw)
    source = getattr(schema.tables, name)
    files = find_files(source, name)
    inputs: dict[TableName, Any] = {name: files}
    types = table_types(schema, name, files, id_types(schema, inputs))
    require_convertible(schema, name, files, types)
    if name == "items":
        read_items(schema, files, types)
        return
    events: EventChecker | None = None
    if name == "events":
        types = types.only(columns_of(schema))
        events = EventChecker(schema, types, ItemLookup(pa.array([10, 20, 30, 40]).cast(types.kinds["item"].arrow)))
    users = None if events is not None else EntityChecker(schema, "user", types)
    for shard in plan_shards(files, source, name):
        for batch in read_shard(shard, source, types.columns, types.kinds):
            if events is not None:
                checked = events.check(batch)
                assert len(checked.events) + len(checked.rejects) + len(checked.unknown) == len(batch.table)
            elif users is not None:
                accepted = users.check(batch)
                assert len(accepted.table) + len(accepted.rejects) == len(batch.table)


def fuzz(folder: Path, seeds: range) -> None:
    for seed in seeds:
        rng = np.random.default_rng(seed)
        name: TableName = ("events", "events", "items", "users")[rng.integers(4)]
        form, content = broken_file(rng, PLAIN[name])
        path = folder / f"{name}.{form}"
        path.write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check_all(broken_schema(rng, folder, name, form), name)
        except (SchemaError, ConfigError):
            continue
        except Exception as err:
            raise AssertionError(f"seed {seed}, {name}, {form}: {err!r}") from err


def test_three_hundred_broken_tables_end_in_rejects_or_one_clear_error(tmp_path: Path) -> None:
    fuzz(tmp_path, range(300))


@pytest.mark.slow
def test_a_hundred_thousand_broken_tables_end_in_rejects_or_one_clear_error(tmp_path: Path) -> None:
    fuzz(tmp_path, range(300, 100_300))


def test_the_whole_job_leaves_nothing_of_a_broken_table(tmp_path: Path) -> None:
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_rows(folder, items=ITEMS, users=USERS)
        form, content = broken_file(np.random.default_rng(seed), EVENTS)
        (folder / f"events.{form}").write_bytes(content)
        raw = raw_schema(folder)
        raw["validation"] = {"max_reject_rate": 1.0}
        try:
            features.run(schema_of(raw), folder / "features")
        except SchemaError:
            assert sorted(path.name for path in folder.iterdir()) == [
                f"events.{form}",
                "items.parquet",
                "users.parquet",
            ]
