"""Small data sets with taste in them, one for each kind of protocol, without the features job."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipelines.contracts.schema import parse_schema
from pipelines.contracts.vocabulary import FittedNumbers
from pipelines.sequences.event_lists import EventLists
from towers.data.training_data import DAY_US, TrainingData

USERS, ITEMS, EVENTS_PER_USER = 120, 90, 16


def tiny_data(kind: str, seed: int = 0) -> TrainingData:
    """``kind``: time, order or set. Of a user's events, 80 % fall into the one of five categories the user likes."""
    rng = np.random.default_rng(seed)
    taste, category = rng.integers(0, 5, USERS), rng.integers(0, 5, ITEMS)
    rows = np.concatenate(
        [
            np.where(
                rng.random(EVENTS_PER_USER) < 0.8,
                rng.choice(np.flatnonzero(category == liked), EVENTS_PER_USER),
                rng.integers(0, ITEMS, EVENTS_PER_USER),
            )
            for liked in taste
        ]
    ).astype(np.int32)
    place = np.tile(np.arange(EVENTS_PER_USER), USERS)
    times = np.sort(rng.integers(0, 60 * 86_400, (USERS, EVENTS_PER_USER)), axis=1).reshape(-1) * 1_000_000
    splits = np.where(place < EVENTS_PER_USER - 4, 0, np.where(place < EVENTS_PER_USER - 2, 1, 2))
    if kind == "time":
        splits = np.where(times < 40 * DAY_US, 0, np.where(times < 50 * DAY_US, 1, 2))
    else:
        times = place
    offsets = np.arange(USERS + 1, dtype=np.int64) * EVENTS_PER_USER
    actions = np.zeros(len(rows), np.int8)
    frequency = np.bincount(rows[splits == 0], minlength=ITEMS).astype(np.int64)
    users: dict[str, Any] = (
        {"user": (np.arange(USERS) + 2).astype(np.int32)}
        if kind == "set"
        else {"country": (taste % 2 + 2).astype(np.int32)}
    )
    return TrainingData(
        schema=_schema(kind),
        items={
            "item": (np.arange(ITEMS) + 2).astype(np.int32),
            "category": (category + 2).astype(np.int32),
            "title": rng.integers(0, 9, (ITEMS, 4)).astype(np.int32),
            "price": np.stack([rng.normal(size=ITEMS), np.ones(ITEMS)], 1).astype(np.float32),
            **({"sold": np.zeros((ITEMS, 2), np.float32)} if kind == "time" else {}),
        },
        users=users,
        events=EventLists(offsets, rows, times.astype(np.int64), actions, splits.astype(np.int8)),
        item_frequency=frequency,
        table_sizes={"item": {"item": ITEMS + 2, "category": 7, "title": 9}, "user": {"user": USERS + 2, "country": 4}},
        frequencies={"item": frequency},
        numbers={"item": {"sold": FittedNumbers("log")}, "user": {}},
    )


def _schema(kind: str) -> Any:
    events: dict[str, Any] = {"path": "events.parquet", "user_id": "user", "item_id": "item"}
    events |= {"time": {"time": "at"}, "order": {"order": "at"}, "set": {"unordered": True}}[kind]
    split: dict[str, Any] = {
        "time": {"valid_from": "1970-02-10", "test_from": "1970-02-20"},
        "order": {"leave_last_out": True},
        "set": {"column": "split"},
    }[kind]
    items = [
        {"name": "item", "kind": "id"},
        {"name": "category", "kind": "categorical"},
        {"name": "title", "kind": "text", "max_length": 4},
        {"name": "price", "kind": "numeric"},
    ]
    if kind == "time":
        items.append({"name": "sold", "kind": "count", "window_days": [7, 28]})
    user = {"name": "user", "kind": "id"} if kind == "set" else {"name": "country", "kind": "categorical"}
    return parse_schema(
        {
            "dataset": {"name": "tiny"},
            "tables": {
                "events": events,
                "items": {"path": "items.parquet", "item_id": "item"},
                "users": {"path": "users.parquet", "user_id": "user"},
            },
            "features": {"item": items, "user": [user]},
            "history": {"max_length": 10},
            "split": split,
        },
        "tiny",
    )
