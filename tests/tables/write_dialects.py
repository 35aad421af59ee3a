"""Writes ``tests/tables/dialects/``: the small shop as other software exports it.

Run it by hand: ``python -m tests.tables.write_dialects [DIALECT ...]``. pandas, Polars, DuckDB and Spark write their
own files, where they are installed; the others are written by the rules of their documentation. The files are kept in
the repository, so that the tests need none of them.
"""

from __future__ import annotations

import datetime
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tables.small_shop import events, items, users

DIALECTS = Path(__file__).parent / "dialects"
Rows = list[dict[str, Any]]
SCHEMAS = {
    "events": pa.schema(
        [
            ("user", pa.int64()),
            ("item", pa.string()),
            ("at", pa.timestamp("us", "UTC")),
            ("action", pa.string()),
            ("value", pa.float64()),
        ]
    ),
    "items": pa.schema(
        [
            ("item", pa.string()),
            ("title", pa.string()),
            ("region", pa.string()),
            ("brand", pa.string()),
            ("price", pa.float64()),
            ("in_stock", pa.bool_()),
            ("listed_at", pa.timestamp("us", "UTC")),
            ("tags", pa.list_(pa.string())),
        ]
    ),
    "users": pa.schema(
        [
            ("user", pa.int64()),
            ("region", pa.string()),
            ("age", pa.int64()),
            ("vip", pa.bool_()),
            ("joined", pa.timestamp("us", "UTC")),
        ]
    ),
}
TABLES: dict[str, Rows] = {"events": events(), "items": items(), "users": users()}
WRITERS: dict[str, Callable[[Path], None]] = {}


def dialect(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Registers the writer of a dialect under the name of the function."""
    WRITERS[write.__name__] = write
    return write


def arrow(name: str) -> pa.Table:
    """A table of the shop in the types it has."""
    return pa.Table.from_pylist(TABLES[name], SCHEMAS[name])


def milliseconds(time: datetime.datetime, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """``2026-02-01 12:30:15.123``; no fraction where there is none, and no zeros at its end."""
    fraction = f".{time.microsecond // 1000:03d}".rstrip("0").rstrip(".")
    return time.strftime(form) + fraction


def write_text(path: Path, header: list[str], lines: list[list[str]], *, mark: str = ",", end: str = "\n") -> str:
    """Joins cells that are already as they are in the file, and writes them as UTF-8."""
    text = "".join(mark.join(line) + end for line in [header, *lines])
    path.write_bytes(text.encode())
    return text


def quoted(cell: str) -> str:
    """The cell in quotes."""
    doubled = cell.replace('"', '""')
    return f'"{doubled}"'


def where_needed(cell: str, special: str) -> str:
    """The cell, in quotes if it has one of the special characters."""
    return quoted(cell) if any(one in cell for one in special) else cell


@dialect
def arrow_parquet(folder: Path) -> None:
    """What all others are compared with."""
    for name in TABLES:
        pq.write_table(arrow(name), folder / f"{name}.parquet")


@dialect
def postgres(folder: Path) -> None:
    """COPY ... TO ... (FORMAT csv, HEADER), and with NULL '\\N' for the users; timestamptz in two sessions' zones."""

    def cell(value: Any, null: str, zone: datetime.timezone) -> str:
        if value is None:
            return null
        if isinstance(value, bool):
            return "t" if value else "f"
        if isinstance(value, datetime.datetime):
            hours = zone.utcoffset(None).total_seconds() / 3600
            whole, part = int(hours), abs(int(hours * 60)) % 60
            return milliseconds(value.astimezone(zone)) + f"{whole:+03d}" + (f":{part:02d}" if part else "")
        if isinstance(value, list):
            return where_needed("{" + ",".join(value) + "}", ',"\n')
        # COPY quotes a text that is the same as its mark for a missing value.
        return quoted(value) if value in ("", null) else where_needed(str(value), ',"\n\r')

    offsets = {"events": 0, "items": -5, "users": 5.5}
    for name, rows in TABLES.items():
        zone = datetime.timezone(datetime.timedelta(hours=offsets[name]))
        null = "\\N" if name == "users" else ""
        lines = [[cell(value, null, zone) for value in row.values()] for row in rows]
        write_text(folder / f"{name}.csv", list(rows[0]), lines)


@dialect
def bigquery(folder: Path) -> None:
    """EXPORT DATA: newline-delimited JSON for events and items, CSV for the users, as BigQuery names the files."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.datetime):
            return milliseconds(value) + " UTC"
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    for name in ("events", "items"):
        rows = [{key: plain(value) for key, value in row.items() if value is not None} for row in TABLES[name]]
        text = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        (folder / f"{name}-000000000000.json").write_bytes(text.encode())
    lines = [
        [
            "" if value is None else str(value).lower() if isinstance(value, bool) else str(plain(value))
            for value in row.values()
        ]
        for row in TABLES["users"]
    ]
    write_text(folder / "users-000000000000.csv", list(TABLES["users"][0]), lines)


@dialect
def pandas(folder: Path) -> None:
    """Frames that were merged and saved: float ids, an index that became a column, lists as Python writes them."""
    import pandas as pd

    frame = pd.DataFrame(TABLES["events"])
    frame["user"] = frame["user"].astype(float)
    frame.to_csv(folder / "events.csv", na_rep="NaN")
    shop = pd.DataFrame(TABLES["items"])
    shop.to_csv(folder / "saved.csv")
    pd.read_csv(folder / "saved.csv", dtype={"item": str}, keep_default_na=False).to_csv(
        folder / "items.csv", index=False
    )
    (folder / "saved.csv").unlink()
    people = pd.DataFrame(TABLES["users"])
    people["user"] = people["user"].astype(float)
    people.to_csv(folder / "users.csv", na_rep="NaN")


@dialect
def pandas_parquet(folder: Path) -> None:
    """to_parquet, with categories, a named index, an age that is a float and times of nanoseconds."""
    import pandas as pd

    frame = pd.DataFrame(TABLES["events"]).astype({"action": "category", "at": "datetime64[ns, UTC]"})
    frame.to_parquet(folder / "events.parquet")
    shop = pd.DataFrame(TABLES["items"]).astype({"region": "category", "brand": "category"}).set_index("item")
    shop.to_parquet(folder / "items.parquet")
    people = pd.DataFrame(TABLES["users"])
    people.assign(age=people["age"].astype(float)).to_parquet(folder / "users.parquet")


@dialect
def polars(folder: Path) -> None:
    """write_ndjson, write_csv and write_parquet."""
    import polars as pl

    pl.from_arrow(arrow("events")).write_csv(folder / "events.csv")  # type: ignore[union-attr]
    pl.from_arrow(arrow("items")).write_ndjson(folder / "items.jsonl")  # type: ignore[union-attr]
    pl.from_arrow(arrow("users")).write_parquet(folder / "users.parquet")  # type: ignore[union-attr]


def _excel_cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float):
        return f"{value:.2f}".replace(".", ",")
    if isinstance(value, datetime.datetime):
        return milliseconds(value)  # The cell format yyyy-mm-dd hh:mm:ss.000 of a column in UTC.
    return ", ".join(value) if isinstance(value, list) else str(value)


@dialect
def excel(folder: Path) -> None:
    """Save as "CSV UTF-8" where a comma is the decimal mark: semicolons, a byte order mark, CRLF."""
    for name, rows in TABLES.items():
        lines = [[where_needed(_excel_cell(value), ';"\n') for value in row.values()] for row in rows]
        text = write_text(folder / f"{name}.csv", list(rows[0]), lines, mark=";", end="\r\n")
        (folder / f"{name}.csv").write_bytes(text.encode("utf-8-sig"))


@dialect
def excel_unicode(folder: Path) -> None:
    """Save as "Unicode Text": UTF-16 with a byte order mark, tabs, CRLF."""
    for name, rows in TABLES.items():
        lines = [[where_needed(_excel_cell(value), '\t"\n,') for value in row.values()] for row in rows]
        text = write_text(folder / f"{name}.txt", list(rows[0]), lines, mark="\t", end="\r\n")
        (folder / f"{name}.txt").write_bytes(b"\xff\xfe" + text.encode("utf-16-le"))


@dialect
def duckdb(folder: Path) -> None:
    """COPY ... TO, as CSV and as Parquet."""
    import duckdb as db

    connection = db.connect()
    connection.sql("SET TimeZone = 'UTC'")
    for name in TABLES:
        connection.register(name, arrow(name))
    connection.sql(f"COPY events TO '{folder}/events.csv' (HEADER)")
    connection.sql(f"COPY items TO '{folder}/items.csv' (HEADER)")
    connection.sql(f"COPY users TO '{folder}/users.parquet'")


@dialect
def go(folder: Path) -> None:
    """encoding/csv and time.RFC3339Nano, which leaves zeros at the end out; clocks there count nanoseconds."""
    rng = random.Random(4)

    def cell(value: Any) -> str:
        if value is None:
            return ""
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, datetime.datetime):
            nanoseconds = f"{value.microsecond:06d}{rng.randrange(1000):03d}".rstrip("0")
            return value.strftime("%Y-%m-%dT%H:%M:%S") + (f".{nanoseconds}" if nanoseconds else "") + "Z"
        text = "|".join(value) if isinstance(value, list) else f"{value:g}" if isinstance(value, int) else str(value)
        return where_needed(text, ',"\r\n')

    for name, rows in TABLES.items():
        write_text(folder / f"{name}.csv", list(rows[0]), [[cell(value) for value in row.values()] for row in rows])


@dialect
def java(folder: Path) -> None:
    """OpenCSV, which quotes all cells but missing ones; jackson-csv, which quotes texts; JSON with milliseconds."""
    rng = random.Random(5)

    def instant(time: datetime.datetime) -> str:
        digits = f"{time.microsecond:06d}{rng.randrange(1000):03d}"
        return time.strftime("%Y-%m-%dT%H:%M:%S") + f".{digits}Z"

    def text(value: Any) -> str:
        if isinstance(value, datetime.datetime):
            return instant(value)
        if isinstance(value, list):
            return "[" + ", ".join(value) + "]"  # List.toString
        return str(value).lower() if isinstance(value, bool) else str(value)

    lines = [["" if value is None else quoted(text(value)) for value in row.values()] for row in TABLES["items"]]
    write_text(folder / "items.csv", [quoted(name) for name in TABLES["items"][0]], lines)
    lines = [
        [quoted(value) if isinstance(value, str) else text(value) for value in row.values()] for row in TABLES["events"]
    ]
    write_text(folder / "events.csv", list(TABLES["events"][0]), lines)
    people = [
        {**row, "joined": None if row["joined"] is None else round(row["joined"].timestamp() * 1000)}
        for row in TABLES["users"]
    ]
    (folder / "users.jsonl").write_text("".join(json.dumps(row) + "\n" for row in people))


@dialect
def spark(folder: Path) -> None:
    """A folder per table, with _SUCCESS and checksums: Parquet by month with int96 times, JSON, CSV."""
    from pyspark.sql import SparkSession, functions

    session = (
        SparkSession.builder.master("local[1]")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.parquet.outputTimestampType", "INT96")
        .config("spark.ui.enabled", "false")
        .getOrCreate()
    )
    frames = {}
    for name in TABLES:
        path = folder / f"{name}.tmp.parquet"
        pq.write_table(arrow(name), path)
        frames[name] = session.read.parquet(str(path)).cache()
        frames[name].count()
        path.unlink()
    by_month = frames["events"].withColumn("dt", functions.date_format("at", "yyyy-MM"))
    by_month.write.partitionBy("dt").parquet(str(folder / "events"))
    frames["items"].repartition(2, "item").write.json(str(folder / "items"))
    frames["users"].write.option("header", True).csv(str(folder / "users"))
    session.stop()


def main(names: list[str]) -> None:
    """Writes these dialects, or all."""
    for name in names or list(WRITERS):
        folder = DIALECTS / name
        kept = (folder / "tables.toml").read_bytes() if (folder / "tables.toml").exists() else None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        if kept is not None:
            (folder / "tables.toml").write_bytes(kept)
        WRITERS[name](folder)


if __name__ == "__main__":
    main(sys.argv[1:])
