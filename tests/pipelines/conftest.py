"""What the tests of the features job share: a small marketplace as Python rows, and its schema."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import settings

from pipelines.contracts.schema import DatasetSchema, parse_schema

# A busy machine is no failure: what is asked is the law, not the milliseconds.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)


def at(day: float) -> datetime.datetime:
    """A moment this many days after the first day of the small marketplace."""
    return START + datetime.timedelta(days=day)


EVENTS = [
    {"user": 1, "item": 30, "time": at(0), "action": "click", "price": 1.0},
    {"user": 1, "item": 10, "time": at(2), "action": "purchase", "price": 2.0},
    {"user": 1, "item": 20, "time": at(2), "action": "click", "price": 3.0},
    {"user": 2, "item": 10, "time": at(5), "action": "click", "price": 4.0},
    {"user": 1, "item": 30, "time": at(11), "action": "click", "price": 5.0},
    {"user": 3, "item": 20, "time": at(21), "action": "purchase", "price": 6.0},
    {"user": 2, "item": 30, "time": at(22), "action": "click", "price": 7.0},
]
ITEMS = [
    {"item": 20, "color": "red", "title": "Red lamp", "price": 3.0, "since": at(-4)},
    {"item": 10, "color": "blue", "title": "Blue lamp", "price": 1.0, "since": at(0)},
    {"item": 30, "color": "red", "title": "Red rug", "price": 8.0, "since": None},
    {"item": 40, "color": "green", "title": "Green rug", "price": 9.0, "since": at(15)},
]
USERS: list[dict[str, Any]] = [{"user": 9, "country": "DE"}, {"user": 1, "country": "US"}, {"user": 2, "country": None}]


def raw_schema(folder: Path) -> dict[str, Any]:
    """The small marketplace's schema, as the TOML gives it."""
    return {
        "dataset": {"name": "small"},
        "tables": {
            "events": {
                "path": str(folder / "events*"),
                "user_id": "user",
                "item_id": "item",
                "time": "time",
                "action": "action",
                "value": "price",
            },
            "items": {"path": str(folder / "items*"), "item_id": "item"},
            "users": {"path": str(folder / "users*"), "user_id": "user"},
        },
        "actions": {"click": 1.0, "purchase": 3.0},
        "features": {
            "item": [
                {"name": "item_id", "column": "item", "kind": "id"},
                {"name": "color", "kind": "categorical"},
                {"name": "title", "kind": "text", "min_frequency": 1},
                {"name": "price", "kind": "numeric"},
                {"name": "since", "kind": "time_since"},
                {"name": "sold", "kind": "count", "window_days": [7, 28]},
            ],
            "user": [
                {"name": "country", "kind": "categorical"},
                {"name": "bought", "kind": "count", "window_days": [28], "action": "purchase"},
            ],
        },
        "split": {"valid_from": "2025-01-11", "test_from": "2025-01-21"},
        "validation": {"max_reject_rate": 0.0},
    }


def schema_of(raw: dict[str, Any]) -> DatasetSchema:
    """The schema in a dictionary."""
    return parse_schema(raw, "test")


def write_rows(folder: Path, **tables: list[dict[str, Any]]) -> None:
    """Writes each table as Parquet."""
    for name, rows in tables.items():
        table = pa.Table.from_pylist(rows or EVENTS).slice(0, len(rows))  # No row, but the columns.
        pq.write_table(table, folder / f"{name}.parquet")


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., DatasetSchema]:
    """Writes the small marketplace with some tables replaced and returns its schema, changed by ``change``."""

    def make(change: Callable[[dict[str, Any]], None] | None = None, **tables: list[dict[str, Any]]) -> DatasetSchema:
        write_rows(tmp_path, **{"events": EVENTS, "items": ITEMS, "users": USERS, **tables})
        raw = raw_schema(tmp_path)
        if change is not None:
            change(raw)
        return schema_of(raw)

    return make
