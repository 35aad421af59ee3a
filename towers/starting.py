"""A start from linear algebra: truncated SVD of the degree-normalised user-item matrix.

Where users have rows of their own, the factors of ``D_u^-1/2 R D_i^-1/2`` (as in GF-CF, Shen et al. 2021) are already
a good pair of towers; training starts from them instead of from noise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from pipelines.schema import Side
from towers.demand import fit_demand
from towers.encoders import FeatureSum
from towers.history_encoders import PooledHistory
from towers.inputs import DAY_US, Events, Int32, TrainingData
from towers.model import TwoTowers
from towers.moments import last_windows
from towers.settings import TowersSettings

Float = npt.NDArray[Any]

# Found on Complete Journey's validation weeks: the ridge regression's penalty an example, the share of the identity,
# without which what a household buys again ranks too low, and the length at which content is pooled, but ranks nothing
# by itself before it has been trained.
_RIDGE = 1e-2
_IDENTITY = 0.05
_CONTENT_NORM = 0.003


def start_from_svd(model: TwoTowers, data: TrainingData, events: Events) -> None:
    """Gives the towers their starting weights; without an id feature on the item side they stay as they are.

    Users with an id and no history: factors of the degree-normalised matrix. Else the right singular vectors of the
    users' square-root counts: a history pooled over them is its projection on the directions in which users
    differ most, and the content dimensions are filled. For windows, the pooled heads are mixed as ridge regression has
    it.
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
    own = model.settings.vector_dim - model.settings.content_dim
    svd = _svd(_root_counts(events, data.num_items, half_life), own)
    factors = svd.right if model.settings.item_norm == "free" else _scaled(svd.right)
    _fill(model.item_tower.body.tables[item_id], data.items[item_id], factors)
    content = _fill_content(model.item_tower.body, data, events, own, model.settings)
    demand = fit_demand(model.item_tower, data, events, model.settings.window_days)
    pool = model.user_tower.pool
    if model.settings.protocol == "windows" and isinstance(pool, PooledHistory):
        spectrum = np.concatenate(
            [svd.values, np.zeros(own - len(svd.values)), np.full(content.shape[1], svd.values[-1])]
        )
        padded = np.zeros((data.num_items, own), np.float32)
        padded[:, : factors.shape[1]] = factors
        mix = _ridge_mix(events, [padded, content], demand, model.settings)
        # The fourth root of the spectrum, half way between whitening and none, serves repeated and novel items alike.
        pool.mix.assign(mix * (spectrum / spectrum[0]) ** 0.25)


def _fill_content(body: FeatureSum, data: TrainingData, events: Events, start: int, settings: TowersSettings) -> Float:
    """Fills the content dimensions and returns them, ``[items, content_dim]``.

    Each value of a content feature gets its right singular vector of the users' square-root counts of the values they
    bought, rarer values weighing more: items of one kind lie together whether anyone bought them or not.
    """
    coded = [f for f in data.features("item") if f.kind in ("categorical", "list", "text")]
    dim = settings.content_dim
    if not dim or not coded:
        return np.zeros((data.num_items, dim), np.float32)
    parts = [body.code_weights(f.name, data.items[f.name]) for f in coded]
    codes = scipy.sparse.hstack(parts).tocsr()
    users = _matrix(events.user_of_event(), events.rows, None, events.users, data.num_items)
    users.data = np.sqrt(users.data)
    bought = (users @ codes).tocsr()
    bought.data = np.sqrt(bought.data)
    rarity = np.log(events.users / np.maximum(np.asarray((bought > 0).sum(0)).ravel(), 1))
    svd = _svd(_unit_rows(bought @ scipy.sparse.diags(np.sqrt(np.maximum(rarity, 0.05)))), dim)
    rows = svd.right * _CONTENT_NORM
    place = 0
    for feature, part in zip(coded, parts, strict=True):
        table = body.tables[feature.name]
        values = table.numpy()
        values[:, start : start + rows.shape[1]] = rows[place : place + part.shape[1]]
        table.assign(values)
        place += part.shape[1]
    vectors = np.zeros((data.num_items, dim), np.float32)
    vectors[:, : rows.shape[1]] = codes @ rows
    return vectors


@dataclass(frozen=True)
class _Svd:
    left: Float
    values: Float
    right: Float


def _svd(matrix: scipy.sparse.csr_matrix, dim: int) -> _Svd:
    left, values, right = randomized_svd(matrix, min(dim, min(matrix.shape) - 1), n_iter=2, random_state=dim)
    return _Svd(left.astype(np.float32), values.astype(np.float32), right.T.astype(np.float32))


def _ridge_mix(events: Events, blocks: list[Float], demand: Callable[[int], Float], settings: TowersSettings) -> Float:
    """``[heads * dim, dim]``: pooled histories to the projection of what follows, by ridge regression.

    Over the last windows of the train events: history before the window's start, target its items (unit rows).
    ``blocks`` are the parts of the item vectors that are pooled apart. Where what people buy again counts too, the
    head of the middle decay also keeps a share of the identity.
    """
    owner = events.user_of_event()
    factors = np.concatenate(blocks, 1)
    dim, heads = factors.shape[1], len(settings.decay_days)
    gram, target, examples = np.zeros((heads * dim, heads * dim)), np.zeros((heads * dim, dim)), 0
    for start, stop in last_windows(events, settings.window_days):
        before, after = events.times < start, (events.times >= start) & (events.times < stop)
        follows = _matrix(owner[after], events.rows[after], None, events.users, len(factors))
        follows.data[:] = 1.0
        lift = scipy.sparse.diags(demand(start))
        histories = [_head(events, owner, before, start, days, len(factors)) @ lift for days in settings.decay_days]
        pooled = np.hstack([_unit(history @ block) for history in histories for block in blocks])
        useful = (np.asarray(follows.sum(1)).ravel() > 0) & (np.abs(pooled).sum(1) > 0)
        if not useful.any():
            continue
        wanted = (_unit_rows(follows) @ factors)[useful]
        gram += pooled[useful].T @ pooled[useful]
        target += pooled[useful].T @ wanted
        examples += int(useful.sum())
    mix = np.linalg.solve(gram + np.eye(len(gram)) * (_RIDGE * examples + 1e-3), target)
    if settings.select != "novel":
        middle = heads // 2
        mix[middle * dim : (middle + 1) * dim] += _IDENTITY * np.eye(dim)
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
