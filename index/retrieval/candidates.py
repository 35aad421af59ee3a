"""What the retriever answers: the candidates, how they were found, and what is known of the answer."""

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
    """What became of one item in one call.

    score: what it was ranked by. leaf: of the tree; None with exact search. rank: its place among all items by exact
    search, 1 is the best; eligible_rank: among those that ``where`` and ``exclude`` leave, None where they remove it.
    place: in the answer, 1 is the first; None where it did not come back. removed_by: the rule that removed it
    ("where ...", "exclude", "max_per ..."), "rank" where k better ones came first, "diversity", "blending" where
    the places went to other sources, or "search" where exact search would have returned it; None where it came back.
    """

    item_id: Any
    score: float
    leaf: int | None
    rank: int
    eligible_rank: int | None
    place: int | None
    removed_by: str | None


class Explanation(Protocol):
    """Answers why an item was returned, or was not, in one call."""

    def of(self, item_id: Any) -> ItemExplanation:
        """What became of an item.

        Raises:
            SchemaError: the version has no such item.
        """


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answer to one call, best first.

    item_ids: ``[n]`` int64, or text as objects. scores: ``[n] float32``; with ``value_weight`` the utility.
    rows: ``[n] int32``, the items' places in this version. sources: ``[n]`` text: "towers", "own items",
    "new items" or "popularity". version: the bundle that answered; space: of its vectors. fill: n / k.
    cold_start: None where the user's history or id was known; "profile" where only features were; "popularity" where
    nothing was, and then scores are log1p of the items' train events. unknown_history: history ids that the catalogue
    does not have. explanation: with ``explain=True``.
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

    @property
    def fill(self) -> float:
        """Candidates found, as a share of those asked for."""
        return len(self.rows) / self.k

    def __len__(self) -> int:
        return len(self.rows)


class SourceLabels:
    """Arrays of one repeated source, handed out without making a new one each time. Read-only."""

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
