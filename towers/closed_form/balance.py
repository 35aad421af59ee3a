"""The weights of history, tastes and demand in a score, by logistic regression.

Vectorised NumPy over the events. Each window's vectors are made only of the events before it, so that a weight measures
how well such vectors predict, not how well they remember.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
from sklearn.linear_model import LogisticRegression

from pipelines.sequences.event_lists import EventLists
from towers.data.moments import MovingCounts, last_windows
from towers.data.training_data import TrainingData
from towers.network.item_tower import hinges

Float = npt.NDArray[Any]

_WINDOWS = 2
_USERS = 512  # per window, evenly spaced
_POOL = 3000  # a user's best items, among which the weights should identify the next ones
_NEGATIVES = 200  # drawn of these
_PENALTY = 1e-4  # of a standardised column's squared weight, per pair
_BLOCK = 1 << 24  # scores at once
# Used if there is no window to learn from: the weights found on Complete Journey's windows.
_USUAL = (1.7, 0.5)


@dataclass(frozen=True)
class VectorBlocks:
    """Two blocks of columns: those of the history's items, ``own``, and those of their ``content``.

    ``items_own [items, own]``, ``items_content [items, content]``, likewise of users.
    """

    items_own: Float
    items_content: Float
    users_own: Float
    users_content: Float

    def of(self, users: npt.NDArray[np.int64]) -> VectorBlocks:
        """Only these users."""
        return VectorBlocks(self.items_own, self.items_content, self.users_own[users], self.users_content[users])


@dataclass(frozen=True)
class Balance:
    """A score in logits is ``scale * unit([own * user, content * user]) . item + hinges(counts) . demand``."""

    own: float
    content: float
    scale: float
    demand: Float


@dataclass(frozen=True)
class _Sample:
    """User-item pairs: products of both blocks, square lengths of the users' blocks, the items' counts."""

    own: Float
    content: Float
    own_square: Float
    content_square: Float
    demand: Float
    wanted: npt.NDArray[np.bool_]
    weights: Float

    def columns(self) -> Float:
        return np.column_stack([self.own, self.content, self.demand])

    def joint(self, own: float, content: float) -> Float:
        """The same with both blocks as one, of users of length 1."""
        lengths = np.sqrt(own**2 * self.own_square + content**2 * self.content_square)
        together = (own * self.own + content * self.content) / np.maximum(lengths, 1e-12)
        return np.column_stack([together, self.demand])

    @classmethod
    def join(cls, parts: list[_Sample]) -> _Sample:
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def find_balance(
    vectors_at: Callable[[EventLists, int], VectorBlocks], data: TrainingData, events: EventLists, window_days: float
) -> Balance:
    """The weights that best separate the last windows' new items from the others among a user's likeliest.

    Two rounds: the second draws its negatives among the likeliest by the weights of the first, so that they
    include items that the first round never had to rule out. Items a user had before are ignored.

    Args:
        vectors_at: returns vectors made of the events before a moment, for the users at that moment.
    """
    counts = MovingCounts(data, events, "item")
    rows = np.arange(data.num_items, dtype=np.int32)
    windows = []
    for start, stop in last_windows(events, window_days, _WINDOWS):
        before = events.window(None, start)
        seen = _pairs(before.where(data.weighs(before)), data.num_items)
        within = events.window(start, stop)
        novel = _novel(within.where(data.weighs(within)), seen)
        users = np.flatnonzero((np.diff(novel.indptr) > 0) & (np.diff(seen.indptr) > 0))
        if len(users):
            users = users[np.unique(np.linspace(0, len(users) - 1, _USERS).astype(np.int64))]
            made = vectors_at(before, start).of(users)
            windows.append(_Window(made, seen[users], novel[users], hinges(counts.at(rows, start)).numpy()))
    width = hinges(counts.at(rows[:1], 0)).shape[1]
    if not windows:
        return Balance(*_USUAL, 1.0, np.zeros(width))
    generator = np.random.default_rng(0)
    weights = np.concatenate([_USUAL, np.zeros(width)])
    parts: list[_Sample] = []
    for _ in range(2):
        parts += [window.sample(weights, generator) for window in windows]
        whole = _Sample.join(parts)
        if whole.wanted.all() or not whole.wanted.any():
            return Balance(*_USUAL, 1.0, np.zeros(width))
        weights = _logistic(whole.columns(), whole)
    own, content = np.maximum(weights[:2], 0.0)
    if own + content == 0:
        own, content = _USUAL
    scale, *demand = _logistic(whole.joint(own, content), whole)
    return Balance(float(own), float(content), max(float(scale), 1e-3), np.array(demand))


@dataclass(frozen=True)
class _Window:
    vectors: VectorBlocks
    seen: scipy.sparse.csr_matrix
    novel: scipy.sparse.csr_matrix
    demand: Float

    def sample(self, weights: Float, generator: np.random.Generator) -> _Sample:
        """A user's new items that are among the ``_POOL`` best by these weights, and some of the others there."""
        items = len(self.demand)
        size = min(_POOL, items)
        bias = self.demand @ weights[2:]
        users, rows, wanted, shares = [], [], [], []
        block = max(_BLOCK // items, 1)
        for start in range(0, self.novel.shape[0], block):
            part = slice(start, start + block)
            made = self.vectors
            scores = (weights[0] * made.users_own[part]) @ made.items_own.T
            scores += (weights[1] * made.users_content[part]) @ made.items_content.T + bias
            seen = self.seen[part].tocoo()
            scores[seen.row, seen.col] = -np.inf
            for place, best in enumerate(np.argpartition(-scores, size - 1, axis=1)[:, :size]):
                best = best[np.isfinite(scores[place, best])]
                own = slice(*self.novel.indptr[start + place : start + place + 2])
                is_new = np.isin(best, self.novel.indices[own])
                others = best[~is_new]
                drawn = generator.choice(others, min(_NEGATIVES, len(others)), replace=False)
                rows.append(np.concatenate([best[is_new], drawn]))
                users.append(np.full(len(rows[-1]), start + place))
                wanted.append(np.arange(len(rows[-1])) < is_new.sum())
                shares.append(np.where(wanted[-1], 1.0, len(others) / max(len(drawn), 1)))
        return self._of(*(np.concatenate(each) for each in (users, rows, wanted, shares)))

    def _of(self, users: Float, rows: Float, wanted: Float, weights: Float) -> _Sample:
        made = self.vectors
        own, content = made.users_own[users], made.users_content[users]
        return _Sample(
            own=np.einsum("nd,nd->n", own, made.items_own[rows]),
            content=np.einsum("nd,nd->n", content, made.items_content[rows]),
            own_square=np.einsum("nd,nd->n", own, own),
            content_square=np.einsum("nd,nd->n", content, content),
            demand=self.demand[rows],
            wanted=wanted,
            weights=weights,
        )


def _logistic(columns: Float, sample: _Sample) -> Float:
    """``[columns]`` the coefficients; those of columns that never change are 0."""
    columns = columns.astype(np.float64)
    scale = columns.std(0)
    scaled = (columns - columns.mean(0)) / np.where(scale > 0, scale, 1.0)
    fitted = LogisticRegression(C=1.0 / (_PENALTY * sample.weights.sum()), solver="newton-cholesky", max_iter=100)
    fitted.fit(scaled, sample.wanted, sample.weights)
    coefficients: Float = np.where(scale > 0, fitted.coef_[0] / np.where(scale > 0, scale, 1.0), 0.0)
    return coefficients


def _pairs(events: EventLists, items: int) -> scipy.sparse.csr_matrix:
    """``[users, items]``: 1 where a user had an item."""
    values = np.ones(len(events.rows), np.float32)
    pairs = scipy.sparse.csr_matrix((values, (events.owners, events.rows)), (events.num_users, items))
    pairs.sum_duplicates()
    pairs.data[:] = 1.0
    return pairs


def _novel(events: EventLists, seen: scipy.sparse.csr_matrix) -> scipy.sparse.csr_matrix:
    """The pairs of the events that did not occur before."""
    within = _pairs(events, seen.shape[1])
    novel = within - within.multiply(seen)
    novel.eliminate_zeros()
    return novel.tocsr()
