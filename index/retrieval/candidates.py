"""What the retriever returns: the candidates, and how they were found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from index.rules.plan import Plan
from index.search.searcher import Rows, Scores

ColdStart = Literal["profile", "popularity"]

TOWERS = "towers"
OWN_ITEMS = "own items"
NEW_ITEMS = "new items"
POPULARITY = "popularity"
_SOURCE_DTYPE = np.dtype("<U10")


@dataclass(frozen=True, slots=True)
class ItemExplanation:
    """What happened to one item in one call.

    score: what it was ranked by. leaf: its leaf of the tree; None with exact search. rank: among all items by exact
    search, 1 is the best; eligible_rank: its rank among those that ``where`` and ``exclude`` allow, None if they
    remove it. place: its place in the answer, 1 is the first; None if it was not returned. removed_by: the rule
    that removed it ("where ...", "exclude", "max_per ..."), "paused or removed" if a change did, "rank" if k better
    ones came first, "diversity", "blending" if the places went to other sources, or "search" if exact search would have
    returned it; None if it was returned.
    """

    item_id: Any
    score: float
    leaf: int | None
    rank: int
    eligible_rank: int | None
    place: int | None
    removed_by: str | None


class Explanation(Protocol):
    """Explains why an item was returned or not, in one call."""

    def of(self, item_id: Any) -> ItemExplanation:
        """Explains what happened to an item.

        Raises:
            SchemaError: the version has no such item.
        """


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answer to one call, best first.

    item_ids: ``[n]`` int64, or text as objects. scores: ``[n] float32``; with ``value_weight`` the utility.
    rows: ``[n] int32``, the items' places in this version. sources: ``[n]`` text: "towers", "own items",
    "new items" or "popularity". version: the version that answered; space: its vector space. fill: n / k.
    cold_start: None if the user's history or id was known; "profile" if only features were known; "popularity" if
    nothing was, or what was says nothing to the towers: then scores are log1p of the items' train events.
    unknown_history: history ids that are not in the catalogue. explanation: set with ``explain=True``. known_user:
    whether the tables have the user whose id was asked for; None where none was.
    """

    item_ids: npt.NDArray[Any]
    scores: Scores
    rows: Rows
    sources: npt.NDArray[np.str_]
    version: str
    space: str
    k: int
    plan: Plan
    cold_start: ColdStart | None = None
    unknown_history: int = 0
    explanation: Explanation | None = None
    known_user: bool | None = None

    @property
    def fill(self) -> float:
        """Candidates found, as a share of k."""
        return len(self.rows) / self.k

    def __len__(self) -> int:
        return len(self.rows)


class SourceLabels:
    """Read-only arrays of one repeated source, cached so that none is made per call."""

    def __init__(self) -> None:
        self._labels: dict[str, npt.NDArray[np.str_]] = {}

    def of(self, source: str, n: int) -> npt.NDArray[np.str_]:
        """``[n]`` times ``source``."""
        kept = self._labels.get(source)
        if kept is None or len(kept) < n:
            kept = np.full(max(n, 1024), source, _SOURCE_DTYPE)
            kept.flags.writeable = False
            self._labels[source] = kept
        return kept[:n]
