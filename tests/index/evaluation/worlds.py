"""Small worlds to evaluate in: users with a taste, items around centers, events that follow both, and bundles of them.

The items' vectors are given, so that what a bundle finds can be computed by hand; the tower is that of the retriever's
tests (a mean of the history).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.registry.bundle import Probes, save_probes
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import ExactSearcher
from index.search.scann_tree import ScannSearcher
from index.settings import TreeSettings
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.schema import DatasetSchema, parse_schema
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.reader import part_name, write_part
from tests.index.serving_bundles import CATEGORIES, COUNTRIES, HISTORY, SCHEMA, query_tower

TEST_FROM_US = 1_740_268_800_000_000  # 2025-02-23
DAY_US = 86_400_000_000
DIM = 16
CENTERS = 20
FIRST_ID = 1000


@dataclass(frozen=True)
class World:
    """Items and users that a seed made. vectors: ``[items, DIM]`` unit rows; taste: ``[users]`` centers."""

    vectors: np.ndarray
    center: np.ndarray
    taste: np.ndarray
    sequences: Grouped

    @property
    def items(self) -> int:
        return len(self.vectors)


def schema() -> DatasetSchema:
    item = [{"name": "item_id", "kind": "id"}, {"name": "category", "kind": "categorical"}]
    tables = {**SCHEMA["tables"], "events": {**SCHEMA["tables"]["events"], "value": "value"}}
    return parse_schema({**SCHEMA, "tables": tables, "features": {**SCHEMA["features"], "item": item}}, "test")


def make_world(items: int = 2000, users: int = 200, seed: int = 0) -> World:
    """Users like what is near a point of theirs, the frequent items most; 60 days of it, the last 7 are test."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(CENTERS, DIM))
    center = rng.integers(0, CENTERS, items)
    vectors = centers[center] + 0.7 * rng.normal(size=(items, DIM))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    weight = rng.pareto(3.0, items) + 0.1
    taste = rng.integers(0, CENTERS, users)
    points = vectors[[rng.choice(np.flatnonzero(center == value)) for value in taste]]
    chances = np.exp(14.0 * points @ vectors.T) * weight
    counts = rng.integers(3, 60, users)
    counts[: users // 20] = 0
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = np.zeros(offsets[-1], np.int32)
    times = TEST_FROM_US + rng.integers(-53 * DAY_US, 7 * DAY_US, offsets[-1])
    for user, (start, end) in enumerate(itertools.pairwise(offsets)):
        rows[start:end] = rng.choice(items, end - start, p=chances[user] / chances[user].sum())
        times[start:end].sort()
    splits = np.where(times >= TEST_FROM_US, 2, np.where(times >= TEST_FROM_US - 7 * DAY_US, 1, 0)).astype(np.int8)
    user_ids = pa.array([f"u{user:05d}" for user in range(users)])
    actions = rng.integers(0, 2, len(rows)).astype(np.int8)
    sequences = Grouped(
        user_ids, offsets, rows, times, actions, rng.lognormal(2, 1, len(rows)).astype(np.float32), splits
    )
    return World(vectors, center, taste, sequences)


def item_ids(items: int) -> list[int]:
    return [FIRST_ID + 3 * item for item in range(items)]


def catalogue(world: World, seed: int = 0) -> pa.Table:
    """The items table; the category goes with the center, prices and advertisers do not."""
    rng = np.random.default_rng(seed + 1)
    items = world.items
    first = [int(TEST_FROM_US - day * DAY_US) for day in rng.integers(1, 300, items)]
    return pa.table(
        {
            "item_id": item_ids(items),
            "advertiser_id": [f"adv{value}" for value in rng.zipf(1.4, items).clip(max=40)],
            "title": [f"{CATEGORIES[value % 5]} no. {item}" for item, value in enumerate(world.center)],
            "category": [CATEGORIES[value % 5] for value in world.center],
            "price": [
                None if item % 17 == 0 else round(float(p), 2) for item, p in enumerate(rng.lognormal(2, 1, items))
            ],
            "in_stock": rng.random(items) < 0.8,
            "first_seen": pa.array(first, pa.timestamp("us", tz="UTC")),
        }
    )


def vocabulary(world: World, items: int | None = None) -> Vocabulary:
    """What was fitted; with ``items`` only of the first ones."""
    n = world.items if items is None else items
    grouped = world.sequences
    frequency = np.bincount(grouped.rows[grouped.splits == 0], minlength=world.items)[:n].astype(np.int64)
    ids = pa.array(item_ids(n))
    return Vocabulary(
        user={
            "country": FittedCodes(pa.array(COUNTRIES), np.array([30, 20, 10])),
            "age": FittedNumbers("standard", 40.0, 12.0),
            "interests": FittedCodes(pa.array(CATEGORIES), np.arange(5, 0, -1)),
        },
        item={
            "item_id": FittedCodes(ids, frequency),
            "category": FittedCodes(pa.array(CATEGORIES), np.arange(5, 0, -1)),
        },
        item_ids=ids,
        item_frequency=frequency,
    )


def write_features(path: Path, world: World) -> Path:
    """Writes the features artifact (the parts that evaluation reads)."""
    user_ids = world.sequences.user_ids
    users = len(user_ids)
    with write_artifact(path, kind="features", inputs={"tables": "world"}) as draft:
        (draft.dir / "schema.json").write_text(schema().model_dump_json())
        vocabulary(world).save(draft.dir / "vocabulary")
        for folder in ("items", "users", "sequences"):
            (draft.dir / folder).mkdir()
        pq.write_table(catalogue(world), draft.dir / "items" / part_name(0, 1))
        people = {
            "user_id": user_ids,
            "country": [COUNTRIES[user % 3] for user in range(users)],
            "age": pa.array([None if user % 5 == 0 else 20 + user % 40 for user in range(users)], pa.int64()),
            "interests": pa.array([None] * users, pa.list_(pa.string())),
        }
        pq.write_table(pa.table(people), draft.dir / "users" / part_name(0, 1))
        write_part(world.sequences, draft.dir / "sequences" / part_name(0, 1))
        draft.facts.update(as_of_us=TEST_FROM_US)
    return path


def write_bundle(
    path: Path,
    world: World,
    *,
    tree: TreeSettings | None = None,
    items: int | None = None,
    vectors: np.ndarray | None = None,
    facts: dict[str, Any] | None = None,
) -> Path:
    """Writes a bundle of the world.

    Args:
        path: where.
        world: items and vectors.
        tree: None searches exactly.
        items: only the first ones: a stale index.
        vectors: others than the world's.
        facts: for the manifest.
    """
    n = world.items if items is None else items
    matrix = np.ascontiguousarray((world.vectors if vectors is None else vectors)[:n], np.float32)
    with write_artifact(path, kind="bundle", inputs={"items": str(n), "tree": str(tree)}) as draft:
        (draft.dir / "schema.json").write_text(schema().model_dump_json())
        vocabulary(world, n).save(draft.dir / "vocabulary")
        (draft.dir / "towers.json").write_text(f'{{"space": "world", "dim": {DIM}, "history": {HISTORY}}}')
        (draft.dir / "query_tower.tflite").write_bytes(query_tower(DIM))
        np.save(draft.dir / "vectors.npy", matrix)
        pq.write_table(catalogue(world).slice(0, n), draft.dir / "items.parquet")
        spec = SearcherSpec(engine="exact")
        if tree is not None:
            (draft.dir / "scann").mkdir()
            ScannSearcher.build(matrix, tree, threads=2).save(draft.dir / "scann")
            spec = SearcherSpec(engine="scann", tree=tree)
        (draft.dir / "searcher.json").write_text(spec.model_dump_json())
        probes = np.random.default_rng(0).normal(size=(2, DIM)).astype(np.float32)
        save_probes(Probes(({}, {}), probes, ExactSearcher(matrix).search_batch(probes, 10)), draft.dir / "probes")
        draft.facts.update(facts or {})
    return path


# The world's schema as a TOML; its tables are never read again.
SCHEMA_TOML = """
[dataset]
name = "served"
[tables.events]
path = "e.parquet"
user_id = "user_id"
item_id = "item_id"
time = "t"
action = "action"
value = "value"
[tables.items]
path = "i.parquet"
item_id = "item_id"
advertiser_id = "advertiser_id"
title = "title"
[tables.users]
path = "u.parquet"
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
[[features.user]]
name = "country"
kind = "categorical"
[[features.user]]
name = "age"
kind = "numeric"
[[features.user]]
name = "interests"
kind = "list"
max_length = 4
[history]
max_length = 12
[split]
valid_from = 2025-02-16
test_from = 2025-02-23
[evaluation]
category = "category"
price = "price"
first_seen = "first_seen"
slices = ["country", "in_stock"]
eligible = "in_stock"
max_per = {advertiser_id = 10}
resamples = 200
[gates]
panel = 50
"""
