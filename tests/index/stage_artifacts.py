"""Small artifacts of the stages before the index: features and a model that are read like real ones.

The item tower is a table of vectors by item code plus a part made of the category, so that a new item (code 1) gets a
vector from its content alone.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.encoding import encode_table
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.contracts.schema import DatasetSchema, parse_schema
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.reader import encoded_table, part_name, write_part
from tests.index.serving_bundles import CATEGORIES, COUNTRIES, SCHEMA, attributes, clustered, query_tower

TEST_FROM_US = 1_740_268_800_000_000  # 2025-02-23
DAY_US = 86_400_000_000


def schema() -> DatasetSchema:
    item = [{"name": "item_id", "kind": "id"}, {"name": "category", "kind": "categorical"}]
    return parse_schema({**SCHEMA, "features": {**SCHEMA["features"], "item": item}}, "test")


@dataclass(frozen=True)
class Stages:
    """Where the artifacts lie."""

    features: Path
    model: Path

    @property
    def root(self) -> Path:
        return self.features.parent


def write_stages(root: Path, *, items: int = 500, users: int = 120, dim: int = 16, seed: int = 0) -> Stages:
    """Writes ``features/`` and ``model/`` below ``root``."""
    stages = Stages(root / "features", root / "model")
    write_features(stages.features, items=items, users=users, dim=dim, seed=seed)
    write_model(stages.model, stages.features, dim=dim, seed=seed)
    return stages


def write_features(path: Path, *, items: int, users: int, dim: int, seed: int, cold: int = 0) -> None:
    """Writes features. The first ``cold`` users have no event before the test part; half of these have no features."""
    rng = np.random.default_rng(seed + 7)
    ids = pa.array([1000 + 3 * item for item in range(items)])
    frequency = rng.zipf(1.5, items).clip(max=5000).astype(np.int64)
    vocabulary = Vocabulary(
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
    described = schema()
    with write_artifact(path, kind="features", inputs={"tables": str(seed)}) as draft:
        (draft.dir / "schema.json").write_text(described.model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        catalogue = pa.table({"item_id": ids, **attributes(clustered(items, dim, seed), seed)})
        for folder in ("items", "items_encoded", "users", "users_encoded", "sequences"):
            (draft.dir / folder).mkdir()
        half = items // 2
        for part, piece in enumerate((catalogue.slice(0, half), catalogue.slice(half))):
            pq.write_table(piece, draft.dir / "items" / part_name(part, 2))
            encoded = encode_table(described.side("item"), vocabulary.item, piece, as_of_us=TEST_FROM_US)
            table = encoded_table(encoded, len(piece))
            pq.write_table(table, draft.dir / "items_encoded" / part_name(part, 2), row_group_size=100)
        people = pa.table(
            {
                "user_id": [f"u{user:04d}" for user in range(users)],
                "country": [None if user < cold // 2 else COUNTRIES[user % 3] for user in range(users)],
                "age": pa.array(
                    [None if user < cold // 2 or user % 5 == 0 else 20 + user % 40 for user in range(users)], pa.int64()
                ),
                "interests": pa.array([[CATEGORIES[user % 5]] if user >= cold // 2 else None for user in range(users)]),
            }
        )
        pq.write_table(people, draft.dir / "users" / part_name(0, 1))
        encoded = encode_table(described.side("user"), vocabulary.user, people, as_of_us=TEST_FROM_US)
        pq.write_table(encoded_table(encoded, users), draft.dir / "users_encoded" / part_name(0, 1))
        events = _events(people["user_id"].combine_chunks(), items, rng, cold)
        write_part(events, draft.dir / "sequences" / part_name(0, 1))
        draft.facts.update(as_of_us=TEST_FROM_US)


def _events(user_ids: pa.Array, items: int, rng: np.random.Generator, cold: int) -> Grouped:
    counts = rng.integers(1, 20, len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total = int(offsets[-1])
    times = TEST_FROM_US + rng.integers(-30 * DAY_US, 7 * DAY_US, total)
    times[: offsets[cold]] = TEST_FROM_US + (times[: offsets[cold]] - TEST_FROM_US) % (7 * DAY_US)
    for start, end in itertools.pairwise(offsets):
        times[start:end].sort()
    splits = np.where(times >= TEST_FROM_US, 2, np.where(times >= TEST_FROM_US - 7 * DAY_US, 1, 0)).astype(np.int8)
    return Grouped(
        user_ids,
        offsets,
        rng.integers(0, items, total).astype(np.int32),
        times,
        rng.integers(0, 2, total).astype(np.int8),
        np.ones(total, np.float32),
        splits,
    )


def write_model(path: Path, features: Path, *, dim: int, seed: int, broken: bool = False) -> None:
    """Writes the model; with ``broken`` its item tower gives NaN for the code 5."""
    import tensorflow as tf

    vocabulary = Vocabulary.load(features / "vocabulary")
    codes = vocabulary.item["item_id"]
    assert isinstance(codes, FittedCodes)
    rng = np.random.default_rng(seed)
    by_id = np.zeros((codes.size, dim), np.float32)
    by_id[2:] = 0.5 * clustered(codes.size - 2, dim, seed)
    if broken:
        by_id[5] = np.nan
    by_category = rng.normal(size=(len(CATEGORIES) + 2, dim)).astype(np.float32) / np.sqrt(dim)

    class Tower(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.by_id, self.by_category = tf.Variable(by_id), tf.Variable(by_category.astype(np.float32))

        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.int32, name="item_id"),
                tf.TensorSpec([None], tf.int32, name="category"),
            ]
        )
        def vectors(self, item_id, category):
            return {"vectors": tf.gather(self.by_id, item_id) + tf.gather(self.by_category, category)}

    tower = Tower()
    inputs = {"features": read_manifest(features).fingerprint}
    with write_artifact(path, kind="model", inputs=inputs, config={"seed": seed}) as draft:
        tf.saved_model.save(tower, str(draft.dir / "item_tower"), signatures={"serving_default": tower.vectors})
        (draft.dir / "query_tower.tflite").write_bytes(query_tower(dim))
        (draft.dir / "schema.json").write_text(schema().model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        towers = {"space": f"space-{seed}-{dim}", "dim": dim, "history": 12}
        (draft.dir / "towers.json").write_text(json.dumps(towers))


def item_vectors_by_hand(features: Path, *, dim: int, seed: int) -> np.ndarray:
    """What the item tower must give, computed without it: ``[items, dim]``."""
    vocabulary = Vocabulary.load(features / "vocabulary")
    items = len(vocabulary.item_ids)
    table = pa.concat_tables([pq.read_table(file) for file in sorted((features / "items").glob("*.parquet"))])
    rng = np.random.default_rng(seed)
    by_category = rng.normal(size=(len(CATEGORIES) + 2, dim)).astype(np.float32) / np.sqrt(dim)
    places = [CATEGORIES.index(name) + 2 for name in table["category"].to_pylist()]
    return 0.5 * clustered(items, dim, seed) + by_category[places]
