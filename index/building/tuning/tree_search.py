"""Hill climbing to the fastest tree that meets a recall target: varies one property at a time, keeps what is faster.

Reads item vectors and held-out users. The directions of a projection, the number of leaves, SOAR, the threshold of
anisotropic quantisation, the dimensions per code and the storage of the vectors for reordering cost one build each; for
each tree, the leaves searched and the depths of reordering and rescoring cost one pass over the users. The properties
are tried in order of their benefit; every measured point is recorded.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from index.building.tuning.measurement import RECALL_AT, Queries, measure
from index.building.tuning.projections import Projections
from index.registry.searcher_spec import Measured
from index.search.projection import Projection
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Vectors
from index.search.shards import ShardedSearcher
from index.settings import IndexSettings, TreeSettings
from pipelines.contracts.errors import ConfigError
from pipelines.progress import Progress

# Numbers of leaves searched that are tried, each about 1.25 times the last: time changes by less than that, recall by
# less than with a step of reordering.
_LEAVES_STEPS = (
    *(1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 64, 80, 100),
    *(128, 160, 200, 256, 320, 400, 512, 640, 800, 1024),
)
# Depths of reordering that are tried, as multiples of the neighbors wanted.
_REORDER_STEPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 8.0, 10.0, 12.0, 16.0, 24.0, 32.0, 48.0)
# The search stops when this many consecutive steps in leaves were no faster than the best.
_PATIENCE = 2
# Queries are far from the items, so the error along an item's own direction counts most. At a million items and recall
# .9955 a threshold of .3 took 126 µs where .2 took 176; .1 and none missed .99 with ten times the leaves (2026-11, the
# data of benchmarks/index_frontier.py, one query at a time).
_FIRST_THRESHOLD = 0.3
# Another tree is begun if this many times the longest build so far still fits.
ONE_MORE = 1.2
# A change must be faster by this share to be taken: less is within the noise of a repeated measurement.
_WORTH_TAKING = 0.97


Tree = ScannSearcher | ShardedSearcher


@dataclass(frozen=True)
class Built:
    """A tree, or shards, with the fastest effort that meets the target; ``meets`` is False if none does."""

    searcher: Tree
    point: Measured
    meets: bool

    @property
    def effort(self) -> Effort:
        """The effort that was measured."""
        if self.point.tree is None:
            raise AssertionError
        return Effort(self.point.tree.leaves_to_search, self.point.tree.reorder, self.point.tree.rescore)


class Climb:
    """Varies one property of the tree at a time and keeps what is faster at the target."""

    def __init__(self, items: Vectors, queries: Queries, settings: IndexSettings, progress: Progress, started: float):
        self.items = items
        self._queries = queries
        self._settings = settings
        self._progress = progress
        self._deadline = started + settings.tuning_seconds
        self._goal = min(1.0, settings.ann_recall_at_100 + settings.recall_margin)
        self._longest_build = 0.0
        self._projections = Projections(items, queries, self._goal)
        self.points: list[Measured] = []

    def given(self) -> Built:
        """The tree as the settings prescribe it."""
        tree = self._settings.tree
        if tree is None:
            raise AssertionError
        return self.as_built(*self._build(tree))

    def as_built(self, searcher: Tree, seconds: float) -> Built:
        """A tree with the effort it has; ``seconds`` were spent on its build."""
        point = measure(searcher, self._queries, searcher.settings, seconds)
        self.points.append(point)
        return Built(searcher, point, point.ann_recall_at_100 >= self._goal)

    def climb(self) -> Built | None:
        """The best tree found in time; None if even the best misses the target, so that exact search must serve."""
        first = first_tree(len(self.items), self._settings)
        with self._progress.waiting("directions in which users tell items apart"):
            widths = self._projections.worth_a_trial()
        best = self.aimed_tree(_with_projection(first, widths[0] if widths else None))
        for width in [*widths[1:], None] if widths else []:
            if not self._time_for_one_more():
                break
            best = self._faster(best, _with_projection(first, width))
        for variants in (_other_code, _other_threshold, _other_leaves, self._other_storage, _other_soar):
            for tree in variants(best.point.tree or first):
                if not self._time_for_one_more():
                    return best if best.meets else None
                best = self._faster(best, tree)
        return best if best.meets else None

    def _faster(self, best: Built, tree: TreeSettings) -> Built:
        """The faster of the two; the other is freed when this returns, so that no more than two are ever held."""
        other = self.aimed_tree(tree)
        return other if _better(other, best) else best

    def _other_storage(self, tree: TreeSettings) -> Iterator[TreeSettings]:
        for storage in self._settings.reorder_types[1:]:
            yield tree.model_copy(update={"reorder_type": storage})

    def _time_for_one_more(self) -> bool:
        return time.perf_counter() + ONE_MORE * self._longest_build < self._deadline

    def _build(self, tree: TreeSettings) -> tuple[ScannSearcher, float]:
        start = time.perf_counter()
        projection = self.projection(tree.projection)
        searcher = ScannSearcher.build(self.items, tree, self._settings.threads, projection=projection)
        return searcher, time.perf_counter() - start

    def projection(self, width: int | None) -> Projection | None:
        """The first directions in which the users tell items apart; None is no projection.

        Raises:
            ConfigError: the vectors have fewer dimensions.
        """
        if width is None:
            return None
        dim = self.items.shape[1]
        if width > dim:
            raise ConfigError(
                f"tree.projection: expected at most the {dim} dimensions of the vectors, got {width}. Ask for fewer."
            )
        return self._projections.directions.first(width)

    def aimed_tree(self, tree: TreeSettings) -> Built:
        """Builds a tree with the fastest effort that meets the goal, and shows what it measures."""
        begun = time.perf_counter()
        with self._progress.waiting(f"a tree of {tree.leaves:,} leaves"):
            searcher, seconds = self._build(tree)
            built = self.aimed(searcher, seconds)
        self._longest_build = max(self._longest_build, time.perf_counter() - begun)
        point = built.point
        self._progress.line(
            f"{_name(point)}: recall {point.ann_recall_at_100:.4f}, p50 {point.p50_us:.0f} µs"
            + ("" if built.meets else " (misses the target)")
        )
        return built

    def aimed(self, searcher: Tree, seconds: float) -> Built:
        """A tree with the fastest effort that meets the goal; ``seconds`` were spent on its build.

        The fewest leaves that meet it with the deepest reordering are found by bisection (recall rises with them).
        From there on more leaves are tried, each with the least reordering that meets the goal, until they cost more.
        """
        steps = _steps_within(searcher.settings.leaves)
        first, closest = self._first_that_meets(searcher, steps, seconds)
        best: Measured | None = None
        slower = 0
        for leaves in steps[first:]:
            depths = self._projections.depths(searcher.settings.projection)
            points = [self._least_reorder(searcher, leaves, depth, seconds) for depth in depths]
            point = min((one for one in points if one is not None), key=lambda one: one.p50_us, default=None)
            if point is not None and (best is None or point.p50_us < best.p50_us):
                best, slower = point, 0
            else:
                slower += 1
            if slower >= _PATIENCE:
                break
        chosen = best if best is not None else closest
        built = Built(searcher, chosen, best is not None)
        return replace(built, searcher=searcher.with_effort(built.effort))

    def _first_that_meets(self, searcher: Tree, steps: list[int], seconds: float) -> tuple[int, Measured]:
        """Place in ``steps`` of the fewest leaves that meet the goal (its end: none), and the point of most recall."""
        deepest = len(_REORDER_STEPS) - 1
        low, high = 0, len(steps)
        closest: Measured | None = None
        while low < high:
            middle = (low + high) // 2
            point = self._measure(searcher, steps[middle], deepest, None, seconds)
            if closest is None or point.ann_recall_at_100 > closest.ann_recall_at_100:
                closest = point
            if point.ann_recall_at_100 >= self._goal:
                high = middle
            else:
                low = middle + 1
        if closest is None:
            raise AssertionError
        return low, closest

    def _least_reorder(self, searcher: Tree, leaves: int, rescore: int | None, seconds: float) -> Measured | None:
        """Bisects the depths: recall rises with them. None if the deepest misses the goal."""
        low, high = 0, len(_REORDER_STEPS)
        best: Measured | None = None
        while low < high:
            middle = (low + high) // 2
            tried = self._measure(searcher, leaves, middle, rescore, seconds)
            if tried.ann_recall_at_100 >= self._goal:
                high, best = middle, tried
            else:
                low = middle + 1
        return best

    def _measure(self, searcher: Tree, leaves: int, step: int, rescore: int | None, seconds: float) -> Measured:
        k = self._queries.truth.shape[1]
        reorder = min(searcher.num_items, round(_REORDER_STEPS[step] * k))
        aimed = searcher.with_effort(Effort(leaves, reorder, min(rescore or reorder, reorder)))
        point = measure(aimed, self._queries, aimed.settings, seconds)
        self.points.append(point)
        return point


def first_tree(items: int, settings: IndexSettings) -> TreeSettings:
    """Where the climb begins: with about √items leaves, searching the centers costs as much as searching a leaf."""
    leaves = max(2, round(items**0.5))
    return TreeSettings(
        leaves=leaves,
        leaves_to_search=1,
        reorder=RECALL_AT,
        anisotropic_threshold=_FIRST_THRESHOLD,
        reorder_type=settings.reorder_types[0],
        training_sample=min(items, max(100_000, 50 * leaves)),
    )


def _with_projection(tree: TreeSettings, width: int | None) -> TreeSettings:
    return tree.model_copy(update={"projection": width, "rescore": None})


def _better(other: Built, best: Built) -> bool:
    if other.meets != best.meets:
        return other.meets
    if not other.meets:
        return other.point.ann_recall_at_100 > best.point.ann_recall_at_100
    return other.point.p50_us < _WORTH_TAKING * best.point.p50_us


def _other_leaves(tree: TreeSettings) -> Iterator[TreeSettings]:
    for factor in (2.0, 0.5):
        yield tree.model_copy(update={"leaves": max(2, round(tree.leaves * factor)), "leaves_to_search": 1})


def _other_soar(tree: TreeSettings) -> Iterator[TreeSettings]:
    """1.5 is the authors' recommendation and ScaNN's default."""
    yield tree.model_copy(update={"soar_lambda": 1.5 if tree.soar_lambda is None else None})


def _other_threshold(tree: TreeSettings) -> Iterator[TreeSettings]:
    """The authors' recommendation for unit vectors."""
    yield tree.model_copy(update={"anisotropic_threshold": 0.2})


def _other_code(tree: TreeSettings) -> Iterator[TreeSettings]:
    """Twice the code: slower to read, but a fraction of the reordering is enough."""
    yield tree.model_copy(update={"dims_per_block": 1})


def _steps_within(leaves: int) -> list[int]:
    return [*itertools.takewhile(lambda step: step < leaves, _LEAVES_STEPS), *([leaves] if leaves <= 1024 else [])]


def _name(point: Measured) -> str:
    tree = point.tree
    if tree is None:
        return "exact"
    soar = f" SOAR {tree.soar_lambda:g}" if tree.soar_lambda is not None else ""
    threshold = "none" if tree.anisotropic_threshold is None else f"{tree.anisotropic_threshold:g}"
    seen = "" if tree.projection is None else f"{tree.projection} directions ({tree.rescore} scored again), "
    return (
        f"{seen}{tree.leaves} leaves{soar}, T {threshold}, {tree.dims_per_block} dims per code, {tree.reorder_type}, "
        f"{tree.leaves_to_search} searched, reorder {tree.reorder}"
    )
