"""A start from linear algebra: truncated SVD of the degree-normalised user-item matrix.

Where users have rows of their own, the factors of ``D_u^-1/2 R D_i^-1/2`` (as in GF-CF, Shen et al. 2021) are already
a good pair of towers; training starts from them instead of from noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from pipelines.schema import Feature, Side
from towers.encoders import FeatureSum, PooledHistory
from towers.inputs import DAY_US, Events, Int32, TrainingData
from towers.model import TwoTowers
from towers.settings import TowersSettings

Float = npt.NDArray[Any]

# Found on Complete Journey's validation weeks: windows of the ridge regression, its penalty an example, and the share
# of the identity, without which what a household buys again ranks too low.
_RIDGE_WINDOWS = 5
_RIDGE = 1e-2
_IDENTITY = 0.05
_SHRINKAGE = 5.0


def start_from_svd(model: TwoTowers, data: TrainingData, events: Events) -> None:
    """Gives the towers their starting weights; without an id feature on the item side they stay as they are.

    Users with an id and no history: factors of the degree-normalised matrix. Else the right singular vectors of the
    users' square-root counts: a history pooled over them is its projection on the directions in which users
    differ most. Of each item's row, what its content features explain goes into their tables, so that a new ad starts
    where its like are; the id keeps the rest. For windows, the pooled heads are mixed as ridge regression has it.
    """
    item_id = _id_feature(data, "item")
    if item_id is None or min(events.users, data.num_items) < 2:
        return
    user_id = _id_feature(data, "user")
    profile = model.user_tower.profile
    if user_id is not None and profile is not None and model.settings.history_encoder == "none":
        svd = _svd(_degree_normalised(events, data.num_items), model.settings.vector_dim)
        root = np.sqrt(svd.values)
        _fill(profile.tables[user_id], data.users[user_id], _scaled(svd.left * root))
        _fill(model.item_tower.body.tables[item_id], data.items[item_id], _scaled(svd.right * root))
        return
    half_life = _middle(model.settings) if model.settings.protocol == "windows" else 0.0
    svd = _svd(_root_counts(events, data.num_items, half_life), model.settings.vector_dim)
    factors = svd.right if model.settings.item_norm == "free" else _scaled(svd.right)
    rest = _explain(model.item_tower.body, data, item_id, factors)
    _fill(model.item_tower.body.tables[item_id], data.items[item_id], rest)
    pool = model.user_tower.pool
    if model.settings.protocol == "windows" and isinstance(pool, PooledHistory):
        # The fourth root of the spectrum, half way between whitening and none, serves repeated and novel items alike.
        mix = _ridge_mix(events, factors, model.settings) * (svd.values / svd.values[0]) ** 0.25
        start = pool.mix.numpy()
        dim = start.shape[1]
        for head in range(pool.heads):
            part = mix[head * len(svd.values) : (head + 1) * len(svd.values)]
            start[head * dim : head * dim + len(part), : part.shape[1]] = part
        pool.mix.assign(start)


@dataclass(frozen=True)
class _Svd:
    left: Float
    values: Float
    right: Float


def _svd(matrix: scipy.sparse.csr_matrix, dim: int) -> _Svd:
    left, values, right = randomized_svd(matrix, min(dim, min(matrix.shape) - 1), n_iter=2, random_state=dim)
    return _Svd(left.astype(np.float32), values.astype(np.float32), right.T.astype(np.float32))


def _explain(body: FeatureSum, data: TrainingData, item_id: str, factors: Float) -> Float:
    """Fits the content tables to ``factors [items, dim]``, two rounds of shrunken means; returns what is left over."""
    rest = factors.copy()
    # Every known item counts the same: most are rare, and a new ad must not start as its kind's best seller.
    weight = (np.asarray(data.items[item_id], np.int64) > 1).astype(np.float32)
    coded = [f for f in data.features("item") if f.kind in ("categorical", "list", "text")]
    for _ in range(2):
        for feature in coded:
            table = body.tables[feature.name]
            codes = _code_matrix(body, feature, data.items[feature.name], int(table.shape[0]))
            weighted = codes.multiply(weight[:, None]).tocsr()
            mass = np.asarray(weighted.sum(0)).ravel()
            # As if each code had also been seen with 5 items that it says nothing of.
            step = np.asarray(weighted.T @ rest) / (mass + _SHRINKAGE)[:, None]
            values = table.numpy()
            values[:, : step.shape[1]] += step
            table.assign(values)
            rest -= codes @ step
    return rest


def _code_matrix(body: FeatureSum, feature: Feature, values: npt.NDArray[Any], size: int) -> scipy.sparse.csr_matrix:
    """``[items, codes]``: the weights with which ``FeatureSum`` adds up a feature's rows."""
    codes = values.reshape(len(values), -1)
    weights = (codes > 0).astype(np.float32)
    if feature.kind == "text":
        weights *= body.token_weights[feature.name].numpy()[codes]
    weights /= np.maximum(weights.sum(1, keepdims=True), 1e-12)
    rows = np.repeat(np.arange(len(codes)), codes.shape[1])
    return scipy.sparse.csr_matrix((weights.ravel(), (rows, codes.ravel())), (len(codes), size))


def _ridge_mix(events: Events, factors: Float, settings: TowersSettings) -> Float:
    """``[heads * rank, rank]``: pooled histories to the projection of what follows, by ridge regression.

    Over the last windows of the train events: history before the window's start, target its items (unit rows). The
    head of the middle decay also keeps a share of the identity, for what people buy again.
    """
    window = int(settings.window_days * DAY_US)
    last = int(events.times.max())
    owner = events.user_of_event()
    rank, heads = factors.shape[1], len(settings.decay_days)
    gram, target, examples = np.zeros((heads * rank, heads * rank)), np.zeros((heads * rank, rank)), 0
    for back in range(1, _RIDGE_WINDOWS + 1):
        start = last - back * window
        before, after = events.times < start, (events.times >= start) & (events.times < start + window)
        follows = _matrix(owner[after], events.rows[after], None, events.users, len(factors))
        follows.data[:] = 1.0
        pooled = np.hstack(
            [_unit(_head(events, owner, before, start, days, len(factors)) @ factors) for days in settings.decay_days]
        )
        useful = (np.asarray(follows.sum(1)).ravel() > 0) & (np.abs(pooled).sum(1) > 0)
        if not useful.any():
            continue
        wanted = (_unit_rows(follows) @ factors)[useful]
        gram += pooled[useful].T @ pooled[useful]
        target += pooled[useful].T @ wanted
        examples += int(useful.sum())
    mix = np.linalg.solve(gram + np.eye(len(gram)) * (_RIDGE * examples + 1e-3), target)
    middle = heads // 2
    mix[middle * rank : (middle + 1) * rank] += _IDENTITY * np.eye(rank)
    return mix.astype(np.float32)


def _head(
    events: Events, owner: Int32, kept: npt.NDArray[np.bool_], now: int, days: float, items: int
) -> scipy.sparse.csr_matrix:
    ages = (now - events.times[kept]) / DAY_US
    weights = np.exp(-ages / days) if days else np.ones(len(ages))
    return _matrix(owner[kept], events.rows[kept], weights, events.users, items)


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


def _unit(rows: Float) -> Float:
    unit: Float = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return unit


def _unit_rows(matrix: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(1)).ravel())
    return (scipy.sparse.diags(1.0 / np.maximum(norms, 1e-12)) @ matrix).tocsr()


def _matrix(owner: Int32, rows: Int32, weights: Float | None, users: int, items: int) -> scipy.sparse.csr_matrix:
    """``[users, items]`` with the weights (1 each) of repeated pairs added up."""
    values = np.ones(len(rows)) if weights is None else weights
    matrix = scipy.sparse.csr_matrix((values.astype(np.float32), (owner, rows)), (users, items))
    matrix.sum_duplicates()
    return matrix


def _root_counts(events: Events, items: int, decay_days: float) -> scipy.sparse.csr_matrix:
    """Square roots of counts, unit rows; with a decay the newest events count most, the oldest a quarter as much."""
    weights = np.ones(len(events.rows))
    if decay_days > 0:
        ages = (events.times.max() - events.times) / DAY_US
        weights = 0.3 + np.exp(-ages / decay_days)
    matrix = _matrix(events.user_of_event(), events.rows, weights, events.users, items)
    matrix.data = np.sqrt(matrix.data)
    return _unit_rows(matrix)


def _middle(settings: TowersSettings) -> float:
    return settings.decay_days[len(settings.decay_days) // 2]


def _degree_normalised(events: Events, items: int) -> scipy.sparse.csr_matrix:
    matrix = _matrix(events.user_of_event(), events.rows, None, events.users, items)
    matrix.data[:] = 1.0
    by_user, by_item = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    left = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_user, 1)))
    right = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_item, 1)))
    return (left @ matrix @ right).tocsr()
