"""A catalogue of clustered unit vectors with attributes, users with tastes, and a bundle made of them.

Writes a bundle that the retriever opens like any other. Everything is drawn from one seed.
"""

from __future__ import annotations

import tempfile
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
from index.search.value_tree import ValueSpec, augmented, save_value
from index.settings import TreeSettings
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.schema import parse_schema
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary

HISTORY = 50
CATEGORICAL = tuple(f"context_{number}" for number in range(6))
NUMERIC = tuple(f"number_{number}" for number in range(4))
VALUES = tuple(f"value_{number}" for number in range(100))
SELECTIVITIES = (0.5, 0.1, 0.01, 0.001, 0.0001)
ADVERTISERS = 20_000


@dataclass(frozen=True)
class World:
    """``vectors [items, dim] float32``, ``cluster [items] int32``, and the attributes as columns in row order."""

    vectors: np.ndarray
    cluster: np.ndarray
    attributes: dict[str, np.ndarray]


def make_world(items: int, dim: int, seed: int = 0) -> World:
    """Unit vectors in 4,000 clusters under 200 topics; attributes drawn at random and along the vectors."""
    rng = np.random.default_rng(seed)
    clusters = max(8, min(4000, items // 50))
    topics = rng.standard_normal((200, dim))
    centers = _unit(_unit(topics)[rng.integers(0, 200, clusters)] + 0.7 * _unit(rng.standard_normal((clusters, dim))))
    sizes = rng.zipf(1.5, clusters) % 200 + 20
    cluster = rng.choice(clusters, items, p=sizes / sizes.sum()).astype(np.int32)
    noise = rng.standard_normal((items, dim), dtype=np.float32) * np.float32(0.6 / np.sqrt(dim))
    vectors = _unit(centers.astype(np.float32)[cluster] + noise).astype(np.float32)
    along = vectors @ rng.standard_normal(dim).astype(np.float32)
    rank = np.empty(items)
    rank[np.argsort(along)] = (np.arange(items) + 0.5) / items
    attributes = {
        "chance": rng.random(items),
        "direction": rank,
        "advertiser_id": (rng.zipf(1.2, items) % ADVERTISERS).astype(np.int64),
        "bid": rng.lognormal(0.0, 0.5, items),
    }
    return World(vectors, cluster, attributes)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_records(world: World, users: int, seed: int = 1) -> list[dict[str, Any]]:
    """Raw records: 50 history ids from three clusters each, six categories, four numbers."""
    rng = np.random.default_rng(seed)
    order = np.argsort(world.cluster, kind="stable")
    sizes = np.bincount(world.cluster)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    records = []
    for _ in range(users):
        tastes = rng.choice(len(sizes), 3, p=sizes / sizes.sum())
        counts = rng.multinomial(HISTORY, rng.dirichlet([1, 1, 1]))
        rows = np.concatenate(
            [order[rng.integers(offsets[t], offsets[t + 1], n)] for t, n in zip(tastes, counts, strict=True)]
        )
        rng.shuffle(rows)
        record: dict[str, Any] = {"history": item_ids(rows).tolist()}
        record |= {name: VALUES[rng.integers(0, len(VALUES))] for name in CATEGORICAL}
        record |= {name: float(rng.normal()) for name in NUMERIC}
        records.append(record)
    return records


def tower_inputs(records: list[dict[str, Any]], vectors: np.ndarray) -> dict[str, np.ndarray]:
    """The tower's inputs for a batch of records, encoded by hand: codes follow two that are reserved."""
    code_of = {value: place + 2 for place, value in enumerate(VALUES)}
    rows = (np.array([record["history"] for record in records]) - 1_000_003) // 37
    inputs = {"history": vectors[rows], "history_mask": np.ones(rows.shape, np.float32)}
    inputs |= {name: np.array([code_of[record[name]] for record in records], np.int32) for name in CATEGORICAL}
    numbers = {name: np.array([[record[name], 1.0] for record in records], np.float32) for name in NUMERIC}
    return inputs | numbers


def item_ids(rows: np.ndarray) -> np.ndarray:
    """Ids of rows: ascending, with gaps."""
    return rows.astype(np.int64) * 37 + 1_000_003


def schema_of() -> Any:
    """The schema of the world's records."""
    user: list[dict[str, str]] = [{"name": name, "kind": "categorical"} for name in CATEGORICAL]
    user += [{"name": name, "kind": "numeric"} for name in NUMERIC]
    return parse_schema(
        {
            "dataset": {"name": "world"},
            "tables": {
                "events": {"path": "e", "user_id": "user_id", "item_id": "item_id", "time": "t"},
                "items": {"path": "i", "item_id": "item_id"},
                "users": {"path": "u", "user_id": "user_id"},
            },
            "features": {"user": user},
            "split": {"valid_from": "2025-01-01", "test_from": "2025-01-02"},
        },
        "world",
    )


def make_tower(dim: int, seed: int = 2) -> Any:
    """A ``tf.Module``: the history's mean, corrected by a small network over it and the features, of unit length."""
    import tensorflow as tf

    rng = np.random.default_rng(seed)

    def weights(*shape: int, scale: float) -> Any:
        return tf.Variable(rng.normal(scale=scale, size=shape).astype(np.float32))

    class Tower(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tables = [weights(len(VALUES) + 2, 8, scale=1.0) for _ in CATEGORICAL]
            inputs = dim + 8 * len(CATEGORICAL) + 2 * len(NUMERIC)
            self.first = weights(inputs, 128, scale=inputs**-0.5)
            self.second = weights(128, dim, scale=0.25 * 128**-0.5 * dim**-0.5)

        def vectors(self, inputs: dict[str, Any]) -> Any:
            mask = inputs["history_mask"]
            pooled = tf.reduce_sum(inputs["history"] * mask[..., None], 1)
            pooled = tf.math.l2_normalize(pooled / (tf.reduce_sum(mask, 1, keepdims=True) + 1e-6), 1)
            coded = [tf.gather(t, inputs[name]) for t, name in zip(self.tables, CATEGORICAL, strict=True)]
            joined = tf.concat([pooled, *coded, *(inputs[name] for name in NUMERIC)], 1)
            return tf.math.l2_normalize(pooled + tf.nn.relu(joined @ self.first) @ self.second, 1)

        def specs(self, batch: int | None) -> dict[str, Any]:
            named = {
                "history": tf.TensorSpec([batch, HISTORY, dim], tf.float32),
                "history_mask": tf.TensorSpec([batch, HISTORY], tf.float32),
            }
            named |= {name: tf.TensorSpec([batch], tf.int32) for name in CATEGORICAL}
            return named | {name: tf.TensorSpec([batch, 2], tf.float32) for name in NUMERIC}

    return Tower()


def lite_tower(tower: Any) -> bytes:
    """The tower as LiteRT, batch 1."""
    import tensorflow as tf

    served = tf.function(lambda **inputs: {"vector": tower.vectors(inputs)})
    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in tower.specs(1).items()}
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tower, folder, signatures={"serving_default": served.get_concrete_function(**specs)})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def vocabulary_of(items: int) -> Vocabulary:
    """The vocabulary of the world: 100 values per category."""
    user: dict[str, Any] = {name: FittedCodes(pa.array(VALUES), np.arange(len(VALUES), 0, -1)) for name in CATEGORICAL}
    user |= {name: FittedNumbers("standard", 0.0, 1.0) for name in NUMERIC}
    ids = pa.array(item_ids(np.arange(items)))
    frequency = np.random.default_rng(3).zipf(1.5, items).clip(max=100_000).astype(np.int64)
    return Vocabulary(user, {"item_id": FittedCodes(pa.array([], pa.int64()), np.zeros(0, np.int64))}, ids, frequency)


def write_bundle(
    path: Path, world: World, tree: TreeSettings, *, tower: bytes, value_scale: float | None = None, tag: str = "world"
) -> Path:
    """Writes the bundle; with ``value_scale`` the tree has a value dimension over ``bid``."""
    items, dim = world.vectors.shape
    with write_artifact(path, kind="bundle", inputs={"tag": tag}) as draft:
        (draft.dir / "schema.json").write_text(schema_of().model_dump_json())
        vocabulary_of(items).save(draft.dir / "vocabulary")
        (draft.dir / "towers.json").write_text(f'{{"space": "{tag}", "dim": {dim}, "history": {HISTORY}}}')
        (draft.dir / "query_tower.tflite").write_bytes(tower)
        np.save(draft.dir / "vectors.npy", world.vectors)
        pq.write_table(
            pa.table({"item_id": item_ids(np.arange(items)), **world.attributes}), draft.dir / "items.parquet"
        )
        built = world.vectors
        if value_scale is not None:
            logs = np.log(world.attributes["bid"]).astype(np.float32)
            spec = ValueSpec(attribute="bid", scale=value_scale, center=float(logs.mean()))
            built = augmented(world.vectors, logs, spec.scale, spec.center)
            save_value(draft.dir, spec, logs, built)
        (draft.dir / "scann").mkdir()
        ScannSearcher.build(built, tree).save(draft.dir / "scann")
        (draft.dir / "searcher.json").write_text(SearcherSpec(engine="scann", tree=tree).model_dump_json())
        queries = world.vectors[:2]
        save_probes(
            Probes(({}, {}), queries, ExactSearcher(world.vectors).search_batch(queries, 10)), draft.dir / "probes"
        )
        draft.facts.update(items=items, dim=dim)
    return path
