"""Thousands of broken tables: each ends in rejects or in one SchemaError; never in a trace or half an artifact."""

from __future__ import annotations

import datetime
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableName
from pipelines.features import job as features
from pipelines.tables.column_types import id_types, require_convertible, table_types
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
)


def rows_with_strange_cells(rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = [dict(event) for event in EVENTS]
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


def as_csv(rows: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    names = list(rows[0])
    if rng.random() < 0.1:
        names[-1] = names[0]  # The header names a column twice.
    lines = [",".join(names)]
    for row in rows:
        cells = [
            str(value) if rng.random() < 0.7 else '"' + str(value).replace('"', '""') + '"' for value in row.values()
        ]
        lines.append(",".join(cells[: len(cells) - int(rng.random() < 0.1)]))
    encoding = ["utf-8", "utf-16", "latin-1"][rng.integers(3)]
    return "\n".join(lines).encode(encoding, errors="replace")


def as_jsonl(rows: list[dict[str, Any]], rng: np.random.Generator) -> bytes:
    lines = [json.dumps(row, default=str) for row in rows]
    if rng.random() < 0.2:
        lines[rng.integers(len(lines))] = "{broken"
    return "\n".join(lines).encode()


def broken_file(rng: np.random.Generator) -> tuple[str, bytes]:
    """A suffix and the bytes of one broken events table."""
    rows = rows_with_strange_cells(rng)
    form = ("parquet", "csv", "jsonl")[rng.integers(3)]
    content = as_parquet(rows) if form == "parquet" else as_csv(rows, rng) if form == "csv" else as_jsonl(rows, rng)
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
    return form, content


def check_all(folder: Path, form: str) -> None:
    """What the job does to a table of events, without Beam around it."""
    raw = raw_schema(folder)
    raw["tables"]["events"]["path"] = str(folder / f"events.{form}")
    schema = schema_of(raw)
    files = find_files(schema.tables.events, "events")
    inputs: dict[TableName, Any] = {"events": files}
    types = table_types(schema, "events", files, id_types(schema, inputs)).only(columns_of(schema))
    require_convertible(schema, "events", files, types)
    items = pa.array([10, 20, 30, 40]).cast(types.kinds["item"].arrow)
    checker = EventChecker(schema, types, ItemLookup(items))
    for shard in plan_shards(files, schema.tables.events, "events"):
        for batch in read_shard(shard, schema.tables.events, types.columns, types.kinds):
            checked = checker.check(batch)
            assert len(checked.events) + len(checked.rejects) + len(checked.unknown) == len(batch.table)


def fuzz(folder: Path, seeds: range) -> None:
    for seed in seeds:
        form, content = broken_file(np.random.default_rng(seed))
        (folder / f"events.{form}").write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                check_all(folder, form)
        except SchemaError:
            continue
        except Exception as err:
            raise AssertionError(f"seed {seed}, {form}: {err!r}") from err


def test_three_hundred_broken_tables_end_in_rejects_or_one_clear_error(tmp_path: Path) -> None:
    fuzz(tmp_path, range(300))


@pytest.mark.slow
def test_ten_thousand_broken_tables_end_in_rejects_or_one_clear_error(tmp_path: Path) -> None:
    fuzz(tmp_path, range(300, 10_300))


def test_the_whole_job_leaves_nothing_of_a_broken_table(tmp_path: Path) -> None:
    for seed in range(8):
        folder = tmp_path / str(seed)
        folder.mkdir()
        write_rows(folder, items=ITEMS, users=USERS)
        form, content = broken_file(np.random.default_rng(seed))
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
