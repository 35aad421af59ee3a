"""Baselines fitted on the same past and ranked for the same users: popularity, own frequency, item-kNN, ALS.

Reads ``sequences/`` through ``EventLists``. Item-kNN and ALS are those of the library ``implicit`` (extra ``[demo]``).
All are fitted on every event before the test part, including each user's own.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index.evaluation.measures.metrics import without
from index.evaluation.ranking import Rankings
from index.evaluation.settings import SEED, BaselineName, EvaluationSettings
from pipelines.contracts.arrays import Int32
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets

_USERS_AT_ONCE = 1024
# Of the two learned baselines (library ``implicit``).
_KNN_NEIGHBORS = 500
_ALS_FACTORS, _ALS_ITERATIONS = 64, 15


@dataclass(frozen=True)
class _Task:
    past: EventLists
    items: int
    held_out: HeldOut
    settings: EvaluationSettings
    k: int


def rank_baseline(
    name: BaselineName, past: EventLists, items: int, held_out: HeldOut, settings: EvaluationSettings
) -> Rankings:
    """Fits one baseline and ranks the held-out users with it, as deep as the largest cut-off.

    Args:
        name: of the baseline.
        past: the events to fit it on, of all users.
        items: size of the catalogue.
        held_out: the users to rank for.
        settings: cut-offs and days.

    Raises:
        ConfigError: item-kNN or ALS is asked for, and ``implicit`` is not installed.
    """
    task = _Task(past, items, held_out, settings, min(settings.k[-1], items))
    return _BASELINES[name](task)


def popularity_order(rows: Int32, items: int) -> Int32:
    """``[items] int32`` rows, the most frequent first; ties by row."""
    order: Int32 = np.argsort(-np.bincount(rows, minlength=items), kind="stable").astype(np.int32)
    return order


def _popularity(task: _Task) -> Rankings:
    return _same_for_all(task, popularity_order(task.past.rows, task.items))


def _recent_popularity(task: _Task) -> Rankings:
    """Events of the last days before the test part; without times (all are 0) every event counts."""
    past = task.past
    newest = past.times.max(initial=0)
    recent = past.times > newest - task.settings.recent_days * US_PER_DAY
    return _same_for_all(task, popularity_order(past.rows[recent], task.items))


def _same_for_all(task: _Task, order: Int32) -> Rankings:
    users, k = task.held_out.num_users, task.k
    served = np.tile(order[:k], (users, 1))
    return Rankings(served, _unseen_of_order(order, task.held_out.seen, k))


def _unseen_of_order(order: Int32, seen: ItemSets, k: int) -> Int32:
    novel = np.full((seen.num_users, k), -1, np.int32)
    for start in range(0, seen.num_users, _USERS_AT_ONCE):
        places = np.arange(start, min(start + _USERS_AT_ONCE, seen.num_users), dtype=np.int64)
        past = seen.of_users(places)
        depth = min(len(order), k + int(past.counts.max(initial=0)))
        novel[places] = without(np.tile(order[:depth], (len(places), 1)), past, k)
    return novel


def _own_frequency(task: _Task) -> Rankings:
    """The user's most frequent items, ties by popularity; then the popular items."""
    seen, k = task.held_out.seen, task.k
    order = popularity_order(task.past.rows, task.items)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    novel = _unseen_of_order(order, seen, k)
    best = np.lexsort((rank[seen.rows], -seen.events, seen.owners))
    served = np.full((seen.num_users, 2 * k), -1, np.int32)
    place = np.arange(len(best)) - np.repeat(seen.offsets[:-1], seen.counts)
    kept = place < k
    served[seen.owners[kept], place[kept]] = seen.rows[best][kept]
    served[:, k:] = novel
    nothing = ItemSets.of(np.zeros(0, np.int64), np.zeros(0, np.int32), seen.num_users)
    return Rankings(without(served, nothing, k), novel)


def _item_knn(task: _Task) -> Rankings:
    make = _library("nearest_neighbours").CosineRecommender
    return _implicit(task, lambda: make(K=_KNN_NEIGHBORS))


def _als(task: _Task) -> Rankings:
    make = _library("als").AlternatingLeastSquares
    return _implicit(task, lambda: make(factors=_ALS_FACTORS, iterations=_ALS_ITERATIONS, random_state=SEED))


def _library(module: str) -> Any:
    """A module of ``implicit``."""
    check_implicit()
    with warnings.catch_warnings():
        # Its progress bars look for a notebook's widgets; ours are not needed.
        warnings.filterwarnings("ignore", message="IProgress not found")
        return importlib.import_module(f"implicit.{module}")


def _implicit(task: _Task, make: Callable[[], Any]) -> Rankings:
    from scipy.sparse import csr_matrix
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    past = task.past
    counts = csr_matrix(
        (np.ones(len(past.rows), np.float32), (past.owners, past.rows)), shape=(past.num_users, task.items)
    )
    # Its own threads and those of BLAS would compete; it warns if they may.
    with threadpool_limits(1, "blas"), warnings.catch_warnings():
        # The library converts a matrix it made itself, and warns of that.
        warnings.filterwarnings("ignore", message="Method expects CSR input")
        model = make()
        model.fit(counts, show_progress=False)
        places = task.held_out.users.astype(np.int32)
        asked = [
            model.recommend(places, counts[places], N=task.k, filter_already_liked_items=novel)[0]
            for novel in (False, True)
        ]
    served, novel = (_as_ranking(rows, task.k) for rows in asked)
    # If few items are left, implicit fills up with items it should have left out.
    return Rankings(served, without(novel, task.held_out.seen, task.k))


def _as_ranking(rows: npt.NDArray[Any], k: int) -> Int32:
    ranked = np.full((len(rows), k), -1, np.int32)
    ranked[:, : rows.shape[1]] = rows
    return ranked


def check_implicit() -> None:
    """Checks that the library ``implicit`` is installed.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("implicit") is None:
        raise ConfigError(
            "evaluation.baselines: item_knn and als need the library implicit, which is not installed. Install "
            "'towerline[demo]', or set evaluation.baselines = ['popularity', 'recent_popularity', 'own_frequency']."
        )


_BASELINES: dict[BaselineName, Callable[[_Task], Rankings]] = {
    "popularity": _popularity,
    "recent_popularity": _recent_popularity,
    "own_frequency": _own_frequency,
    "item_knn": _item_knn,
    "als": _als,
}
