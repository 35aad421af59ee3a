"""Two sources in one answer: the towers' candidates, and the user's own items, which people come back to.

Reads and writes nothing. An own item's strength is its recency-weighted frequency in the record's history,
``sum of action weight · 2^(-age / half-life)``. Own items take the configured share of the places, evenly spread, for
as long as there are any; a rule that forbids an item forbids it in both sources.
"""

from __future__ import annotations

import math

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


def interleaved(tower: Rows, own: Rows, share: float) -> npt.NDArray[np.int64]:
    """Returns the order of a blended answer, as places: 0.. in ``tower``, and ``len(tower)``.. in ``own``.

    Of every stretch of the answer the own items take ``share`` while they last. An item of both sources stands where
    it comes first. The order does not depend on how many candidates are asked for: a longer answer begins with the
    shorter one.

    Args:
        tower: ``[n] int32`` the towers' candidates, best first.
        own: ``[m] int32`` own items that may be shown, best first.
        share: of own items, above 0.
    """
    # At equal places the own items come first.
    where_own = (np.arange(len(own)) + 0.5) / share
    where_tower = (np.arange(len(tower)) + 0.5) / max(1.0 - share, 1e-9)
    order = np.lexsort((np.arange(len(tower) + len(own)) < len(tower), np.concatenate([where_tower, where_own])))
    _, first = np.unique(np.concatenate([tower, own])[order], return_index=True)
    kept: npt.NDArray[np.int64] = order[np.sort(first)]
    return kept


def own_places(k: int, share: float) -> int:
    """How many own items the first k places of a blended answer can hold."""
    return math.ceil(share * k)
