"""Rankings: the rows that a call may return, best first, found as far as they are needed. A beginning never changes.

Where every row is scored, a search for more begins with what a search for fewer finds. A tree's does not: how hard it
looks depends on how many are asked for. So it is asked for fixed numbers, the first of them the one it is tuned for,
and each longer answer goes on after the shorter one with the rows that this does not have. How many candidates a call
asks for decides how far its rankings go, never what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from index.retrieval.live.version import ServingVersion
from index.retrieval.sources.call_rules import ReadRules
from index.rules.eligible import Eligible
from index.rules.plan import Method
from index.rules.planner import TUNED_FOR, Nearest
from index.search.searcher import Neighbors, Rows, Scores, Vectors

# Each further search is for this many times as many rows.
_GROWTH = 5
_NO_ROWS, _NO_SCORES = np.zeros(0, np.int32), np.zeros(0, np.float32)


class Ranking(Protocol):
    """Rows in a fixed order, of which a beginning is known.

    rows: ``[n] int32``, each once; scores: ``[n] float32``; neither is changed in place. exhausted: these are all.
    scored: how many rows were scored or fetched for it.
    """

    rows: Rows
    scores: Scores
    exhausted: bool
    scored: int

    def reach(self, wanted: int) -> None:
        """Goes on until ``wanted`` rows are known, or all."""
        ...

    def expect(self, wanted: int) -> None:
        """Goes on now, at once, if ``wanted`` rows later on would cost more."""
        ...


class Listed:
    """Rows that are known in their order, and scored as far as they are needed. See ``Ranking``."""

    def __init__(self, rows: Rows, score: Callable[[Rows], Scores]) -> None:
        """Takes all rows, best first, and what gives ``[n] float32`` scores for ``[n] int32`` rows."""
        self._all, self._score = rows, score
        self.rows, self.scores, self.exhausted = _NO_ROWS, _NO_SCORES, len(rows) == 0
        self.scored = 0

    def reach(self, wanted: int) -> None:
        """Scores the first ``wanted`` rows, or twice as many as before."""
        if wanted > len(self.rows) and not self.exhausted:
            self.rows = self._all[: max(wanted, 2 * len(self.rows))]
            self.scores = self._score(self.rows)
            self.exhausted = len(self.rows) == len(self._all)

    def expect(self, wanted: int) -> None:
        """Scores them."""
        self.reach(wanted)


class Search:
    """The eligible rows of a query, or of popularity, without the excluded ones. See ``Ranking``.

    method: of the latest search. scored: rows scored or fetched in all searches; rounds: how many there were.
    """

    def __init__(self, live: ServingVersion, query: Vectors | None, rules: ReadRules, eligible: Eligible | None):
        """Searches nothing yet.

        Args:
            live: the version.
            query: ``[dim] float32``; None ranks by popularity.
            rules: read for this version.
            eligible: the rows to rank; None is all that may be shown.
        """
        self._live, self._query, self._rules, self._eligible = live, query, rules, eligible
        self._nests = query is None or live.planner.nests(eligible, rules.utility)
        self._depth = 0
        self._all = _NO_ROWS
        self.rows, self.scores, self.exhausted = _NO_ROWS, _NO_SCORES, False
        self.method: Method = "empty"
        self.scored = self.rounds = 0

    @property
    def count(self) -> int:
        """Number of rows, the excluded ones included."""
        return self._live.num_alive if self._eligible is None else self._eligible.count

    def reach(self, wanted: int) -> None:
        """Goes on until ``wanted`` rows are known, or all."""
        while len(self.rows) < wanted and not self.exhausted:
            self._depth = max(1, min(self._next_depth(wanted), self.count))
            found = self._nearest(self._depth)
            self.method, self.exhausted = found.method, found.exhausted
            self.scored, self.rounds = self.scored + found.scored, self.rounds + 1
            self._add(found.neighbors)

    def expect(self, wanted: int) -> None:
        """One search for all, where each scores every row."""
        if self._nests:
            self.reach(wanted)

    def _next_depth(self, wanted: int) -> int:
        if self._depth and not self._nests:
            return _GROWTH * self._depth
        least = wanted if self._nests else TUNED_FOR
        return max(_GROWTH * self._depth, self._rules.fetch(self._live, least))

    def _nearest(self, depth: int) -> Nearest:
        if self._query is None:
            return popular(self._live, depth, self._eligible, self._rules)
        return self._live.planner.nearest(self._query, depth, self._eligible, self._rules.utility)

    def _add(self, found: Neighbors) -> None:
        rows, scores = found.rows, found.scores
        begun = len(self._all)
        if np.array_equal(rows[:begun], self._all):
            rows, scores = rows[begun:], scores[begun:]
        else:
            new = np.isin(rows, self._all, invert=True)
            rows, scores = rows[new], scores[new]
        self._all = np.concatenate([self._all, rows]) if begun else rows
        if len(self._rules.excluded):
            free = np.isin(rows, self._rules.excluded, invert=True)
            rows, scores = rows[free], scores[free]
        if len(self.rows):
            rows, scores = np.concatenate([self.rows, rows]), np.concatenate([self.scores, scores])
        self.rows, self.scores = rows, scores


def popular(live: ServingVersion, fetch: int, eligible: Eligible | None, rules: ReadRules) -> Nearest:
    """The most frequent eligible items; with a value weight, by ``log1p(events) + weight · log value``."""
    count = live.num_alive if eligible is None else eligible.count
    if rules.utility is None:
        rows = live.popularity.order
        first = rows[: fetch + live.num_items - count]
        rows = live.living(first) if eligible is None else rows[eligible.mask[rows]]
        found = Neighbors(rows[:fetch], live.popularity.scores[rows[:fetch]])
    else:
        rows = live.living(np.arange(live.num_items, dtype=np.int32)) if eligible is None else eligible.rows
        utilities = rules.utility.of(live.popularity.scores[rows], rows)
        found = Neighbors.best(utilities, fetch, rows, live.planner.ties)
    return Nearest(found, "popularity", fetch, fetch >= count)
