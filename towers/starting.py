"""A start from linear algebra: truncated SVD of the degree-normalised user-item matrix.

Where users have rows of their own, the factors of ``D_u^-1/2 R D_i^-1/2`` (as in GF-CF, Shen et al. 2021) are already
a good pair of towers; training starts from them instead of from noise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from pipelines.schema import Side
from towers.inputs import Events, TrainingData
from towers.model import TwoTowers

Float = npt.NDArray[Any]


def start_from_svd(model: TwoTowers, data: TrainingData, events: Events) -> None:
    """Puts the factors into the rows of the id features of both sides.

    Users with an id: the degree-normalised matrix, both factors. Else the items' factors alone, of the users' log
    counts with unit rows: a history pooled over them is its projection on the directions in which users differ most,
    and an item's length says how much of it they keep. A side without an id feature stays as it is.
    """
    user_id = _id_feature(data, "user")
    item_id = _id_feature(data, "item")
    with_users = user_id is not None and model.settings.history_encoder == "none"
    matrix = _degree_normalised(events, data.num_items) if with_users else _log_counts(events, data.num_items)
    rank = min(model.settings.vector_dim, min(matrix.shape) - 1)
    if item_id is None or rank < 1:
        return
    left, values, right = randomized_svd(matrix, rank, n_iter=2, random_state=model.settings.embedding_dim)
    if with_users:
        root = np.sqrt(values)
        _fill(model.user_tower.profile.tables[user_id], data.users[user_id], _scaled(left * root))
        _fill(model.item_tower.body.tables[item_id], data.items[item_id], _scaled(right.T * root))
        return
    # The fourth root of the spectrum (half way between whitening and none) served all and novel items alike.
    factors = right.T * (values / values[0]) ** 0.25
    free = model.settings.item_norm == "free"
    _fill(model.item_tower.body.tables[item_id], data.items[item_id], factors if free else _scaled(factors))


def _id_feature(data: TrainingData, side: Side) -> str | None:
    return next((feature.name for feature in data.features(side) if feature.kind == "id"), None)


def _scaled(factors: Float) -> Float:
    """Rows of root-mean-square norm 1."""
    return factors / max(float(np.sqrt(np.mean(np.sum(factors**2, 1)))), 1e-12)


def _fill(table: Any, codes: npt.NDArray[Any], factors: Float) -> None:
    """Writes the factors of all known codes into the first columns of their rows."""
    values = table.numpy()
    known = codes > 1
    values[codes[known], : factors.shape[1]] = factors[known]
    table.assign(values)


def _counts(events: Events, items: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(events.rows), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (events.user_of_event(), events.rows)), (events.users, items))
    matrix.sum_duplicates()
    return matrix


def _log_counts(events: Events, items: int) -> scipy.sparse.csr_matrix:
    matrix = _counts(events, items)
    matrix.data = np.log1p(matrix.data)
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return (scipy.sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ matrix).tocsr()


def _degree_normalised(events: Events, items: int) -> scipy.sparse.csr_matrix:
    matrix = _counts(events, items)
    matrix.data[:] = 1.0
    by_user, by_item = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    left = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_user, 1)))
    right = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_item, 1)))
    return (left @ matrix @ right).tocsr()
