"""Two sources in one answer: the towers' candidates, and the user's own items, which people come back to.

Reads and writes nothing. An own item's strength is its recency-weighted frequency in the record's history,
``sum of action weight · 2^(-age / half-life)``. Own items take at most the configured share of the k places, spread
evenly over the answer; a rule that forbids an item forbids it in both sources.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.request import Request
from index.searcher import Rows


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


def interleaved(tower: Rows, own: Rows, k: int) -> npt.NDArray[np.int64]:
    """Returns the order of a blended answer, as places: 0.. in ``tower``, and ``len(tower)``.. in ``own``.

    The own items are spread evenly over the first k places; what the towers have beyond follows.

    Args:
        tower: ``[n] int32`` the towers' candidates without the own items, best first.
        own: ``[m] int32`` own items that may be shown, best first, at most k.
        k: places.
    """
    # At equal places the towers come first.
    where_tower = (np.arange(len(tower)) + 0.5) / max(k - len(own), 1)
    where_own = (np.arange(len(own)) + 0.5) / max(len(own), 1)
    order: npt.NDArray[np.int64] = np.argsort(np.concatenate([where_tower, where_own]), kind="stable")
    return order


def own_places(k: int, share: float) -> int:
    """How many of k places own items may take."""
    return int(share * k + 0.5)
