"""Small bundles for the retriever's tests: real files, a real LiteRT tower, clustered random vectors."""

from __future__ import annotations

import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.registry.bundle import Probes, save_probes
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import ExactSearcher
from index.search.scann_tree import ScannSearcher
from index.search.value_tree import ValueSpec, augmented, log_values_of, save_value
from index.settings import RetrieverSettings, TreeSettings
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.contracts.schema import parse_schema
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers, Vocabulary

HISTORY = 12
ADVERTISERS = 40
CATEGORIES = ("shoes", "bags", "lamps", "rugs", "toys")
COUNTRIES = ("US", "CA", "DE")

SCHEMA: dict[str, Any] = {
    "dataset": {"name": "served"},
    "tables": {
        "events": {"path": "e.parquet", "user_id": "user_id", "item_id": "item_id", "time": "t", "action": "action"},
        "items": {"path": "i.parquet", "item_id": "item_id", "advertiser_id": "advertiser_id", "title": "title"},
        "users": {"path": "u.parquet", "user_id": "user_id"},
    },
    "actions": {"click": 1.0, "purchase": 3.0},
    "features": {
        "item": [{"name": "item_id", "kind": "id"}],
        "user": [
            {"name": "country", "kind": "categorical"},
            {"name": "age", "kind": "numeric"},
            {"name": "interests", "kind": "list", "max_length": 4},
        ],
    },
    "history": {"max_length": HISTORY},
    "split": {"valid_from": "2025-02-16", "test_from": "2025-02-23"},
}


def user_tables(dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Country, interest and age weights of the test's tower: ``[codes, dim]`` twice and ``[2, dim]``."""
    rng = np.random.default_rng(dim)
    return tuple(rng.normal(scale=0.2, size=(rows, dim)).astype(np.float32) for rows in (5, 7, 2))  # type: ignore[return-value]


@functools.cache
def query_tower(dim: int) -> bytes:
    """A LiteRT tower: the history's mean, weighted exp(-age / 30 days) · (1 + action), plus features."""
    import tensorflow as tf

    country_rows, interest_rows, age_rows = (tf.constant(table) for table in user_tables(dim))

    class Tower(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([1, HISTORY, dim], tf.float32, name="history"),
                tf.TensorSpec([1, HISTORY], tf.float32, name="history_mask"),
                tf.TensorSpec([1, HISTORY], tf.float32, name="history_age_days"),
                tf.TensorSpec([1, HISTORY], tf.int32, name="history_action"),
                tf.TensorSpec([1], tf.int32, name="country"),
                tf.TensorSpec([1, 2], tf.float32, name="age"),
                tf.TensorSpec([1, 4], tf.int32, name="interests"),
            ]
        )
        def vector(self, history, history_mask, history_age_days, history_action, country, age, interests):
            weight = history_mask * tf.exp(-history_age_days / 30.0) * (1.0 + tf.cast(history_action, tf.float32))
            pooled = tf.reduce_sum(history * weight[..., None], 1) / (tf.reduce_sum(weight, 1, keepdims=True) + 1e-6)
            known = tf.cast(interests > 0, tf.float32)[..., None]
            features = tf.gather(country_rows, country) + tf.matmul(age, age_rows)
            features += tf.reduce_sum(tf.gather(interest_rows, interests) * known, 1)
            return {"vector": pooled + features}

    tower = Tower()
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(tower, folder, signatures={"serving_default": tower.vector})
        return bytes(tf.lite.TFLiteConverter.from_saved_model(folder).convert())


def clustered(items: int, dim: int, seed: int) -> np.ndarray:
    """``[items, dim] float32`` unit rows around 20 centers."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(20, dim))
    vectors = centers[rng.integers(0, 20, items)] + 0.5 * rng.normal(size=(items, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def attributes(vectors: np.ndarray, seed: int) -> dict[str, Any]:
    """Attributes of the items; ``category`` goes with the vectors, the others do not. Some prices are null."""
    rng = np.random.default_rng(seed + 1)
    items = len(vectors)
    nearest = (vectors @ rng.normal(size=(vectors.shape[1], len(CATEGORIES)))).argmax(axis=1)
    prices = rng.lognormal(2, 1, items).round(2)
    return {
        "advertiser_id": [f"adv{value}" for value in rng.zipf(1.4, items).clip(max=ADVERTISERS)],
        "title": [f"Item no. {item}" for item in range(items)],
        "category": [CATEGORIES[value] for value in nearest],
        "price": [None if item % 17 == 0 else float(price) for item, price in enumerate(prices)],
        "in_stock": (rng.random(items) < 0.8).tolist(),
        "stock": rng.integers(0, 1000, items).tolist(),
    }


def write_bundle(
    path: Path,
    *,
    items: int = 3000,
    dim: int = 16,
    seed: int = 0,
    leaves: int | None = None,
    text_ids: bool = False,
    users: bool | pa.Table = True,
    value_scale: float | None = None,
    retriever: RetrieverSettings | None = None,
    new: int = 0,
) -> Path:
    """Writes a bundle; with ``leaves`` it is searched by ScaNN, else exactly. Item ids are 1000, 1003, 1006 ...

    With ``value_scale`` it has a value dimension over ``price``. The last ``new`` items have no event in train.
    """
    vectors = clustered(items, dim, seed)
    ids = [f"ad{item:06d}" for item in range(items)] if text_ids else [1000 + 3 * item for item in range(items)]
    frequency = np.random.default_rng(seed + 2).zipf(1.5, items).clip(max=5000).astype(np.int64)
    frequency[items - new :] = 0
    vocabulary = Vocabulary(
        user={
            "country": FittedCodes(pa.array(COUNTRIES), np.array([30, 20, 10])),
            "age": FittedNumbers("standard", 40.0, 12.0),
            "interests": FittedCodes(pa.array(CATEGORIES), np.arange(5, 0, -1)),
        },
        item={"item_id": FittedCodes(pa.array(ids), frequency)},
        item_ids=pa.array(ids),
        item_frequency=frequency,
    )
    schema = parse_schema(SCHEMA, "test")
    space = f"space-{seed}-{dim}"
    with write_artifact(path, kind="bundle", inputs={"seed": str(seed)}) as draft:
        (draft.dir / "schema.json").write_text(schema.model_dump_json())
        vocabulary.save(draft.dir / "vocabulary")
        (draft.dir / "towers.json").write_text(f'{{"space": "{space}", "dim": {dim}, "history": {HISTORY}}}')
        (draft.dir / "query_tower.tflite").write_bytes(query_tower(dim))
        np.save(draft.dir / "vectors.npy", vectors)
        pq.write_table(pa.table({"item_id": ids, **attributes(vectors, seed)}), draft.dir / "items.parquet")
        if users is not False:
            table = users_table(ids) if users is True else users
            pq.write_table(table, draft.dir / "users.parquet")
        built = vectors
        if value_scale is not None:
            logs = log_values_of(pa.chunked_array([pa.array(attributes(vectors, seed)["price"])]), "price")
            value = ValueSpec(attribute="price", scale=value_scale, center=float(logs.mean()))
            built = augmented(vectors, logs, value.scale, value.center)
            save_value(draft.dir, value, logs, built)
        if retriever is not None:
            (draft.dir / "retriever.json").write_text(retriever.model_dump_json())
        spec = SearcherSpec(engine="exact")
        if leaves is not None:
            tree = TreeSettings(leaves=leaves, leaves_to_search=max(1, leaves * 3 // 4), reorder=min(400, items))
            (draft.dir / "scann").mkdir()
            ScannSearcher.build(built, tree, threads=2).save(draft.dir / "scann")
            spec = SearcherSpec(engine="scann", tree=tree)
        (draft.dir / "searcher.json").write_text(spec.model_dump_json())
        probes = np.random.default_rng(seed).normal(size=(2, dim)).astype(np.float32)
        answers = ExactSearcher(vectors).search_batch(probes, min(10, items))
        save_probes(Probes(({}, {}), probes, answers), draft.dir / "probes")
        draft.facts.update(items=items, dim=dim)
    return path


def users_table(ids: list[Any]) -> pa.Table:
    """Three users: a full one, one without history, one with nothing."""
    return pa.table(
        {
            "user_id": ["u0", "u1", "u2"],
            "country": ["US", "CA", None],
            "age": [31, None, None],
            "history": pa.array([ids[:5], None, None], pa.list_(pa.array(ids[:1]).type)),
        }
    )


def nest(bundle: Path, backtest: Path | None, out: Path, **facts: Any) -> Path:
    """A bundle with more facts, which holds another one as its backtest if there is one."""
    manifest = read_manifest(bundle)
    version = manifest.format_version
    with write_artifact(
        out, kind="bundle", format_version=version, inputs=manifest.inputs, config=manifest.config
    ) as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        if backtest is not None:
            shutil.copytree(backtest, draft.dir / "backtest")
        draft.facts.update(manifest.facts, **facts)
    return out
