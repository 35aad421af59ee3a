"""Finds the fastest searcher that meets the recall target, by building and measuring.

Reads item vectors and the vectors of held-out users; writes nothing. A small catalogue gets exact search; for others
``index.climb`` looks for the tree, which shards then repeat for each part.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

from index.bundle import Measured, SearcherSpec
from index.climb import Built, Climb
from index.exact import ExactSearcher
from index.measuring import Queries, Report, frontier, measure, silent
from index.scann_binding import scann_available
from index.searcher import Searcher, Vectors
from index.settings import IndexSettings, TreeSettings
from index.shards import ShardedSearcher, shard_bounds
from index.tree import LEAST_ITEMS, ScannSearcher
from pipelines.errors import ConfigError

# A tree takes more than this many vectors a leaf to be trained on; below, exact search is as fast anyway.
_LEAST_ITEMS_FOR_A_TREE = 1000


@dataclass(frozen=True)
class Tuned:
    """The searcher that was chosen, and all that was measured."""

    searcher: Searcher
    spec: SearcherSpec


def tune(items: Vectors, queries: Queries, check: Queries, settings: IndexSettings, report: Report = silent) -> Tuned:
    """Builds the fastest searcher whose recall meets the target with the margin.

    Args:
        items: ``[items, dim] float32``, finite.
        queries: held-out users to choose by.
        check: other held-out users, on which the chosen one is measured at the end.
        settings: target, margin, engine, time and what may be varied.
        report: is told what is measured.

    Raises:
        ConfigError: the engine asked for is not installed, or the tree asked for does not fit the catalogue.
    """
    started = time.perf_counter()
    exact = _measured_exact(items, queries)
    if _takes_exact(exact, items, settings):
        report(f"exact search: {exact.p50_us:.0f} µs")
        return _tuned(ExactSearcher(items, checked=True), (exact,), exact, check, settings, started)
    trees = Climb(items, queries, settings, report, started)
    best = trees.given() if settings.tree is not None else trees.climb()
    if best is None:
        return _tuned(ExactSearcher(items, checked=True), (*trees.points, exact), exact, check, settings, started)
    searcher = _sharded(items, best, settings)
    return _tuned(searcher, (*trees.points, exact), best.point, check, settings, started)


def _takes_exact(exact: Measured, items: Vectors, settings: IndexSettings) -> bool:
    if settings.engine != "auto":
        return settings.engine == "exact"
    if settings.tree is not None:
        return False
    small = len(items) < _LEAST_ITEMS_FOR_A_TREE
    return small or exact.p50_us <= settings.exact_below_us or not scann_available()


def _measured_exact(items: Vectors, queries: Queries) -> Measured:
    """A few queries are enough: exact search takes the same time for each."""
    some = Queries(queries.vectors[:20], queries.truth[:20])
    return measure(ExactSearcher(items, checked=True), some, None, 0.0)


def fastest_effort(searcher: ScannSearcher, queries: Queries, goal: float) -> ScannSearcher:
    """The same tree with the fastest effort that meets a recall; with its own where none does."""
    settings = IndexSettings(ann_recall_at_100=goal, recall_margin=0.0)
    climb = Climb(searcher.vectors, queries, settings, silent, time.perf_counter())
    return climb.aimed(searcher)


def _sharded(items: Vectors, best: Built, settings: IndexSettings) -> Searcher:
    """The chosen tree itself; or, with shards, a tree of the same leaf size for each part."""
    tree = best.point.tree
    if settings.shards == 1 or tree is None:
        return best.searcher
    return build_shards(items, tree, settings.shards, settings.threads)


def build_shards(items: Vectors, tree: TreeSettings, shards: int, threads: int | None) -> ShardedSearcher:
    """Builds each shard with its share of the leaves.

    Raises:
        ConfigError: a shard would have fewer items than leaves.
    """
    bounds = shard_bounds(len(items), shards)
    if len(items) < shards * LEAST_ITEMS:
        raise ConfigError(
            f"index.shards: expected at most {len(items) // LEAST_ITEMS} for {len(items)} items, got {shards}."
        )
    leaves = min(len(items) // shards, max(1, -(-tree.leaves // shards)))
    searched = max(1, -(-tree.leaves_to_search // shards))
    part = tree.model_copy(update={"leaves": leaves, "leaves_to_search": min(leaves, searched)})
    return ShardedSearcher(
        [ScannSearcher.build(items[start:end], part, threads) for start, end in itertools.pairwise(bounds)]
    )


def _tuned(
    searcher: Searcher,
    points: tuple[Measured, ...],
    chosen: Measured,
    check: Queries,
    settings: IndexSettings,
    started: float,
) -> Tuned:
    checked = measure(searcher, check, chosen.tree, chosen.build_seconds)
    total = time.perf_counter() - started
    spec = SearcherSpec(
        engine="exact" if chosen.tree is None else "scann",
        tree=chosen.tree,
        shards=1 if chosen.tree is None else settings.shards,
        target=settings.ann_recall_at_100,
        chosen=chosen,
        check=checked,
        frontier=frontier(points),
        points=len(points),
        build_seconds=chosen.build_seconds,
        tune_seconds=total - chosen.build_seconds,
    )
    return Tuned(searcher, spec)
