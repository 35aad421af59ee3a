"""Several sources in one answer: the towers' candidates, the user's own items, and new ads.

Reads and writes nothing. People come back to their own items: the strength of one is its recency-weighted frequency in
the record's history, ``sum of action weight · 2^(-age / half-life)``. New ads rank behind those that have sold where
lengths are free: the best of them for the user, by the towers, may have places of their own. Each source takes its
configured share of the places, evenly spread, for as long as it lasts; a rule that forbids an item forbids it in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from index.inference.records import Request
from index.search.searcher import Rows


def own_items(request: Request, action_weights: npt.NDArray[np.float64], half_life_days: float) -> Rows:
    """Returns the history's distinct rows, the strongest first, ties to the later event.

    Args:
        request: the record's whole known history.
        action_weights: ``[actions] float64`` by action code.
        half_life_days: days after which an event counts half. Without times all events count alike.
    """
    rows = request.all_rows
    if len(rows) == 0:
        return rows
    weights = np.ones(len(rows)) if request.all_actions is None else action_weights[request.all_actions]
    if request.all_ages_days is not None:
        weights = weights * np.exp2(-request.all_ages_days.astype(np.float64) / half_life_days)
    distinct, inverse = np.unique(rows, return_inverse=True)
    strength = np.bincount(inverse, weights)
    latest = np.zeros(len(distinct), np.int64)
    np.maximum.at(latest, inverse, np.arange(len(rows)))
    return distinct[np.lexsort((-latest, -strength))].astype(np.int32)


def interleaved(sources: Sequence[Rows], shares: Sequence[float]) -> npt.NDArray[np.int64]:
    """Returns the order of a blended answer, as places in the concatenated sources.

    Of every beginning of the answer a source has its share while it lasts, to within half an item between two sources,
    and ``1/2 + share * (n - 2) / 2`` items among n (the j-th item of each stands where a Sainte-Lague apportionment
    has it). An item of several sources stands where it comes first. The order does not depend on how many candidates
    are asked for: a longer answer begins with the shorter one.

    Args:
        sources: ``[n] int32`` each, best first. At equal places the earlier source comes first.
        shares: of each source.
    """
    wanted = [(np.arange(len(rows)) + 0.5) / max(share, 1e-9) for rows, share in zip(sources, shares, strict=True)]
    # Stable: what stands at the same place stays in the order of the sources.
    order = np.argsort(np.concatenate(wanted), kind="stable")
    _, first = np.unique(np.concatenate(sources)[order], return_index=True)
    kept: npt.NDArray[np.int64] = order[np.sort(first)]
    return kept


def places_of(k: int, share: float) -> int:
    """How many items of a source the first k places of a blended answer can hold, of three sources at most."""
    return math.ceil(share * k)
