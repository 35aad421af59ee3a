"""``searcher.json``: a bundle's engine, its settings, and the measurements they were chosen by."""

from __future__ import annotations

from pydantic import Field

from index.settings import Engine, TreeSettings
from pipelines.contracts.configuration import Section


class Measured(Section):
    """One setting as the tuner measured it, on held-out users, one query at a time in one thread.

    ann_recall_at_100: mean share of exact search's best 100 that was found. tree: None for exact search.
    """

    tree: TreeSettings | None
    ann_recall_at_100: float
    p50_us: float
    p99_us: float
    build_seconds: float
    queries: int


class SearcherSpec(Section):
    """``searcher.json``: the engine, its settings, and the measurements it was chosen by.

    tree: with shards, the tree of each.
    chosen: measured with the queries it was chosen by; check: with users that were not used in the choice.
    frontier: the points that no other beats in both recall and p50, by ascending p50, out of ``points`` measured.
    tuned_items: size of the catalogue for which the tree was looked for; 0 if none was. taken_over: that was another
    night's catalogue, whose tree met the target again.
    """

    engine: Engine
    tree: TreeSettings | None = None
    shards: int = 1
    target: float | None = None
    chosen: Measured | None = None
    check: Measured | None = None
    frontier: tuple[Measured, ...] = Field(default=())
    points: int = 0
    tuned_items: int = 0
    taken_over: bool = False
    build_seconds: float = 0.0
    tune_seconds: float = 0.0

    @property
    def measured(self) -> Measured | None:
        """Recall and time of what is served: on users that were not used in the choice, where there are some."""
        return self.check or self.chosen

    @property
    def why_exact(self) -> str | None:
        """Why every vector is compared although trees were tried, and what would help; None where that is not so."""
        tried = self.points - 1
        if self.engine != "exact" or tried < 1 or self.chosen is None or self.chosen.tree is not None:
            return None
        trees = [point for point in self.frontier if point.tree is not None]
        if not trees:
            why = f"each of {tried} trees measured is slower"
        else:
            best = max(trees, key=lambda point: point.ann_recall_at_100)
            target = "" if self.target is None else f" of {self.target:g}"
            why = (
                f"none of {tried} trees measured meets the recall target{target}; the best has "
                f"{best.ann_recall_at_100:.4f} at {best.p50_us:,.0f} µs"
            )
        return (
            f"exact search is served, {self.chosen.p50_us:,.0f} µs at the median: {why}. A lower "
            "index.ann_recall_at_100, fewer dimensions (towers.embedding_dim), vectors of one length "
            '(towers.item_norm = "unit") or more time to tune (index.tuning_seconds) make a tree likelier'
        )
