"""A start from linear algebra: truncated SVD of the degree-normalised user-item matrix.

Where users have rows of their own, the factors of ``D_u^-1/2 R D_i^-1/2`` (as in GF-CF, Shen et al. 2021) are already
a good pair of towers; training starts from them instead of from noise.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from towers.inputs import Events, TrainingData
from towers.model import TwoTowers


def start_from_svd(model: TwoTowers, data: TrainingData, events: Events) -> None:
    """Puts the factors into the rows of the id features of both sides; does nothing where a side has none."""
    user_id = next((feature.name for feature in data.features("user") if feature.kind == "id"), None)
    item_id = next((feature.name for feature in data.features("item") if feature.kind == "id"), None)
    if user_id is None or item_id is None or model.user_tower.profile is None:
        return
    matrix = _normalised(events, data.num_items)
    rank = min(model.settings.vector_dim, min(matrix.shape) - 1)
    if rank < 1:
        return
    left, values, right = randomized_svd(matrix, rank, n_iter=3, random_state=model.settings.embedding_dim)
    root = np.sqrt(values)
    for body, name, factors in (
        (model.user_tower.profile, user_id, left * root),
        (model.item_tower.body, item_id, right.T * root),
    ):
        table = body.tables[name].numpy()
        codes = (data.users if body is model.user_tower.profile else data.items)[name]
        known = codes > 1
        norms = np.sqrt(np.mean(np.sum(factors[known] ** 2, 1)))
        table[codes[known], :rank] = factors[known] / max(norms, 1e-12)
        body.tables[name].assign(table)


def _normalised(events: Events, items: int) -> scipy.sparse.csr_matrix:
    ones = np.ones(len(events.rows), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (events.user_of_event(), events.rows)), (events.users, items))
    matrix.data[:] = 1.0
    by_user = np.asarray(matrix.sum(1)).ravel()
    by_item = np.asarray(matrix.sum(0)).ravel()
    left = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_user, 1)))
    right = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_item, 1)))
    return (left @ matrix @ right).tocsr()
