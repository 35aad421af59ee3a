"""Baselines fitted on the same past and ranked for the same users: popularity, own frequency, item-kNN, ALS.

Reads ``sequences/`` through ``EventLists``. Item-kNN and ALS are those of the library ``implicit`` (extra ``[demo]``).
All are fitted on every event before the test part that counts, including each user's own, and an event counts as much
as its action weighs.
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
from index.evaluation.sections.own_frequency import (
    chosen_half_life,
    own_strengths,
    own_then_popular,
    popular_order,
    popular_without,
)
from index.evaluation.settings import SEED, BaselineName, EvaluationSettings
from index.evaluation.subject import EvaluationData
from pipelines.contracts.arrays import Float64, Int32
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError
from pipelines.progress import SILENT, Progress
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.strengths import by_item, strengths

# Of the two learned baselines (library ``implicit``).
_KNN_NEIGHBORS = 500
_ALS_FACTORS, _ALS_ITERATIONS = 64, 15


@dataclass(frozen=True)
class _Task:
    """What a baseline is fitted on and ranked for. strengths: ``[past events] float64``, the weights of the actions."""

    data: EvaluationData
    settings: EvaluationSettings
    k: int
    strengths: Float64
    progress: Progress

    @property
    def past(self) -> EventLists:
        return self.data.past

    @property
    def held_out(self) -> HeldOut:
        return self.data.held_out

    @property
    def order(self) -> Int32:
        """The catalogue by popularity."""
        return popular_order(by_item(self.past, self.strengths, self.data.num_items))


def rank_baseline(
    name: BaselineName, data: EvaluationData, settings: EvaluationSettings, *, progress: Progress = SILENT
) -> Rankings:
    """Fits one baseline and ranks the held-out users with it, as deep as the largest cut-off.

    Args:
        name: of the baseline.
        data: the events to fit it on, of all users, and the users to rank for.
        settings: cut-offs and days.
        progress: shows what was chosen on the validation part.

    Raises:
        ConfigError: item-kNN or ALS is asked for, and ``implicit`` is not installed.
    """
    weights = strengths(data.past, data.schema.action_weights)
    return _BASELINES[name](_Task(data, settings, min(settings.k[-1], data.num_items), weights, progress))


def _popularity(task: _Task) -> Rankings:
    return _same_for_all(task, task.order)


def _recent_popularity(task: _Task) -> Rankings:
    """Events of the last days before the test part; without times every event counts."""
    past, counted = task.past, task.strengths
    if task.data.timed:
        recent = past.times > past.times.max(initial=0) - task.settings.recent_days * US_PER_DAY
        counted = np.where(recent, counted, 0.0)
    return _same_for_all(task, popular_order(by_item(past, counted, task.data.num_items)))


def _same_for_all(task: _Task, order: Int32) -> Rankings:
    served = np.tile(order[: task.k], (task.held_out.num_users, 1))
    return Rankings(served, popular_without(order, task.held_out.seen, task.k))


def _own_frequency(task: _Task) -> Rankings:
    """The user's most frequent items, ties by popularity; then the popular items."""
    return _own(task, None)


def _own_decayed(task: _Task) -> Rankings:
    """The same with the half-life chosen on the validation part; without times there is none."""
    chosen = None
    if task.data.timed:
        chosen = chosen_half_life(task.past, task.data.schema.action_weights, task.data.num_items)
    days = "no decay" if chosen is None else f"a half-life of {chosen:g} days"
    task.progress.line(f"baseline own_decayed: {days}, chosen on the validation part")
    return _own(task, chosen)


def _own(task: _Task, half_life_days: float | None) -> Rankings:
    known = task.past.of_users(task.held_out.users)
    own = own_strengths(known, task.data.schema.action_weights, half_life_days)
    order = task.order
    return Rankings(own_then_popular(own, order, task.k), popular_without(order, task.held_out.seen, task.k))


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
        (task.strengths.astype(np.float32), (past.owners, past.rows)), shape=(past.num_users, task.data.num_items)
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
            "'towerline[demo]', or leave them out: evaluation.baselines = ['popularity', 'recent_popularity', "
            "'own_frequency', 'own_decayed']."
        )


_BASELINES: dict[BaselineName, Callable[[_Task], Rankings]] = {
    "popularity": _popularity,
    "recent_popularity": _recent_popularity,
    "own_frequency": _own_frequency,
    "own_decayed": _own_decayed,
    "item_knn": _item_knn,
    "als": _als,
}
