"""The engines that the retriever is compared with: their searches over the same vectors, at about equal recall."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.index_frontier import fastest_effort
from benchmarks.retrieval import world as world_of
from index.building.tuning.measurement import Queries
from index.search.scann_tree import ScannSearcher
from index.settings import TreeSettings

K = 100
# Recall target of all contestants.
TARGET = 0.99
# Settings of the two HNSW graphs: with 16 and 100 they stay below .97 here up to an effort of 1,000.
LINKS, BUILD_EFFORT = 32, 200


def recall_of(found: Callable[[int], np.ndarray], truth: list[np.ndarray]) -> float:
    """Mean share of the true rows found."""
    shares = [len(np.intersect1d(found(place), rows)) / max(1, len(rows)) for place, rows in enumerate(truth)]
    return round(float(np.mean(shares)), 5)


def peers(
    names: list[str], vectors: np.ndarray, vector_of: Callable[[int], np.ndarray], truth: list[np.ndarray]
) -> dict[str, Any]:
    """Bare searches of other engines at the least effort that reaches ``TARGET``, or the largest tried; the search call
    and recall of each."""
    import faiss
    import hnswlib

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    items, dim = vectors.shape
    found: dict[str, Any] = {}
    fast = faiss.index_factory(dim, f"IVF{max(16, items // 250)},PQ{dim // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(fast.base_index)
    graph = faiss.IndexHNSWFlat(dim, LINKS, faiss.METRIC_INNER_PRODUCT)
    hnsw = hnswlib.Index(space="ip", dim=dim)
    if "faiss_ivfpq_fastscan" in names:
        fast.train(vectors[:: max(1, items // 200_000)])
        fast.add(vectors)
    if "faiss_hnsw" in names:
        graph.hnsw.efConstruction = BUILD_EFFORT
        graph.add(vectors)
    if "hnswlib" in names:
        hnsw.init_index(max_elements=items, M=LINKS, ef_construction=BUILD_EFFORT)
        hnsw.add_items(vectors)
        hnsw.set_num_threads(1)
    faiss.omp_set_num_threads(1)

    def set_fast(step: tuple[int, int]) -> None:
        inner.nprobe, fast.k_factor = step[0], step[1]

    def set_graph(ef: int) -> None:
        graph.hnsw.efSearch = ef

    settings: dict[str, tuple[Callable[[Any], None], list[Any], Callable[[int], Any], Callable[[Any], np.ndarray]]] = {
        "faiss_ivfpq_fastscan": (
            set_fast,
            [(4, 4), (8, 4), (12, 4), (8, 8), (16, 4), (16, 8), (32, 8), (64, 8), (64, 16), (128, 16)],
            lambda place: fast.search(vector_of(place)[None], K),
            lambda answer: answer[1][0],
        ),
        "faiss_hnsw": (
            set_graph,
            [100, 150, 200, 300, 400, 600, 1000, 2000],
            lambda place: graph.search(vector_of(place)[None], K),
            lambda answer: answer[1][0],
        ),
        "hnswlib": (
            hnsw.set_ef,
            [100, 120, 150, 200, 300, 400, 600, 1000, 2000],
            lambda place: hnsw.knn_query(vector_of(place)[None], K),
            lambda answer: answer[0][0],
        ),
    }
    for name in [name for name in settings if name in names]:
        configure, steps, search, rows_of = settings[name]
        for step in steps:
            configure(step)
            recall = recall_of(lambda place, search=search, rows_of=rows_of: rows_of(search(place)), truth)
            if recall >= TARGET:
                break
        found[name] = {"setting": str(step), "ann_recall_at_100": recall, "call": search}
    return found


def aimed(vectors: np.ndarray, tree: TreeSettings, queries: Queries, goal: float) -> TreeSettings:
    """The tree with the fastest effort that reaches the goal for the queries."""
    return fastest_effort(ScannSearcher.build(vectors, tree), queries, goal).settings


def tfrs_peer(
    tower: Any, vectors: np.ndarray, records: list[dict[str, Any]], truth: list[np.ndarray], queries: Queries
) -> dict[str, Any]:
    """TFRS's ScaNN layer behind the same user tower, a ``tf.function`` loaded as a SavedModel signature.

    Its effort is chosen as ours is, on a tree with the layer's own settings.
    """
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    items = len(vectors)
    table = tf.constant(vectors)
    leaves = max(8, items // 1000)
    plain = TreeSettings(leaves=leaves, leaves_to_search=15, reorder=min(400, items), anisotropic_threshold=None)
    effort = aimed(vectors, plain, queries, TARGET)
    layer = tfrs.layers.factorized_top_k.ScaNN(
        None,
        k=K,
        num_leaves=leaves,
        num_leaves_to_search=effort.leaves_to_search,
        num_reordering_candidates=effort.reorder,
    )
    layer.index(table)

    def answer(**inputs: Any) -> dict[str, Any]:
        scores, rows = layer(tower.vectors(inputs))
        return {"scores": scores, "rows": rows}

    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in tower.specs(1).items()}
    holder = tf.Module()
    holder.layer, holder.tower = layer, tower
    holder.answer = tf.function(answer)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(
            holder,
            folder,
            signatures={"serving_default": holder.answer.get_concrete_function(**specs)},
            options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
        )
        served = tf.saved_model.load(folder)
    signature = served.signatures["serving_default"]
    inputs = [
        {name: tf.constant(column[place : place + 1]) for name, column in given.items()}
        for given in [world_of.tower_inputs(records, vectors)]
        for place in range(len(records))
    ]
    search = lambda place: signature(**inputs[place % len(inputs)])["rows"].numpy()  # noqa: E731
    recall = recall_of(lambda place: search(place)[0], truth)
    return {
        "setting": f"{effort.leaves_to_search} of {leaves} leaves, reorder {effort.reorder}; inputs ready as tensors",
        "ann_recall_at_100": recall,
        "call": search,
        "keep": served,
    }
