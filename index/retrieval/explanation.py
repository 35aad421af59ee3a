"""Why an item was returned, or was not: its score, leaf, rank by exact search, and the rule that removed it.

Created with ``explain=True``; the work is done when an item is asked about.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.retrieval.candidates import ItemExplanation
from index.retrieval.live.version import ServingVersion
from index.retrieval.sources.call_rules import ReadRules, Rules, excluded_rows
from index.rules.crowding import within_limits
from index.search.searcher import Neighbors, Rows, Scores, Vectors
from pipelines.contracts.errors import SchemaError


@dataclass(frozen=True)
class CallExplanation:
    """One call, kept to be explained. It keeps its version in memory as long as it exists."""

    live: ServingVersion
    query: Vectors | None
    rules: Rules
    read: ReadRules
    k: int
    rows: Rows

    @functools.cached_property
    def _scores(self) -> Scores:
        scores = self.live.popularity.scores if self.query is None else self.live.vectors @ self.query
        return scores if self.read.utility is None else self.read.utility.of(scores)

    @functools.cached_property
    def _order(self) -> Rows:
        """Ads that may be shown, best first."""
        rows = self.live.living(np.arange(self.live.num_items, dtype=np.int32))
        return Neighbors.best(self._scores[rows], max(1, len(rows)), rows, self.live.planner.ties).rows

    @functools.cached_property
    def _eligible_order(self) -> Rows:
        order = self._order
        if self.read.eligible is not None:
            order = order[self.read.eligible.mask[order]]
        return order[np.isin(order, self.read.excluded, invert=True)]

    def of(self, item_id: Any) -> ItemExplanation:
        """Explains what happened to an item.

        Raises:
            SchemaError: the version has no such item.
        """
        row = int(self.live.items.rows([item_id], "explain")[0])
        if row < 0:
            raise SchemaError(f"explain: version {self.live.version} has no item {item_id!r}.")
        place = np.flatnonzero(self.rows == row)
        eligible_rank = np.flatnonzero(self._eligible_order == row)
        leaves = self.live.planner.leaves
        return ItemExplanation(
            item_id=item_id,
            score=float(self._scores[row]),
            leaf=None if leaves is None else int(leaves.leaf_of_row[row]),
            rank=self._rank(row),
            eligible_rank=int(eligible_rank[0]) + 1 if len(eligible_rank) else None,
            place=int(place[0]) + 1 if len(place) else None,
            removed_by=None if len(place) else self._removed_by(row),
        )

    def _rank(self, row: int) -> int:
        place = np.flatnonzero(self._order == row)
        if len(place):
            return int(place[0]) + 1
        return int(np.count_nonzero(self._scores[self._order] >= self._scores[row])) + 1

    def _removed_by(self, row: int) -> str:
        if row not in self._order:
            return "paused or removed"
        if self.rules.where is not None and not self.live.eligible(self.rules.where).mask[row]:
            return f"where {self.rules.where}"
        if row in excluded_rows(self.live, self.rules.exclude):
            return "exclude"
        order = self._eligible_order
        if self.read.limits:
            kept = order[within_limits(order, self.read.limits)]
            if row not in kept:
                better = kept[: self.k]
                if self._scores[row] < self._scores[better[-1]] and len(better) == self.k:
                    return "rank"
                return "max_per " + ", ".join(f"{limit.attribute}={limit.most}" for limit in self.read.limits)
            order = kept
        if int(np.flatnonzero(order == row)[0]) >= self.k:
            return "rank"
        if self.read.diversity > 0:
            return "diversity"
        return "blending" if self.live.settings.blends else "search"
