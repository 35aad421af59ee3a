"""Random shops whose columns have known types, written in any format: what the job ``init`` has to find out."""

from __future__ import annotations

import bz2
import csv
import datetime
import gzip
import io
import json
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FORMATS = ("parquet", "csv", "tsv", "jsonl", "csv.gz", "jsonl.bz2", "csv.xz")
START = datetime.datetime(2024, 3, 1, tzinfo=datetime.UTC)
DAYS = 120
WORDS = ("red", "blue", "old", "lamp", "rug", "shoe", "tea", "bag", "bike", "oak", "tin", "wool")

Rows = dict[str, list[Any]]


@dataclass
class World:
    """Three tables as columns of Python values, and the type each column was made with, as the TOML names it."""

    events: Rows
    items: Rows
    users: Rows
    types: dict[str, dict[str, str]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Rows]:
        return {"events": self.events, "items": self.items, "users": self.users}


ID_KINDS: dict[str, Callable[[np.random.Generator, int], list[Any]]] = {
    "small": lambda rng, n: (rng.permutation(n) + 1).tolist(),
    "wide": lambda rng, n: np.unique(rng.integers(-(2**63), 2**63 - 1, n)).tolist(),
    "letters": lambda _, n: [f"sku-{place:04x}" for place in range(n)],
    "zeros": lambda _, n: [f"{place:08d}" for place in range(n)],
}


def make_world(seed: int, item_ids: str, user_ids: str, unit: str) -> World:
    """A shop.

    Args:
        seed: of everything random.
        item_ids, user_ids: a key of ``ID_KINDS``.
        unit: of the events' times: "" for timestamps, else s, ms, us or ns for integers.
    """
    rng = np.random.default_rng(seed)
    items, users = ID_KINDS[item_ids](rng, 80), ID_KINDS[user_ids](rng, 40)
    world = World(_events(rng, items, users, unit), _items(rng, items), _users(rng, users))
    whole = ("small", "wide")
    world.ids = {
        "item": "int64" if item_ids in whole else "string",
        "user": "int64" if user_ids in whole else "string",
    }
    world.types = {
        "events": {"at_time": "timestamp", "paid": "float64", "verb": "string"},
        "items": {
            "kind": "string",
            "cost": "float64",
            "stock": "int64",
            "on_offer": "bool",
            "listed": "timestamp",
            "labels": "list",
            "codes": "list",
            "picture": "embedding",
            "caption": "string",
            "size": "string",
            "gtin_prefix": "string",
        },
        "users": {"region": "string", "years": "int64", "joined": "timestamp"},
    }
    return world


def _moments(rng: np.random.Generator, n: int, days: tuple[int, int]) -> list[datetime.datetime]:
    seconds = rng.integers(days[0] * 86_400, days[1] * 86_400, n)
    return [START + datetime.timedelta(seconds=int(one)) for one in seconds]


def _events(rng: np.random.Generator, items: list[Any], users: list[Any], unit: str) -> Rows:
    n = 1_500
    times: list[Any] = _moments(rng, n, (0, DAYS))
    if unit:
        factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
        times = [int(time.timestamp()) * factor for time in times]
    # Every user and item occurs.
    who = [*users, *rng.choice(np.array(users, object), n - len(users)).tolist()]
    what = [*items, *rng.choice(np.array(items, object), n - len(items)).tolist()]
    return {
        "who": who,
        "what": what,
        "at_time": times,
        "verb": rng.choice(["view", "click", "buy"], n, p=[0.7, 0.25, 0.05]).tolist(),
        "paid": _missing(rng, np.round(rng.lognormal(2, 1, n), 2).tolist()),
    }


def _items(rng: np.random.Generator, ids: list[Any]) -> Rows:
    n = len(ids)
    return {
        "what": ids,
        "kind": _missing(rng, rng.choice(["lamps", "rugs", "NA", "tea; green"], n).tolist()),
        "cost": _missing(rng, (np.round(rng.lognormal(2, 1, n), 2) + 0.005).tolist()),
        "stock": (rng.integers(0, 5_000, n)).tolist(),
        "on_offer": [bool(one) for one in np.arange(n) % 3 == 0],
        "listed": _moments(rng, n, (-400, -1)),
        "labels": _missing(rng, [rng.choice(WORDS, 1 + place % 3, replace=False).tolist() for place in range(n)]),
        "codes": [rng.choice(np.arange(10, 30), 1 + place % 4, replace=False).tolist() for place in range(n)],
        "picture": [np.round(rng.normal(size=4), 4).tolist() for _ in range(n)],
        "caption": [" ".join(rng.choice(WORDS, 4).tolist()) + f" no. {place}" for place in range(n)],
        "size": rng.choice(["36", "38", "40", "S", "M"], n).tolist(),
        "gtin_prefix": rng.choice(["012", "034", "560"], n).tolist(),
    }


def _users(rng: np.random.Generator, ids: list[Any]) -> Rows:
    n = len(ids)
    return {
        "who": ids,
        "region": rng.choice(["north", "south", "None"], n).tolist(),
        "years": _missing(rng, rng.integers(18, 90, n).tolist()),
        "joined": _moments(rng, n, (-900, -1)),
    }


def _missing(rng: np.random.Generator, values: list[Any]) -> list[Any]:
    """Every tenth value or so is missing, the first one not."""
    gone = rng.random(len(values)) < 0.1
    return [None if place and lost else value for place, (value, lost) in enumerate(zip(values, gone, strict=True))]


def write(rows: Rows, folder: Path, name: str, form: str) -> Path:
    """Writes a table in one of ``FORMATS`` and returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    plain, _, packed = form.partition(".")
    if plain == "parquet":
        pq.write_table(pa.table(rows), path)
        return path
    text = _jsonl(rows) if plain == "jsonl" else _separated(rows, "," if plain == "csv" else "\t")
    pack: Callable[[bytes], bytes] = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}[packed]
    path.write_bytes(pack(text.encode()))
    return path


def _jsonl(rows: Rows) -> str:
    lines = [dict(zip(rows, cells, strict=True)) for cells in zip(*rows.values(), strict=True)]
    return "".join(json.dumps(line, default=lambda time: time.isoformat()) + "\n" for line in lines)


def _separated(rows: Rows, delimiter: str) -> str:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, lineterminator="\n")
    writer.writerow(rows)
    writer.writerows([_cell(value) for value in cells] for cells in zip(*rows.values(), strict=True))
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, datetime.datetime):
        return value.isoformat(sep=" ")
    return "|".join(map(str, value)) if isinstance(value, list) else str(value)
