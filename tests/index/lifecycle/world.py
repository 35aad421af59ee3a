"""A small shop whose towers are tables: features, embeddings and bundles of any moment, made in a fraction of a second.

Training is left out, and so are the two conversions of towers that never change; everything from ``build`` on is real.
"""

from __future__ import annotations

import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.building import embedding_job
from index.building import job as build
from index.settings import GatesSettings, IndexSettings, RetrieverSettings, TreeSettings
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.contracts.schema import parse_schema
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.reader import encoded_table, part_name, write_part
from tests.index.lifecycle.model import Row, Towers
from tests.index.serving_bundles import HISTORY, query_tower, user_tables

DIM = 8
CATEGORIES = ("shoes", "bags", "lamps", "rugs")
# Ids that the towers have learned; an ad with another id gets the vector of unknown ids.
LEARNED = tuple(range(100, 130))
USERS = 24
TEST_FROM_US = 1_740_268_800_000_000
DAY_US = 86_400_000_000

SCHEMA: dict[str, Any] = {
    "dataset": {"name": "shop"},
    "ids": {"user": "string", "item": "int64"},
    "tables": {
        "events": {"path": "e.parquet", "user_id": "user_id", "item_id": "item_id", "time": "t", "action": "action"},
        "items": {
            "path": "i.parquet",
            "item_id": "item_id",
            "advertiser_id": "advertiser_id",
            "types": {"category": "string", "price": "float64", "stock": "int64", "advertiser_id": "string"},
        },
        "users": {"path": "u.parquet", "user_id": "user_id", "types": {"country": "string", "interests": "list"}},
    },
    "actions": {"click": 1.0, "purchase": 3.0},
    "features": {
        "item": [
            {"name": "item_id", "kind": "id"},
            {"name": "category", "kind": "categorical"},
            {"name": "price", "kind": "numeric", "scale": "log"},
            {"name": "sales", "kind": "count", "window_days": [7]},
        ],
        "user": [
            {"name": "country", "kind": "categorical"},
            {"name": "age", "kind": "numeric"},
            {"name": "interests", "kind": "list", "max_length": 4},
        ],
    },
    "history": {"max_length": HISTORY},
    "split": {"valid_from": "2025-02-16", "test_from": "2025-02-23"},
}
COLUMNS = pa.schema(
    [
        ("item_id", pa.int64()),
        ("advertiser_id", pa.string()),
        ("category", pa.string()),
        ("price", pa.float64()),
        ("stock", pa.int64()),
    ]
)
GATES = GatesSettings(
    ann_recall_at_100=None,
    recall_drop=None,
    items_change=None,
    reachable_items=None,
    reachable_advertisers=None,
    norm_change=None,
    churn=None,
    panel=10,
)


def _weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "by_id": rng.normal(size=(len(LEARNED) + 2, DIM)).astype(np.float32),
        "by_category": (0.5 * rng.normal(size=(len(CATEGORIES) + 2, DIM))).astype(np.float32),
        "price": (0.1 * rng.normal(size=(2, DIM))).astype(np.float32),
        "sales": (0.1 * rng.normal(size=(1, DIM))).astype(np.float32),
    }


WEIGHTS = _weights()
TOWERS = Towers(
    by_id={item: WEIGHTS["by_id"][2 + place] for place, item in enumerate(LEARNED)},
    unknown_id=WEIGHTS["by_id"][1],
    by_category={name: WEIGHTS["by_category"][2 + place] for place, name in enumerate(CATEGORIES)},
    no_category=WEIGHTS["by_category"][0],
    unknown_category=WEIGHTS["by_category"][1],
    price=WEIGHTS["price"].astype(np.float64),
    sales=WEIGHTS["sales"][0].astype(np.float64),
    no_country=user_tables(DIM)[0][0].astype(np.float64),
)


@functools.cache
def _towers() -> Path:
    """A folder with the item tower as SavedModel and for LiteRT; it lasts as long as the process."""
    import tensorflow as tf

    class Tower(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = {name: tf.Variable(value) for name, value in WEIGHTS.items()}

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.int32, name="item_id"),
                tf.TensorSpec([None], tf.int32, name="category"),
                tf.TensorSpec([None, 2], tf.float32, name="price"),
                tf.TensorSpec([None, 1], tf.float32, name="sales"),
            ]
        )
        def vectors(self, item_id, category, price, sales):
            by_code = tf.gather(self.weights["by_id"], item_id) + tf.gather(self.weights["by_category"], category)
            return {"vectors": by_code + price @ self.weights["price"] + sales @ self.weights["sales"]}

    folder = Path(tempfile.mkdtemp(prefix="lifecycle-"))
    tower = Tower()
    tf.saved_model.save(tower, str(folder / "item_tower"), signatures={"serving_default": tower.vectors})
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "item_tower"), signature_keys=["serving_default"])
    (folder / "item_tower.tflite").write_bytes(converter.convert())
    return folder


def item_vectors(tables: dict[int, Row]) -> np.ndarray:
    """``[items, dim] float32`` by hand, in row order."""
    return np.stack([TOWERS.item(item, tables[item]) for item in sorted(tables)]).astype(np.float32)


def write_night(
    root: Path, tables: dict[int, Row], *, delta_sequence: int, engine: str, new_items_share: float, night: int
) -> Path:
    """Writes features, model, embeddings and a bundle of the tables below ``root``; returns the bundle."""
    vocabulary = _vocabulary(tables)
    schema = parse_schema(SCHEMA, "test")
    features = _features(root / "features", tables, vocabulary, delta_sequence, night)
    inputs = {"features": read_manifest(features).fingerprint}
    with write_artifact(root / "model", kind="model", inputs=inputs) as draft:
        shutil.copytree(_towers() / "item_tower", draft.dir / "item_tower")
        (draft.dir / "query_tower.tflite").write_bytes(query_tower(DIM))
        (draft.dir / "schema.json").write_text(schema.model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        (draft.dir / "towers.json").write_text(json.dumps({"space": "tables", "dim": DIM, "history": HISTORY}))
    inputs["model"] = read_manifest(root / "model").fingerprint
    kind, version = embedding_job.KIND, embedding_job.FORMAT_VERSION
    with write_artifact(root / "embeddings", kind=kind, format_version=version, inputs=inputs) as draft:
        np.save(draft.dir / "vectors.npy", item_vectors(tables))
    # Every leaf is searched and every row scored again: what a tree finds is exact, and can be compared.
    tree = TreeSettings(leaves=4, leaves_to_search=4, reorder=1000, training_sample=len(tables), projection=DIM // 2)
    settings = IndexSettings(
        attributes=("category", "price", "stock", "advertiser_id"),
        value="price",
        engine=engine,  # type: ignore[arg-type]
        tree=tree if engine == "scann" else None,
        tuning_queries=10,
    )
    copied = mock.patch.object(build, "convert", lambda _, out, *__: shutil.copy(_towers() / "item_tower.tflite", out))
    with copied:
        retriever = RetrieverSettings(new_items_share=new_items_share)
        return build.run(root / "embeddings", root / "model", features, settings, root / "bundle", retriever=retriever)


def _vocabulary(tables: dict[int, Row]) -> Vocabulary:
    ids = pa.array(sorted(tables), pa.int64())
    return Vocabulary(
        user={
            "country": FittedCodes(pa.array(["US", "CA", "DE"]), np.array([30, 20, 10])),
            "age": FittedNumbers("standard", 40.0, 12.0),
            "interests": FittedCodes(pa.array(["a", "b", "c", "d", "e"]), np.arange(5, 0, -1)),
        },
        item={
            "item_id": FittedCodes(pa.array(LEARNED, pa.int64()), np.full(len(LEARNED), 9)),
            "category": FittedCodes(pa.array(CATEGORIES), np.arange(len(CATEGORIES), 0, -1)),
            "price": FittedNumbers("log", 2.0, 0.5),
            "sales": FittedNumbers("log"),
        },
        item_ids=ids,
        item_frequency=np.array([tables[item]["frequency"] for item in ids.to_pylist()], np.int64),
    )


def catalogue(tables: dict[int, Row]) -> pa.Table:
    """The items table, as the advertisers' systems write it."""
    rows = [{"item_id": item, **tables[item]} for item in sorted(tables)]
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def _features(path: Path, tables: dict[int, Row], vocabulary: Vocabulary, delta_sequence: int, night: int) -> Path:
    schema = parse_schema(SCHEMA, "test")
    items = catalogue(tables)
    sales = pa.array([tables[item].get("sales_7d") or 0 for item in sorted(tables)], pa.int64())
    items = items.append_column("sales_7d", sales)
    rng = np.random.default_rng(night)
    with write_artifact(path, kind="features", inputs={"tables": f"{night}-{delta_sequence}"}) as draft:
        (draft.dir / "schema.json").write_text(schema.model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        for folder in ("items", "items_encoded", "users", "users_encoded", "sequences"):
            (draft.dir / folder).mkdir()
        pq.write_table(items, draft.dir / "items" / part_name(0, 1))
        encoded = encode_table(schema.side("item"), vocabulary.item, items, as_of_us=TEST_FROM_US)
        pq.write_table(encoded_table(encoded, len(items)), draft.dir / "items_encoded" / part_name(0, 1))
        people = pa.table(
            {
                "user_id": [f"u{user:03d}" for user in range(USERS)],
                "country": ["US"] * USERS,
                "age": pa.array([30.0] * USERS),
                "interests": pa.array([["a"]] * USERS),
            }
        )
        pq.write_table(people, draft.dir / "users" / part_name(0, 1))
        encoded = encode_table(schema.side("user"), vocabulary.user, people, as_of_us=TEST_FROM_US)
        pq.write_table(encoded_table(encoded, USERS), draft.dir / "users_encoded" / part_name(0, 1))
        write_part(_events(people["user_id"].combine_chunks(), tables, rng), draft.dir / "sequences" / part_name(0, 1))
        draft.facts.update(as_of_us=TEST_FROM_US, delta_sequence=delta_sequence)
    return path


def _events(user_ids: pa.Array, tables: dict[int, Row], rng: np.random.Generator) -> Grouped:
    """Each item's train events, spread over the users, and one event of each user in the test part."""
    users = len(user_ids)
    train = np.repeat(np.arange(len(tables)), [tables[item]["frequency"] for item in sorted(tables)])
    owners = np.concatenate([np.arange(len(train)) % users, np.arange(users)])
    days = np.concatenate([np.full(len(train), -10), np.full(users, 2)])
    rows = np.concatenate([train, rng.integers(0, len(tables), users)])
    order = np.lexsort((days, owners))
    days, total = days[order], len(days)
    return Grouped(
        user_ids,
        np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=users))]).astype(np.int64),
        rows[order].astype(np.int32),
        TEST_FROM_US + days * DAY_US,
        np.zeros(total, np.int8),
        np.ones(total, np.float32),
        np.where(days > 0, 2, 0).astype(np.int8),
    )
