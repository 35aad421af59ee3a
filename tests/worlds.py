"""A small marketplace with taste in it, for tests: each user likes two categories, each item belongs to one."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FIRST_DAY = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
DAYS = 60
CATEGORIES = ("shoes", "bags", "lamps", "rugs", "toys", "tea", "books", "bikes")

TOML = """
[dataset]
name = "marketplace"

[tables.events]
path = "events.parquet"
user_id = "user_id"
item_id = "item_id"
time = "time"
action = "action"
value = "price"

[tables.items]
path = "items.parquet"
item_id = "item_id"
advertiser_id = "advertiser_id"
title = "title"

[tables.users]
path = "users.parquet"
user_id = "user_id"

[actions]
click = 1.0
purchase = 3.0

[[features.item]]
name = "item_id"
kind = "id"

[[features.item]]
name = "category"
kind = "categorical"

[[features.item]]
name = "title"
kind = "text"

[[features.item]]
name = "tags"
kind = "list"

[[features.item]]
name = "price"
kind = "numeric"
scale = "log"

[[features.item]]
name = "picture"
kind = "embedding"
dim = 8

[[features.user]]
name = "country"
kind = "categorical"

[[features.user]]
name = "age"
kind = "numeric"

[history]
max_length = 20

[split]
valid_from = 2025-02-16
test_from = 2025-02-23

[index]
attributes = ["category", "price", "in_stock"]
"""


def write_marketplace(
    directory: Path, *, users: int = 300, items: int = 400, events: int = 12_000, seed: int = 0
) -> Path:
    """Writes events, items and users as Parquet and the TOML that describes them; returns the TOML's path.

    Item ids are integers, user ids text. Of a user's events, 85 % fall into the two liked categories.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    category = rng.integers(0, len(CATEGORIES), items)
    popularity = rng.zipf(1.3, items).clip(max=200).astype(np.float64)
    taste = np.stack([rng.choice(len(CATEGORIES), 2, replace=False) for _ in range(users)])
    write_items(directory / "items.parquet", category, rng)
    pq.write_table(
        pa.table(
            {
                "user_id": [f"u{user}" for user in range(users)],
                "country": [None if user % 5 == 0 else ("US", "CA", "DE")[user % 3] for user in range(users)],
                "age": pa.array([None if user % 7 == 0 else 18 + user % 60 for user in range(users)], pa.int64()),
            }
        ),
        directory / "users.parquet",
    )
    who = rng.integers(0, users, events)
    liked = np.where(rng.random(events) < 0.85, taste[who, rng.integers(0, 2, events)], rng.integers(0, 8, events))
    what = np.empty(events, np.int64)
    for value in range(len(CATEGORIES)):
        own = np.flatnonzero(category == value)
        chosen = liked == value
        what[chosen] = rng.choice(own, chosen.sum(), p=popularity[own] / popularity[own].sum())
    seconds = np.sort(rng.integers(0, DAYS * 86_400, events))
    pq.write_table(
        pa.table(
            {
                "user_id": [f"u{user}" for user in who],
                "item_id": what + 1000,
                "time": pa.array((seconds + int(FIRST_DAY.timestamp())) * 1_000_000, pa.timestamp("us", tz="UTC")),
                "action": np.where(rng.random(events) < 0.3, "purchase", "click"),
                "price": rng.lognormal(2, 1, events),
            }
        ),
        directory / "events.parquet",
    )
    path = directory / "marketplace.toml"
    path.write_text(TOML)
    return path


def write_items(path: Path, category: np.ndarray, rng: np.random.Generator) -> None:
    """Writes the items table: one row for each entry of ``category`` (``[items] int``), item ids from 1000."""
    items = len(category)
    names = [CATEGORIES[value] for value in category]
    pictures = rng.normal(size=(len(CATEGORIES), 8))[category] + rng.normal(scale=0.3, size=(items, 8))
    pq.write_table(
        pa.table(
            {
                "item_id": np.arange(items) + 1000,
                "advertiser_id": [f"adv{value}" for value in rng.zipf(1.5, items).clip(max=30)],
                "category": names,
                "title": [
                    f"{('Red', 'Blue', 'Old')[item % 3]} {name} no. {item % 40}" for item, name in enumerate(names)
                ],
                "tags": [[name, f"tag{item % 9}"] for item, name in enumerate(names)],
                "price": rng.lognormal(3, 1, items).round(2),
                "in_stock": rng.random(items) < 0.9,
                "picture": pa.array(
                    [None if item % 11 == 0 else row.tolist() for item, row in enumerate(pictures)],
                    pa.list_(pa.float32()),
                ),
            }
        ),
        path,
    )
