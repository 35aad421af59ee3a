"""Retrieval metrics, one number per user: recall, NDCG, reciprocal rank, hit rate, weighted recall.

docs/metrics.md has the definitions with their sources. The corpus is never sampled. A ranking is
``[users, k] int32`` rows, best first, -1 after its end. A row that occurs twice counts only at its first place.
A user whose truth is empty has no value: NaN, ignored in every mean and counted by the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.contracts.arrays import Bools, Float64, Int32
from pipelines.contracts.errors import ConfigError
from pipelines.sequences.item_sets import ItemSets

# Number of users whose hits are looked up at once: bounds memory to some 100 MB at k = 500.
_USERS_AT_ONCE = 1 << 14


@dataclass(frozen=True)
class UserMetrics:
    """``[users, cut-offs] float64`` each, NaN for users without truth. ``k``: the cut-offs."""

    k: tuple[int, ...]
    recall: Float64
    ndcg: Float64
    mrr: Float64
    hit_rate: Float64

    def at(self, name: str, k: int) -> Float64:
        """``[users]`` values of one metric (a field's name) at one cut-off."""
        values: Float64 = getattr(self, name)
        return values[:, self.k.index(k)]


METRIC_NAMES = ("recall", "ndcg", "mrr", "hit_rate")


def hits_of(ranked: Int32, truth: ItemSets) -> Bools:
    """``[users, k] bool``: the row is in the user's truth and occurs for the first time.

    Args:
        ranked: ``[users, k] int32``.
        truth: the same users.
    """
    hits = np.zeros(ranked.shape, np.bool_)
    for start in range(0, len(ranked), _USERS_AT_ONCE):
        part = np.arange(start, min(start + _USERS_AT_ONCE, len(ranked)))
        found = truth.of_users(part).find(ranked[part])
        users, places = np.nonzero(found >= 0)
        # nonzero goes along each user's ranking, so that unique's first index is the best place.
        _, first = np.unique(found[users, places], return_index=True)
        hits[start + users[first], places[first]] = True
    return hits


def user_metrics(ranked: Int32, truth: ItemSets, k: tuple[int, ...]) -> UserMetrics:
    """Computes all metrics at all cut-offs.

    recall: ``|top-k ∩ truth| / min(k, |truth|)``. ndcg: binary gains, ``log2`` discount, divided by the best order's.
    mrr: 1 / place of the first hit, 0 if there is none in the top k. hit_rate: 1 if there is a hit.

    Args:
        ranked: ``[users, depth] int32``; a k above the depth uses all there is.
        truth: the same users.
        k: cut-offs of 1 or more.

    Raises:
        ConfigError: a cut-off is below 1, there is none, or ranking and truth are of different users.
    """
    check_cutoffs(k)
    check_users(ranked, truth)
    hits = hits_of(ranked, truth)
    depth = ranked.shape[1]
    sizes = truth.counts.astype(np.float64)
    none = sizes == 0
    discount = 1.0 / np.log2(np.arange(max(depth, *k)) + 2.0)
    ideal = np.concatenate([[0.0], np.cumsum(discount)])
    first = np.where(hits.any(axis=1), hits.argmax(axis=1), depth) if depth else np.zeros(len(hits), np.int64)
    values = {name: np.full((len(ranked), len(k)), np.nan) for name in METRIC_NAMES}
    for column, cut in enumerate(k):
        top = hits[:, :cut]
        best = np.minimum(sizes, cut)[~none]
        values["recall"][~none, column] = top.sum(axis=1)[~none] / best
        gained = top @ discount[: top.shape[1]]
        values["ndcg"][~none, column] = gained[~none] / ideal[best.astype(np.int64)]
        reached = first < min(cut, depth)
        values["mrr"][~none, column] = np.where(reached, 1.0 / (first + 1.0), 0.0)[~none]
        values["hit_rate"][~none, column] = reached[~none]
    return UserMetrics(k=k, **values)


def weighted_recall(ranked: Int32, truth: ItemSets, weights: Float64, k: int) -> Float64:
    """``[users] float64``: weight of the truth in the top k, as a share of the maximum for k items.

    With weights of 1 it equals recall. NaN if the truth has no weight.

    Args:
        ranked: ``[users, depth] int32``.
        truth: the same users.
        weights: ``[pairs] float64``, 0 or more, one per pair of the truth.
        k: 1 or more.

    Raises:
        ConfigError: k is below 1, or ranking and truth are of different users.
    """
    check_cutoffs((k,))
    check_users(ranked, truth)
    top = ranked[:, :k]
    users, places = np.nonzero(hits_of(top, truth))
    found = truth.find(top)[users, places]
    gained = np.bincount(users, weights[found], minlength=len(ranked))
    order = np.lexsort((-weights, truth.owners))
    rank = np.arange(len(order)) - np.repeat(truth.offsets[:-1], truth.counts)
    best = np.bincount(truth.owners, np.where(rank < k, weights[order], 0.0), minlength=len(ranked))
    return np.where(best > 0, gained / np.where(best > 0, best, 1.0), np.nan)


def without(ranked: Int32, removed: ItemSets, k: int) -> Int32:
    """``[users, k] int32``: the ranking with some rows of each user removed and the others moved up.

    Args:
        ranked: ``[users, depth] int32``.
        removed: the same users' rows to remove.
        k: number of rows to keep; padded with -1.
    """
    kept = (ranked >= 0) & ~removed.contains(ranked)
    place = np.cumsum(kept, axis=1) - 1
    users, columns = np.nonzero(kept & (place < k))
    result = np.full((len(ranked), k), -1, np.int32)
    result[users, place[users, columns]] = ranked[users, columns]
    return result


def check_cutoffs(k: tuple[int, ...]) -> None:
    """Checks that cut-offs are 1 or more.

    Raises:
        ConfigError: a cut-off is below 1, or there is none.
    """
    if not k or min(k) < 1:
        raise ConfigError(f"k: expected cut-offs of 1 or more, got {list(k)}. Ask for the top 1 at least.")


def check_users(ranked: Int32, truth: ItemSets) -> None:
    """Checks that a ranking and a truth have the same number of users.

    Raises:
        ConfigError: the numbers of users differ.
    """
    if ranked.ndim != 2 or len(ranked) != truth.num_users:
        raise ConfigError(
            f"ranking: expected shape ({truth.num_users}, k), one line per user of the truth, got {ranked.shape}. "
            "Rank the same users."
        )
