"""A small world of ads with a feature of every kind, built by the real jobs around small towers made by hand.

The item tower is a fixed linear map of all encoded features, so that every feature moves the vector; the query tower is
the mean of the history.
"""

from __future__ import annotations

import datetime
import functools
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.building import embedding_job as embed
from index.building import job as build
from index.registry.bundle import Bundle
from index.settings import IndexSettings, RetrieverSettings, TreeSettings
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.contracts.schema import DatasetSchema, parse_schema, resolve_paths
from pipelines.contracts.vocabulary import FittedCodes, Vocabulary
from pipelines.features import job as features_job
from pipelines.sequences.reader import load_items

ITEMS, DIM, HISTORY = 48, 8, 10
UTC = datetime.UTC
BRANDS = ("acme", "bolt", "cord", None)
ATTRIBUTES = ("shop", "title", "brand", "bid", "in_stock")
# The columns of the items table that a feed may set.
COLUMNS = ("shop", "title", "brand", "tags", "price", "bid", "listed", "picture", "in_stock")
FEATURES = [
    {"name": "ad", "kind": "id"},
    {"name": "brand", "kind": "categorical"},
    {"name": "words", "kind": "text", "column": "title", "min_frequency": 1},
    {"name": "tags", "kind": "list"},
    {"name": "price", "kind": "numeric", "scale": "log"},
    {"name": "listed", "kind": "time_since"},
    {"name": "picture", "kind": "embedding", "dim": 3},
    {"name": "seen", "kind": "count", "window_days": [7, 28]},
]
SCHEMA: dict[str, Any] = {
    "dataset": {"name": "world"},
    "tables": {
        "events": {"path": "events.parquet", "user_id": "user", "item_id": "ad", "time": "at"},
        "items": {"path": "items.parquet", "item_id": "ad", "advertiser_id": "shop", "title": "title"},
    },
    "features": {"item": FEATURES},
    "history": {"max_length": HISTORY},
    "split": {"valid_from": "2026-01-20", "test_from": "2026-01-25"},
}


def ad(item: int, seed: int) -> dict[str, Any]:
    """A row of the items table; every column may be missing."""
    rng = np.random.default_rng([item, seed])
    some = {
        "shop": int(rng.integers(1, 6)),
        "title": f"{rng.choice(['red', 'blue'])} {rng.choice(['shoe', 'lamp'])} no. {int(rng.integers(3))}",
        "brand": BRANDS[int(rng.integers(4))],
        "tags": [f"t{int(tag)}" for tag in rng.integers(0, 4, int(rng.integers(0, 4)))],
        "price": float(rng.integers(1, 400)) / 4,
        "bid": float(rng.integers(1, 90)) / 8,
        "listed": datetime.datetime(2025, 6, int(rng.integers(1, 28)), 8, tzinfo=UTC),
        "picture": [float(number) / 8 for number in rng.integers(-8, 9, 3)],
        "in_stock": bool(rng.integers(2)),
    }
    missing = rng.random(len(some)) < 0.15
    cells = {name: None if gone else value for (name, value), gone in zip(some.items(), missing, strict=True)}
    if cells["picture"] == [0.0, 0.0, 0.0]:
        cells["picture"] = None
    return {"ad": item, **cells}


ITEM_TYPES = pa.schema(
    [
        ("ad", pa.int64()),
        ("shop", pa.int64()),
        ("title", pa.string()),
        ("brand", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("price", pa.float64()),
        ("bid", pa.float64()),
        ("listed", pa.timestamp("us", tz="UTC")),
        ("picture", pa.list_(pa.float32())),
        ("in_stock", pa.bool_()),
    ]
)


def table_of(rows: list[dict[str, Any]], columns: tuple[str, ...] = COLUMNS) -> pa.Table:
    """Rows as a table of these columns and the id, in the types of the items table."""
    schema = pa.schema([field for field in ITEM_TYPES if field.name in ("ad", *columns)])
    return pa.Table.from_pylist(rows, schema=schema)


@dataclass(frozen=True)
class World:
    """Where the artifacts are."""

    root: Path

    @property
    def features(self) -> Path:
        return self.root / "features"

    @functools.cached_property
    def bundle(self) -> Bundle:
        return Bundle.open(self.root / "bundle")

    def bundle_with(
        self,
        name: str,
        settings: IndexSettings,
        retriever: RetrieverSettings | None = None,
        backtest: Path | None = None,
    ) -> Path:
        """Another bundle of the same towers."""
        folders = self.root / "embeddings", self.root / "model", self.features
        return build.run(*folders, settings, self.root / name, retriever=retriever, backtest=backtest)

    def vectors(self, rows: list[dict[str, Any]]) -> np.ndarray:
        """The item tower by NumPy: ``[rows, dim]`` for raw rows with their counts."""
        schema, vocabulary = self.bundle.schema, self.bundle.vocabulary
        fields = [*ITEM_TYPES, pa.field("seen_7d", pa.int64()), pa.field("seen_28d", pa.int64())]
        table = pa.Table.from_pylist(rows, schema=pa.schema(fields))
        as_of_us = int(read_manifest(self.features).facts["as_of_us"])
        encoded = encode_table(schema.side("item"), vocabulary.item, table, as_of_us=as_of_us)
        made = np.zeros((len(rows), DIM))
        for name, weight in weights(schema, vocabulary).items():
            made += embedded(encoded[name], weight)
        return made


def embedded(values: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Codes as the sum of their rows (code 0 is none), numbers by a matrix."""
    if values.dtype == np.int32:
        codes = values.reshape(len(values), -1)
        return np.asarray((weight[codes] * (codes > 0)[..., None]).sum(axis=1))
    return np.asarray(values.astype(np.float64) @ weight)


def weights(schema: DatasetSchema, vocabulary: Vocabulary) -> dict[str, np.ndarray]:
    """The tower's weights by feature."""
    rng = np.random.default_rng(9)
    made: dict[str, np.ndarray] = {}
    for feature in schema.side("item"):
        fitted = vocabulary.item.get(feature.name)
        rows = fitted.size if isinstance(fitted, FittedCodes) else feature.input_shape[0]
        made[feature.name] = rng.normal(scale=0.5, size=(rows, DIM)).astype(np.float32)
    return made


def write_world(root: Path) -> World:
    """Tables, features, model, embeddings and a bundle with exact search and a value."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(3)
    ids = [10 * item for item in range(1, ITEMS + 1)]
    pq.write_table(table_of([ad(item, 0) for item in ids]), root / "items.parquet")
    popular = (ITEMS * rng.random(600) ** 2).astype(int)
    days = [datetime.datetime(2026, 1, 1 + event % 28, tzinfo=UTC) for event in range(600)]
    events = {"user": [f"u{event % 40}" for event in range(600)], "ad": [ids[place] for place in popular], "at": days}
    pq.write_table(pa.table(events), root / "events.parquet")
    schema = parse_schema(resolve_paths(SCHEMA, root), "test")
    features_job.run(schema, root / "features")
    _write_model(root / "model", root / "features")
    embed.run(root / "model", root / "features", root / "embeddings")
    world = World(root)
    world.bundle_with("bundle", IndexSettings(attributes=ATTRIBUTES, value="bid", tuning_queries=10, engine="exact"))
    return world


def tree_settings() -> IndexSettings:
    """A tree over the value dimension that looks at everything, so that it answers as exact search does."""
    tree = TreeSettings(leaves=4, leaves_to_search=4, reorder=200, training_sample=ITEMS, projection=2)
    return IndexSettings(attributes=ATTRIBUTES, value="bid", tuning_queries=10, engine="scann", tree=tree)


def _write_model(path: Path, features: Path) -> None:
    import tensorflow as tf

    schema = DatasetSchema.model_validate_json((features / "schema.json").read_text())
    vocabulary = Vocabulary.load(features / "vocabulary")
    constants = {name: tf.constant(weight) for name, weight in weights(schema, vocabulary).items()}
    signature = []
    for feature in schema.side("item"):
        shape = [None] if feature.input_shape == () else [None, *feature.input_shape]
        signature.append(tf.TensorSpec(shape, tf.as_dtype(feature.input_dtype), name=feature.name))
    names = [feature.name for feature in schema.side("item")]

    class ItemTower(tf.Module):
        @tf.function(input_signature=signature)
        def vectors(self, *values):
            made = 0.0
            for name, value in zip(names, values, strict=True):
                if value.dtype == tf.int32:
                    codes = value[:, None] if len(value.shape) == 1 else value
                    known = tf.cast(codes > 0, tf.float32)[..., None]
                    made += tf.reduce_sum(tf.gather(constants[name], codes) * known, 1)
                else:
                    made += tf.matmul(value, constants[name])
            return {"vectors": made}

    tower = ItemTower()
    inputs = {"features": read_manifest(features).fingerprint}
    with write_artifact(path, kind="model", inputs=inputs) as draft:
        tf.saved_model.save(tower, str(draft.dir / "item_tower"), signatures={"serving_default": tower.vectors})
        (draft.dir / "query_tower.tflite").write_bytes(query_tower())
        (draft.dir / "schema.json").write_text(schema.model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        (draft.dir / "towers.json").write_text(json.dumps({"space": "world", "dim": DIM, "history": HISTORY}))


@functools.cache
def query_tower() -> bytes:
    """A LiteRT tower: the mean of the history."""
    import tensorflow as tf

    class Tower(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([1, HISTORY, DIM], tf.float32, name="history"),
                tf.TensorSpec([1, HISTORY], tf.float32, name="history_mask"),
            ]
        )
        def vector(self, history, history_mask):
            pooled = tf.reduce_sum(history * history_mask[..., None], 1)
            return {"vector": pooled / (tf.reduce_sum(history_mask, 1, keepdims=True) + 1e-6)}

    tower = Tower()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tower, folder, signatures={"serving_default": tower.vector})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def first_rows(world: World) -> dict[int, dict[str, Any]]:
    """The ads as the features have them, counts included, by id."""
    rows: list[dict[str, Any]] = load_items(world.features).to_pylist()
    return {row["ad"]: row for row in rows}
