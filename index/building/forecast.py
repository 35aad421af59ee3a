"""Forecasts what a build will need: memory, disk and time, from the size of the catalogue.

Memory and disk are counted (each term says what it is). Time is calibrated on this machine when the plan is made:
two small trees are built, and their times are extrapolated to any number of items.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from index.building.tuning.measurement import RECALL_AT, Queries, measure
from index.building.tuning.tree_search import ONE_MORE, first_tree
from index.search.exact import ExactSearcher
from index.search.scann_binding import scann_available
from index.search.scann_tree import LEAST_ITEMS, ScannSearcher
from index.search.searcher import Vectors
from index.settings import IndexSettings, ReorderType, TreeSettings
from pipelines.contracts.errors import ConfigError
from pipelines.progress import SILENT, Progress

GIB = 1 << 30
_BYTES_PER_NUMBER: dict[ReorderType, int] = {"float32": 4, "bf16": 2, "int8": 1}
# What a Python process with NumPy, Arrow and ScaNN holds apart from the data (measured: 90 MB idle, 150 at work).
_PROCESS_BYTES = 150 << 20
# What Beam, which only a build with shards needs, holds on top of that (measured: 65 MB).
_BEAM_BYTES = 65 << 20
# The trial trees have a fortieth of the items (at most 50,000) and a tenth, but at least this many items per leaf.
_TRIAL_PART = 40
_TRIAL_MOST = 50_000
_TRIAL_GROWTH = 4
_TRIAL_ITEMS_PER_LEAF = 10
# Queries of the trial of exact search: as many as it scores in one block.
_TRIAL_QUERIES = 256
# Single exact searches of a build: ten to warm and twenty to measure.
_EXACT_SEARCHES = 30
# After the first tree the climb tries a finer code, another threshold, two numbers of leaves, SOAR, and every other
# storage.
_OTHER_TREES = 5
# Passes over the users that finding one tree's effort takes, and the mean seconds of a search in them, at a million
# items (2026-11, benchmarks/index_frontier.py: 20 passes; the deepest reordering is asked most often).
_PASSES_PER_TREE = 20
_SEARCH_SECONDS = 4e-4


@dataclass(frozen=True)
class BuildTime:
    """build_seconds: of one tree; tune_seconds: of everything else that tuning does; trees: how many it will build."""

    build_seconds: float
    tune_seconds: float
    trees: int


@dataclass(frozen=True)
class Forecast:
    """Predicted needs of a build of ``items`` vectors of ``dim`` numbers."""

    items: int
    dim: int
    memory_bytes: int
    disk_bytes: int
    time: BuildTime

    @property
    def line(self) -> str:
        """The forecast as one line."""
        spent = self.time
        return (
            f"plan: {self.items:,} items × {self.dim}: {self.memory_bytes / GIB:.2f} GiB of memory, "
            f"{self.disk_bytes / GIB:.2f} GiB of disk, {spent.build_seconds:.0f} s for one tree, "
            f"{spent.build_seconds + spent.tune_seconds:.0f} s for tuning with up to {spent.trees}"
        )


def forecast(items: int, dim: int, settings: IndexSettings, timed: BuildTime | None = None) -> Forecast:
    """Predicts the peak memory, the bundle's size on disk, and the time, for the most demanding tree tried.

    Args:
        items: rows.
        dim: numbers per vector.
        settings: which storages of vectors may be tried, shards, the tuning's time.
        timed: the time, if already known; None calibrates it here (a few seconds for millions of items).
    """
    spent = build_time(items, dim, settings) if timed is None else timed
    widest = max(_BYTES_PER_NUMBER[storage] for storage in settings.reorder_types)
    vectors = 4 * items * dim
    stored = widest * items * dim
    # In memory 4 bits per code, one code per dimension (the finer of the two tried); on disk a byte per code.
    codes = items * dim // 2 + 2 * 4 * items
    # A build holds a copy of the vectors and their distances from the centers; the climb also holds the best tree.
    build = 2 * vectors + codes + (min(2, max(1, spent.trees)) - 1) * (stored + codes)
    memory = vectors + build
    if settings.shards > 1:
        # The climb has a sample of a shard's size next to the vectors; at the end the trees of all shards are held.
        memory = _BEAM_BYTES + vectors + max((vectors + build) // settings.shards, stored + codes)
    disk = vectors + stored + items * dim + 2 * 4 * items
    return Forecast(items, dim, _PROCESS_BYTES + memory, disk, spent)


def build_time(items: int, dim: int, settings: IndexSettings) -> BuildTime:
    """Predicts the time by two trial builds on made-up vectors with as many leaves as the real tree.

    A build trains its centers and codes on a sample, then assigns and encodes every item. Two trials that share a
    sample and differ in the number of items separate the two costs; each grows in proportion.
    """
    exact = _exact_seconds(items, dim, settings)
    part = items // settings.shards
    if settings.engine == "exact" or part < 4 * LEAST_ITEMS or not scann_available():
        return BuildTime(0.0, exact, trees=0)
    tree = settings.tree or first_tree(part, settings)
    one = _one_build(part, dim, tree, settings)
    measured = _PASSES_PER_TREE * settings.tuning_queries * _SEARCH_SECONDS * (part / 1e6) ** 0.5
    trees = 1 if settings.tree is not None else _trees_in_time(one + measured, settings)
    climb = trees * (one + measured)
    if settings.shards > 1:
        # The shards are counted one after the other; parallel workers divide that. A tree by hand needs no climb.
        climb = settings.shards * (one + measured) + (climb if settings.tree is None else 0.0)
    return BuildTime(one, climb - one + exact, trees)


def _exact_seconds(items: int, dim: int, settings: IndexSettings) -> float:
    """Seconds for the truth of both halves of the held-out users, and for measuring exact search itself.

    Timed on made-up vectors; both grow in proportion to the items.
    """
    few = min(items, _TRIAL_GROWTH * _TRIAL_MOST)
    rng = np.random.default_rng(0)
    searcher = ExactSearcher(rng.normal(size=(few, dim)).astype(np.float32), checked=True)
    queries = rng.normal(size=(_TRIAL_QUERIES, dim)).astype(np.float32)
    searcher.search_batch(queries, RECALL_AT)
    start = time.perf_counter()
    searcher.search_batch(queries, RECALL_AT)
    batch = (time.perf_counter() - start) / _TRIAL_QUERIES
    single = measure(searcher, Queries.of(queries[:5], searcher.vectors), None, 0.0).p50_us / 1e6
    return items / few * (2 * settings.tuning_queries * batch + _EXACT_SEARCHES * single)


def _one_build(items: int, dim: int, tree: TreeSettings, settings: IndexSettings) -> float:
    few = min(items // 2, max(_TRIAL_ITEMS_PER_LEAF * tree.leaves, min(_TRIAL_MOST, items // _TRIAL_PART)))
    many = min(items, _TRIAL_GROWTH * few)
    shape = {"leaves": min(tree.leaves, few), "leaves_to_search": 1, "training_sample": few}
    trial = tree.model_copy(update={**shape, "projection": None, "rescore": None})
    dim = dim if tree.projection is None else min(dim, tree.projection)
    vectors = np.random.default_rng(0).normal(size=(many, dim)).astype(np.float32)
    # The first build of a process also loads the library: it does not count.
    _trial_seconds(vectors[:few], trial.model_copy(update={"leaves": 2}), settings)
    short, long = (_trial_seconds(part, trial, settings) for part in (vectors[:few], vectors))
    an_item = max(0.0, long - short) / (many - few)
    a_trained = max(0.0, short - few * an_item) / few
    return items * an_item + min(items, tree.training_sample) * a_trained


def _trial_seconds(vectors: Vectors, tree: TreeSettings, settings: IndexSettings) -> float:
    start = time.perf_counter()
    ScannSearcher.build(vectors, tree, settings.threads)
    return time.perf_counter() - start


def _trees_in_time(one: float, settings: IndexSettings) -> int:
    """How many trees the climb will try; like the climb, checks before each whether one more fits."""
    most = _OTHER_TREES + len(settings.reorder_types)
    trees = 1
    while trees < most and trees * one + ONE_MORE * one < settings.tuning_seconds:
        trees += 1
    return trees


def predict(items: int, dim: int, settings: IndexSettings, progress: Progress = SILENT) -> Forecast:
    """``forecast``, showing progress while this machine's speed is measured."""
    with progress.waiting("measuring how fast this machine builds"):
        return forecast(items, dim, settings)


def check_budget(predicted: Forecast, settings: IndexSettings) -> None:
    """Checks that a build stays within the budgets of the settings.

    Raises:
        ConfigError: a budget would be exceeded; the figure and the options are named.
    """
    spent = predicted.time
    _refuse("memory_gib", predicted.memory_bytes / GIB, settings.memory_gib, "GiB of memory", settings)
    _refuse("disk_gib", predicted.disk_bytes / GIB, settings.disk_gib, "GiB of disk", settings)
    _refuse("minutes", (spent.build_seconds + spent.tune_seconds) / 60, settings.minutes, "minutes", settings)


def _refuse(key: str, predicted: float, budget: float | None, unit: str, settings: IndexSettings) -> None:
    if budget is None or predicted <= budget:
        return
    options = ['index.reorder_types = ["int8"]'] if settings.reorder_types != ("int8",) else []
    options += [f"index.shards = {2 * settings.shards}", f"a larger index.{key}"]
    raise ConfigError(
        f"index.{key}: the build is predicted to need {predicted:.2f} {unit}, the budget is {budget:g}. "
        f"Nothing was started. Options: {', '.join(options)}."
    )
