"""A user's preference for categories, in closed form: the content columns and the hidden layer behind them.

A user's preference for a category (any content value) grows with the log of how often the history has it. A vector
cannot hold thousands of categories; singular vectors give the best approximation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

Float = npt.NDArray[Any]

# Chosen on Complete Journey's validation weeks, where priors of 10 to 200 events and even weights did equally well: a
# category's count in a history is compared with its count in this many average events.
_PRIOR_EVENTS = 60.0
_WEIGHT = 0.2  # of each log, in logits
_SHARE_FLOOR = 1e-5  # rarer categories are treated as having this share
_RIDGE = 1e-3
_USERS = 8192  # at most, at even distances


@dataclass(frozen=True)
class Tastes:
    """``rows [values, dim]``: a row for each content value; ``items [items, dim]``: their sums; a history's sum of
    these goes through ``to_tastes [dim, units]``, ``log(1 + max(0, .))`` and ``of_tastes [units, dim]``.
    """

    rows: Float
    items: Float
    to_tastes: Float
    of_tastes: Float

    def of(self, history: scipy.sparse.csr_matrix) -> Float:
        """``[users, items]`` weights of events to ``[users, dim]``."""
        found: Float = np.log1p(np.maximum((history @ self.items) @ self.to_tastes, 0.0)) @ self.of_tastes
        return found


def fit_tastes(
    history: scipy.sparse.csr_matrix, events: int, codes: scipy.sparse.csr_matrix, dim: int, units: int
) -> Tastes:
    """Fits the tastes to the users' histories.

    Args:
        history: ``[users, items]`` the summed weights of a user's events with an item.
        events: number of these events.
        codes: ``[items, values]`` the weight of each content value in an item.
        dim: content columns of a vector.
        units: hidden units; the most frequent values get one each.

    Returns:
        Vectors whose products are the logs' weighted sums, as far as ``dim`` columns can hold them; zeros where there
        are fewer singular vectors than columns, or fewer values than units.
    """
    spread = np.unique(np.linspace(0, history.shape[0] - 1, _USERS).astype(np.int64))
    history = history[spread] if history.shape[0] > _USERS else history
    values = codes.shape[1]
    found = Tastes(*(np.zeros(shape, np.float32) for shape in _shapes(codes.shape[0], values, dim, units)))
    bought, total = (history @ codes).tocsr(), float(history.sum())
    shares = np.asarray(bought.sum(0)).ravel() / max(total, 1e-12)
    kept = np.sort(np.argsort(-shares, kind="stable")[:units])
    kept = kept[shares[kept] > 0]
    if len(kept) < 2 or history.shape[0] < 2:
        return found
    prior = _PRIOR_EVENTS * history.sum() / max(events, 1) * shares[kept]
    relative = bought[:, kept].toarray() / prior
    importance = np.sqrt(shares[kept] + _SHARE_FLOOR)
    weighted = np.log1p(relative) * (_WEIGHT * importance)
    rank = min(dim, *weighted.shape)
    _, _, right = randomized_svd(weighted, rank, n_iter=3, random_state=dim)
    found.rows[kept, :rank] = right.T / importance[:, None]
    found.items[:] = codes @ found.rows
    sums = (history @ found.items).astype(np.float64)
    gram = sums.T @ sums
    penalty = _RIDGE * max(float(np.trace(gram)) / dim, 1e-12)
    found.to_tastes[:, : len(kept)] = np.linalg.solve(gram + penalty * np.eye(dim), sums.T @ relative)
    found.of_tastes[: len(kept), :rank] = _WEIGHT * importance[:, None] * right.T
    return found


def _shapes(items: int, values: int, dim: int, units: int) -> list[list[int]]:
    return [[values, dim], [items, dim], [dim, units], [units, dim]]
