"""Finds the fastest searcher that meets the recall target, by building and measuring.

Reads item vectors and the vectors of held-out users; writes only shards. A small catalogue gets exact search; for
others ``index.building.tuning.tree_search`` finds the tree, or last night's is taken over if it still meets the target
on a catalogue of similar size. With shards it searches on a sample of a shard's size; every shard is built with the
tree found, and the effort is what all of them together need.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from index.building.sharding_job import ShardsJob, check_shards
from index.building.tuning.measurement import Queries, frontier, measure
from index.building.tuning.tree_search import Built, Climb
from index.registry.searcher_spec import Measured, SearcherSpec
from index.search.exact import ExactSearcher
from index.search.scann_binding import scann_available
from index.search.searcher import SavableSearcher, Vectors
from index.settings import IndexSettings, TreeSettings
from pipelines.progress import SILENT, Progress

# A tree is trained on more vectors than this; below, exact search is as fast anyway.
_LEAST_ITEMS_FOR_A_TREE = 1000
# A tree is taken over while the catalogue is this much larger or smaller than the one it was looked for: the number of
# leaves goes with the square root of the items, and the climb changes it in larger steps.
_SIMILAR = 1.25


@dataclass(frozen=True)
class Tuned:
    """The searcher that was chosen, and all measurements."""

    searcher: SavableSearcher
    spec: SearcherSpec


def tune(
    items: Vectors,
    queries: Queries,
    check: Queries,
    settings: IndexSettings,
    progress: Progress = SILENT,
    shards: ShardsJob | None = None,
    last: SearcherSpec | None = None,
) -> Tuned:
    """Builds the fastest searcher whose recall meets the target with the margin.

    Args:
        items: ``[items, dim] float32``, finite.
        queries: held-out users to choose by.
        check: other held-out users, on which the chosen one is measured at the end.
        settings: target, margin, engine, time limit and what may be varied.
        progress: shows each tree as it is measured.
        shards: builds the shards of ``items``; None means one tree.
        last: the searcher of the last night with these settings, whose tree is tried first; None tunes in full.

    Raises:
        ConfigError: the engine asked for is not installed, or the tree or the shards asked for do not fit the
            catalogue.
    """
    started = time.perf_counter()
    with progress.waiting("exact search"):
        exact = _measured_exact(items, queries)
    if _takes_exact(exact, items, settings):
        progress.line(f"exact search: {exact.p50_us:.0f} µs")
        return _tuned(ExactSearcher(items, checked=True), (exact,), exact, check, settings, started)
    climb = Climb(items, queries, settings, progress, started)

    def checked(best: Built, tuned_items: int) -> Tuned:
        with progress.waiting("checking the tree on other users"):
            tuned = _tuned(best.searcher, (*climb.points, exact), best.point, check, settings, started)
        return replace(tuned, spec=tuned.spec.model_copy(update={"tuned_items": tuned_items}))

    def taken_over(plan: SearcherSpec, tree: TreeSettings) -> Tuned | None:
        again = climb.aimed_tree(tree)
        tuned = checked(again, plan.tuned_items) if again.meets else None
        if tuned is None or not _meets(tuned.spec):
            progress.line("last night's tree misses the target: tuning in full")
            return None
        progress.line("last night's tree is taken over: it meets the target")
        return replace(tuned, spec=tuned.spec.model_copy(update={"taken_over": True}))

    if last is not None and last.tree is not None and shards is None and _fits(last, len(items), settings):
        found = taken_over(last, last.tree)
        if found is not None:
            return found
    if shards is not None:
        check_shards(len(items), shards.shards, settings.tree)
        tree = settings.tree or _tree_of_a_shard(items, queries, settings, progress, started)
        with progress.waiting(f"{shards.shards} shards"):
            best = None if tree is None else _built_shards(climb, tree, shards, aim=settings.tree is None)
    else:
        best = climb.given() if settings.tree is not None else climb.climb()
    if best is None:
        return _tuned(ExactSearcher(items, checked=True), (*climb.points, exact), exact, check, settings, started)
    return checked(best, 0 if settings.tree is not None else len(items))


def _fits(last: SearcherSpec, items: int, settings: IndexSettings) -> bool:
    """Whether last night's tree may be as fast as any for this catalogue."""
    similar = last.tuned_items / _SIMILAR <= items <= last.tuned_items * _SIMILAR
    return similar and last.shards == 1 and settings.tree is None


def _meets(spec: SearcherSpec) -> bool:
    """Whether users who were not tuned on reach the target."""
    return spec.check is not None and spec.target is not None and spec.check.ann_recall_at_100 >= spec.target


def _tree_of_a_shard(
    items: Vectors, queries: Queries, settings: IndexSettings, progress: Progress, started: float
) -> TreeSettings | None:
    """The tree that the climb finds on every n-th item, for n shards; None if no tree meets the target there.

    Only the settings are returned: the sample and its trees are freed before the shards are built.
    """
    sample = np.ascontiguousarray(items[:: settings.shards])
    best = Climb(sample, Queries.of(queries.vectors, sample, queries.others), settings, progress, started).climb()
    return None if best is None else best.point.tree


def _built_shards(climb: Climb, tree: TreeSettings, shards: ShardsJob, *, aim: bool) -> Built:
    """All shards, with the tree's own effort, or with the fastest that meets the target on the whole catalogue."""
    begun = time.perf_counter()
    searcher = shards.build(tree, climb.projection(tree.projection), climb.items)
    seconds = time.perf_counter() - begun
    return climb.aimed(searcher, seconds) if aim else climb.as_built(searcher, seconds)


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


def _tuned(
    searcher: SavableSearcher,
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
