"""Chooses the scale of the value dimension by building and measuring, when the bundle is built.

Reads item vectors, a column of values and the vectors of held-out users; writes ``value/`` below the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from index.building.tuning.tuner import Tuned
from index.search.projection import Projection
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Neighbors, SavableSearcher, Scores, Vectors
from index.search.utility import Utility
from index.search.value_tree import ValueSearcher, ValueSpec, augmented, log_values_of, save_value
from index.settings import TreeSettings
from pipelines.contracts.arrays import Float64
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.top_k import top_k

# The weights at which a scale is measured, and the scales that are tried.
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.5)
SCALES = (0.1, 0.2, 0.3, 0.5)
# How much recall at weight 0 may lose against the same tree without the dimension.
PLAIN_LOSS = 0.005
_K = 100
# Users per measurement of a scale: the standard error of the mean recall is about .002.
_MEASURED_QUERIES = 100


def add_value(
    bundle: Path, tuned: Tuned, vectors: Vectors, column: pa.ChunkedArray, attribute: str, queries: Vectors
) -> SavableSearcher:
    """Adds the value dimension to a bundle being built, and returns the searcher to save.

    With exact search nothing is built: only the logarithms and vectors of scale 1 are written.

    Args:
        bundle: the directory being written.
        tuned: the searcher that was chosen, and its tree.
        vectors: ``[items, dim] float32``.
        column: the attribute's values, in row order.
        attribute: its name.
        queries: ``[queries, dim] float32`` vectors of held-out users; the first of them are used for measuring.

    Raises:
        ConfigError: the column holds no numbers above 0, or the searcher is sharded.
    """
    log_values = log_values_of(column, attribute)
    tree = tuned.spec.tree
    if tree is None:
        center = float(log_values.mean())
        spec = ValueSpec(attribute=attribute, scale=1.0, center=center)
        save_value(bundle, spec, log_values, augmented(vectors, log_values, 1.0, center))
        return tuned.searcher
    if tuned.spec.shards > 1:
        raise ConfigError("index.value: a value dimension needs one shard. Set index.shards = 1, or leave value out.")
    searcher = tuned.searcher
    assert isinstance(searcher, ScannSearcher)
    some, projection = queries[:_MEASURED_QUERIES], searcher.projection
    scaled = choose_scale(vectors, log_values, attribute, tree, some, projection=projection)
    save_value(bundle, scaled.searcher.spec, log_values, scaled.vectors)
    return scaled.searcher


@dataclass(frozen=True)
class ScaledTree:
    """A tree built at one scale, and its recall by weight."""

    searcher: ValueSearcher
    vectors: Vectors
    recalls: Float64


def choose_scale(
    vectors: Vectors,
    log_values: Scores,
    attribute: str,
    tree: TreeSettings,
    queries: Vectors,
    *,
    projection: Projection | None = None,
    scales: Sequence[float] = SCALES,
    threads: int | None = None,
) -> ScaledTree:
    """Builds a tree at each scale and returns the one whose worst recall over ``WEIGHTS`` is best.

    Only scales that lose at most ``PLAIN_LOSS`` at weight 0 against the plain tree are considered. If all lose more,
    the one that loses least is returned.

    Args:
        vectors: ``[items, dim] float32``.
        log_values: ``[items] float32``.
        attribute: the value's column, recorded in the spec.
        tree: what to build.
        queries: ``[queries, dim] float32`` vectors of held-out users.
        projection: of the tree's vectors without the value, if it has one.
        scales: what to try.
        threads: for building.
    """
    plain = ScannSearcher.build(vectors, tree, threads, projection=projection)
    plain_recall = float(np.mean([_recall(plain.search(query, _K), vectors @ query) for query in queries]))
    del plain
    center = float(log_values.mean())
    best: ScaledTree | None = None
    for scale in scales:
        spec = ValueSpec(attribute=attribute, scale=scale, center=center)
        measured = _measured(vectors, log_values, spec, tree, queries, threads, projection)
        if best is None or _rank(measured, plain_recall) > _rank(best, plain_recall):
            best = measured
    assert best is not None
    return best


def _measured(
    vectors: Vectors,
    log_values: Scores,
    spec: ValueSpec,
    tree: TreeSettings,
    queries: Vectors,
    threads: int | None,
    projection: Projection | None,
) -> ScaledTree:
    longer = augmented(vectors, log_values, spec.scale, spec.center)
    longer_too = None if projection is None else projection.with_one_more()
    inner = ScannSearcher.build(longer, tree, threads, projection=longer_too)
    recalls = _recalls(ValueSearcher(inner, spec, log_values), vectors, log_values, queries)
    spec = spec.model_copy(update={"weights": WEIGHTS, "recall_at_100": tuple(recalls.tolist())})
    return ScaledTree(ValueSearcher(inner, spec, log_values), longer, recalls)


def _recalls(searcher: ValueSearcher, vectors: Vectors, log_values: Scores, queries: Vectors) -> Float64:
    """``[weights]``: mean share of the true best by utility that is found."""
    recalls = np.zeros((len(queries), len(WEIGHTS)))
    for place, query in enumerate(queries):
        scores = vectors @ query
        for column, weight in enumerate(WEIGHTS):
            utility = Utility(weight, log_values)
            found = searcher.search(query, _K) if weight == 0 else searcher.search_utility(query, _K, utility)
            recalls[place, column] = _recall(found, utility.of(scores))
    means: Float64 = recalls.mean(axis=0)
    return means


def _recall(found: Neighbors, utilities: Scores) -> float:
    truth = top_k(utilities, _K)
    return len(np.intersect1d(found.rows, truth)) / len(truth)


def _rank(tree: ScaledTree, plain_recall: float) -> tuple[bool, float]:
    keeps = bool(tree.recalls[0] >= plain_recall - PLAIN_LOSS)
    return keeps, float(tree.recalls.min() if keeps else tree.recalls[0])
