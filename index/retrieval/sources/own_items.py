"""The items the user interacted with before, strongest first: people return to them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from index.inference.records import Request
from index.search.searcher import Rows


def own_items(request: Request, action_weights: npt.NDArray[np.float64], half_life_days: float) -> Rows:
    """Returns the history's distinct rows, strongest first; ties go to the later event.

    The strength of an item is its recency-weighted frequency: ``sum of action weight * 2^(-age / half-life)``. Events
    of weight 0 are context: an item that was only shown is not the user's own.

    Args:
        request: the record's whole known history.
        action_weights: ``[actions] float64`` by action code.
        half_life_days: days after which an event counts half. Without times all events count the same.
    """
    rows = request.all_rows
    if len(rows) == 0:
        return rows
    weights = np.ones(len(rows)) if request.all_actions is None else action_weights[request.all_actions]
    counts = weights > 0
    if request.all_ages_days is not None:
        weights = weights * np.exp2(-request.all_ages_days.astype(np.float64) / half_life_days)
    places = np.flatnonzero(counts)
    distinct, inverse = np.unique(rows[places], return_inverse=True)
    strength = np.bincount(inverse, weights[places], len(distinct))
    latest = np.zeros(len(distinct), np.int64)
    np.maximum.at(latest, inverse, places)
    return distinct[np.lexsort((-latest, -strength))].astype(np.int32)
