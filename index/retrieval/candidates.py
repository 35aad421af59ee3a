"""What the retriever answers: the candidates, how they were found, and what is known of the answer.

Reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows, Scores

if TYPE_CHECKING:
    from index.retrieval.explanation import Explanation

ColdStart = Literal["profile", "popularity"]
Method = Literal["search", "fetch", "leaves", "exact", "popularity", "empty"]

TOWERS = "towers"
OWN_ITEMS = "own items"
NEW_ITEMS = "new items"
POPULARITY = "popularity"
_SOURCE_DTYPE = np.dtype("<U10")


@dataclass(frozen=True, slots=True)
class Plan:
    """How a call was answered.

    method: "search" (nothing to filter: the searcher as tuned), "fetch" (the searcher asked for more than k, then
        filtered), "leaves" (eligible rows of the nearest leaves scored), "exact" (every eligible row scored),
        "popularity" (no vector: the most frequent eligible items), "empty" (no item is eligible).
    eligible: items that ``where`` and ``exclude`` leave.
    scored: rows that were scored exactly, or fetched from the searcher, all rounds together.
    rounds: how often the plan looked further.
    exhausted: no further eligible item exists: fewer than k are all there are.
    """

    method: Method
    eligible: int
    scored: int
    rounds: int
    exhausted: bool


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
