"""A start from linear algebra: factors of the user-item matrix, in closed form or by alternating least squares.

Where users have rows of their own, the factors of ``D_u^-1/2 R D_i^-1/2`` (as in GF-CF, Shen et al. 2021) are already
a good pair of towers, and for events with a time those of implicit feedback (Hu et al. 2008) are; training starts from
them instead of from noise.
"""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.utils.extmath import randomized_svd

from pipelines.contracts.arrays import Int32
from pipelines.contracts.kinds.coded import Coded
from pipelines.contracts.schema import Side
from pipelines.sequences.event_lists import EventLists
from towers.closed_form.balance import Balance, VectorBlocks, find_balance
from towers.closed_form.tastes import Tastes, fit_tastes
from towers.data.training_data import DAY_US, TrainingData
from towers.network.encoders import FeatureSum
from towers.network.history_encoders import PooledHistory
from towers.network.model import TwoTowers
from towers.settings import WindowsSettings

Float = npt.NDArray[Any]

# Chosen on Complete Journey's validation weeks. Alternating least squares: the extra weight of a pair, and the penalty
# per pair of a user. Pooled histories to its users: the ridge regression's penalty, and the share of the identity, if
# only new items choose the weights and otherwise (none and .1 were equal there, .3 a percent worse).
_ALPHA, _ITERATIONS, _PENALTY = 2.0, 12, 0.1
_RIDGE = 0.3
_IDENTITY_OF_NOVEL, _IDENTITY = 0.1, 0.3


def start_from_svd(model: TwoTowers, data: TrainingData, events: EventLists) -> None:
    """Sets the towers' initial weights; without an id feature on the item side they stay as they are.

    Users with an id and no history: factors of the degree-normalised matrix. Else the right singular vectors of the
    users' square-root counts: a history pooled over them is its projection on the directions in which users
    differ most. For windows, factors of implicit feedback, and the pooled heads are mixed as ridge regression has it;
    the content columns are filled (``towers.closed_form.tastes``), and logistic regression finds what each counts
    (``towers.closed_form.balance``). What has weight 0 in ``[actions]`` is in no such matrix, though in histories.
    """
    item_id = _id_feature(data, "item")
    if item_id is None or min(events.num_users, data.num_items) < 2:
        return
    user_id = _id_feature(data, "user")
    profile = model.user_tower.profile
    taken = events.where(data.weighs(events))
    if user_id is not None and profile is not None and model.settings.history_encoder == "none":
        svd = _svd(_degree_normalised(taken, data.num_items), model.settings.vector_dim)
        root = np.sqrt(svd.values)
        _fill(profile.tables[user_id], data.users[user_id], _scaled(svd.left * root))
        _fill(model.item_tower.body.tables[item_id], data.items[item_id], _scaled(svd.right * root))
        return
    if model.settings.protocol == "windows" and isinstance(model.user_tower.pool, PooledHistory):
        _start_windows(model, model.settings, data, events, item_id)
        return
    svd = _svd(_root_counts(taken, data.num_items), model.item_tower.body.own_dim)
    factors = svd.right if model.settings.item_norm == "free" else _scaled(svd.right)
    _fill(model.item_tower.body.tables[item_id], data.items[item_id], factors)


def _start_windows(
    model: TwoTowers, settings: WindowsSettings, data: TrainingData, events: EventLists, item_id: str
) -> None:
    pool, body = model.user_tower.pool, model.item_tower.body
    shown = np.array([name in settings.negative_actions for name in data.schema.action_names])
    # A plain mean is one head, whatever the settings say about others.
    settings = settings.model_copy(update={"decay_days": pool.decay_days})
    coded = [f.name for f in data.features("item") if isinstance(f, Coded) and f.kind != "id"]
    coded = coded if settings.content_dim else []
    codes = [body.code_weights(name, data.items[name]) for name in coded]

    def read(known: EventLists) -> EventLists:
        """Drops events that were shown and not taken: they weigh almost nothing in a history (``TwoTowers``)."""
        return known.where(~shown[known.actions]) if shown.any() else known

    def made_of(known: EventLists, now: int) -> _WindowsStart:
        return _start_of(read(known), known.where(data.weighs(known)), now, data.num_items, codes, settings, pool.parts)

    def vectors_at(known: EventLists, now: int) -> VectorBlocks:
        return made_of(known, now).vectors(read(known), now, settings)

    balance = find_balance(vectors_at, data, events, settings.window_days)
    now = int(events.times.max()) + 1
    made = made_of(events, now).balanced(read(events), now, settings, balance, float(model.temperature))
    _fill(body.tables[item_id], data.items[item_id], made.factors)
    pool.mix.assign(made.mix)
    if made.tastes is not None:
        pool.to_tastes.assign(made.tastes.to_tastes)
        pool.of_tastes.assign(made.tastes.of_tastes)
        _fill_content(body, coded, made.tastes.rows)
    if model.item_tower.demand is not None:
        model.item_tower.demand.assign(balance.demand[:, None])


def _fill_content(body: FeatureSum, names: list[str], rows: Float) -> None:
    """Writes the content values' ``rows``, feature after feature, into the columns that content fills alone."""
    place = 0
    for name in names:
        table = body.tables[name]
        values = table.numpy()
        values[:, body.own_dim : body.own_dim + rows.shape[1]] = rows[place : place + len(values)]
        table.assign(values)
        place += len(values)


@dataclass(frozen=True)
class _WindowsStart:
    """A closed-form start for windows: ``factors [items, own]``, ``mix [heads * own, own]``, and tastes, if any."""

    factors: Float
    mix: Float
    tastes: Tastes | None

    def vectors(self, events: EventLists, now: int, settings: WindowsSettings) -> VectorBlocks:
        """The vectors of all items, and of all users as they are known at ``now``."""
        owner, known = events.owners, events.times < now
        items = len(self.factors)
        heads = [_head(events, owner, known, now, days, items) for days in settings.decay_days]
        users = np.hstack([_unit(head @ self.factors) for head in heads]) @ self.mix
        if self.tastes is None:
            return VectorBlocks(self.factors, np.zeros((items, 0)), users, np.zeros((len(users), 0)))
        return VectorBlocks(self.factors, self.tastes.items, users, self.tastes.of(heads[0]))

    def balanced(
        self, events: EventLists, now: int, settings: WindowsSettings, balance: Balance, temperature: float
    ) -> _WindowsStart:
        """The same, so that a unit user's product with an item, over the temperature, is the balance's logit.

        Users have a root-mean-square length of 1 before they are made unit vectors.
        """
        found = self.vectors(events, now, settings)
        squares = balance.own**2 * np.square(found.users_own).sum(1)
        squares += balance.content**2 * np.square(found.users_content).sum(1)
        usual, longer = max(float(np.sqrt(squares.mean())), 1e-12), balance.scale * temperature
        tastes = self.tastes
        if tastes is not None:
            tastes = dataclasses.replace(
                tastes,
                rows=tastes.rows * longer,
                items=tastes.items * longer,
                to_tastes=tastes.to_tastes / longer,
                of_tastes=tastes.of_tastes * (balance.content / usual),
            )
        return _WindowsStart(self.factors * longer, self.mix * (balance.own / usual), tastes)


def _start_of(
    events: EventLists,
    taken: EventLists,
    now: int,
    items: int,
    codes: list[scipy.sparse.csr_matrix],
    settings: WindowsSettings,
    parts: list[int],
) -> _WindowsStart:
    """Of all that histories have, ``events``, those that the users' factors are made of were ``taken``."""
    own, content = parts
    fitted = _implicit_factors(_matrix(taken.owners, taken.rows, None, taken.num_users, items), own)
    factors = _scaled(fitted.items)
    mix = _ridge_mix(events, now, factors, fitted.users, settings)
    tastes = None
    if codes:
        owner = events.owners
        history = _head(events, owner, events.times < now, now, settings.decay_days[0], items)
        tastes = fit_tastes(history, len(events.rows), scipy.sparse.hstack(codes).tocsr(), content, settings.tastes)
    # The same scale for every catalogue: root-mean-square length 1 for items and users.
    users = np.linalg.norm(_WindowsStart(factors, mix, None).vectors(events, now, settings).users_own, axis=1)
    usual = max(float(np.sqrt(np.mean(np.square(users)))), 1e-12)
    return _WindowsStart(factors, (mix / usual).astype(np.float32), tastes)


@dataclass(frozen=True)
class _Svd:
    left: Float
    values: Float
    right: Float


def _svd(matrix: scipy.sparse.csr_matrix, dim: int) -> _Svd:
    left, values, right = randomized_svd(matrix, min(dim, min(matrix.shape) - 1), n_iter=2, random_state=dim)
    return _Svd(left.astype(np.float32), values.astype(np.float32), right.T.astype(np.float32))


def _ridge_mix(events: EventLists, now: int, factors: Float, users: Float, settings: WindowsSettings) -> Float:
    """``[heads * dim, dim]``: histories pooled over ``factors [items, dim]`` to the ``users``, by ridge regression.

    The head of the middle decay also keeps a share of the identity, for items that people buy again.
    """
    owner, dim, heads = events.owners, factors.shape[1], len(settings.decay_days)
    known = events.times < now
    histories = [_head(events, owner, known, now, days, len(factors)) for days in settings.decay_days]
    pooled = np.hstack([_unit(history @ factors) for history in histories])
    gram = pooled.T @ pooled
    mix = np.linalg.solve(gram + np.eye(len(gram)) * (_RIDGE * len(pooled) / len(gram)), pooled.T @ users)
    share = _IDENTITY_OF_NOVEL if settings.select == "novel" else _IDENTITY
    middle = heads // 2
    usual = np.sqrt(np.mean(np.square(pooled @ mix).sum(1)))
    mix[middle * dim : (middle + 1) * dim] += share * usual * np.eye(dim)
    return mix


@dataclass(frozen=True)
class _Factors:
    users: Float
    items: Float


def _implicit_factors(counts: scipy.sparse.csr_matrix, dim: int) -> _Factors:
    """Factors of implicit feedback (Hu et al. 2008, equations 4 and 5): whether a user had an item, not how often."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # The library's progress bars look for a notebook's widgets; ours are not needed.
        warnings.filterwarnings("ignore", message="IProgress not found")
        from implicit.cpu.als import AlternatingLeastSquares
    pairs = counts.copy()
    pairs.data[:] = 1.0
    penalty = _PENALTY * pairs.nnz / max(pairs.shape[0], 1)
    # Its own threads and those of BLAS would compete; it warns if they may.
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=dim, alpha=_ALPHA, regularization=penalty, iterations=_ITERATIONS, random_state=dim
        )
        model.fit(pairs, show_progress=False)
    return _Factors(np.asarray(model.user_factors), np.asarray(model.item_factors))


def _head(
    events: EventLists, owner: Int32, kept: npt.NDArray[np.bool_], now: int, days: float, items: int
) -> scipy.sparse.csr_matrix:
    ages = (now - events.times[kept]) / DAY_US
    weights = np.exp(-ages / days) if days else np.ones(len(ages))
    return _matrix(owner[kept], events.rows[kept], weights, events.num_users, items)


def _id_feature(data: TrainingData, side: Side) -> str | None:
    return next((feature.name for feature in data.features(side) if feature.kind == "id"), None)


def _scaled(factors: Float) -> Float:
    """Rows of root-mean-square norm 1."""
    return factors / max(float(np.sqrt(np.mean(np.sum(factors**2, 1)))), 1e-12)


def _fill(table: Any, codes: npt.NDArray[Any], factors: Float) -> None:
    """Writes the factors of all known codes into the first columns of their rows."""
    values = table.numpy()
    known = np.flatnonzero(codes > 1)
    # Those that share a code, as hashed ids may, have their mean.
    found, places, shared = np.unique(codes[known], return_inverse=True, return_counts=True)
    means = scipy.sparse.csr_matrix((1.0 / shared[places], (places, known)), (len(found), len(factors)))
    values[found, : factors.shape[1]] = means @ factors
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


def _root_counts(events: EventLists, items: int) -> scipy.sparse.csr_matrix:
    """Square roots of counts, unit rows."""
    matrix = _matrix(events.owners, events.rows, None, events.num_users, items)
    matrix.data = np.sqrt(matrix.data)
    return _unit_rows(matrix)


def _degree_normalised(events: EventLists, items: int) -> scipy.sparse.csr_matrix:
    matrix = _matrix(events.owners, events.rows, None, events.num_users, items)
    matrix.data[:] = 1.0
    by_user, by_item = (np.asarray(matrix.sum(axis)).ravel() for axis in (1, 0))
    left = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_user, 1)))
    right = scipy.sparse.diags(1.0 / np.sqrt(np.maximum(by_item, 1)))
    return (left @ matrix @ right).tocsr()
