"""Baselines of the users' own past: how often they chose an item, and the same with recency; then the popular items.

The half-life of the second is the one whose rankings, made of train events alone, find most of the validation part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from index.evaluation.measures.metrics import user_metrics, without
from pipelines.contracts.arrays import Float64, Int32
from pipelines.contracts.schema import SPLITS
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.strengths import HALF_LIVES_DAYS, by_item, strengths

_VALID = SPLITS.index("valid")
# The half-life is chosen by the geometric mean of recall at these, as towers are by default.
_CHOSEN_AT = (20, 100)
# Number of users it is chosen on.
_CHOSEN_ON = 5000
_USERS_AT_ONCE = 1024


def own_strengths(events: EventLists, weights: Sequence[float], half_life_days: float | None) -> ItemSets:
    """Each user's items; ``values`` are the sums of their events' strengths. Ages count from the user's last event."""
    newest = np.zeros(events.num_users, np.int64)
    some = events.counts > 0
    newest[some] = events.times[events.offsets[1:][some] - 1]
    counted = strengths(events, weights, half_life_days, newest[events.owners])
    return ItemSets.of(events.owners, events.rows, events.num_users, counted)


def own_then_popular(own: ItemSets, order: Int32, k: int) -> Int32:
    """``[users, k] int32``: each user's items by falling value, ties by popularity; then the popular items.

    Args:
        own: the users' items.
        order: ``[items] int32`` the most popular first.
        k: how deep; -1 after the end.
    """
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    best = np.lexsort((rank[own.rows], -own.values, own.owners))
    place = np.arange(len(best)) - np.repeat(own.offsets[:-1], own.counts)
    kept = place < k
    first = np.full((own.num_users, k), -1, np.int32)
    first[own.owners[kept], place[kept]] = own.rows[best][kept]
    return without(np.concatenate([first, popular_without(order, own, k)], axis=1), _nothing(own.num_users), k)


def popular_without(order: Int32, removed: ItemSets, k: int) -> Int32:
    """``[users, k] int32``: the first of an order that are not in the user's set, -1 after the end.

    Args:
        order: ``[items] int32``, the most popular first.
        removed: one set for each user.
        k: how deep.
    """
    found = np.full((removed.num_users, k), -1, np.int32)
    for start in range(0, removed.num_users, _USERS_AT_ONCE):
        places = np.arange(start, min(start + _USERS_AT_ONCE, removed.num_users), dtype=np.int64)
        own = removed.of_users(places)
        depth = min(len(order), k + int(own.counts.max(initial=0)))
        found[places] = without(np.tile(order[:depth], (len(places), 1)), own, k)
    return found


def chosen_half_life(past: EventLists, weights: Sequence[float], items: int) -> float | None:
    """The half-life in days whose rankings of the train events find most of the validation part; None: no decay.

    Args:
        past: events before the test part, with times, of actions that count.
        weights: of each action, by its code.
        items: size of the catalogue.
    """
    valid = HeldOut.of(past, _VALID, weights).spread(_CHOSEN_ON)
    train = past.before(_VALID)
    if valid.num_users == 0 or train.num_events == 0:
        return None
    order = popular_order(by_item(train, strengths(train, weights), items))
    known = train.of_users(valid.users)
    cuts = tuple(sorted({min(cut, items) for cut in _CHOSEN_AT}))
    found: list[float] = []
    for half_life in HALF_LIVES_DAYS:
        ranked = own_then_popular(own_strengths(known, weights, half_life), order, cuts[-1])
        recall = user_metrics(ranked, valid.truth, cuts).recall.mean(axis=0)
        found.append(float(np.log(np.maximum(recall, 1e-9)).mean()))
    return HALF_LIVES_DAYS[int(np.argmax(found))]


def popular_order(strength: Float64) -> Int32:
    """``[items] int32`` rows, the strongest first; ties by row."""
    order: Int32 = np.argsort(-strength, kind="stable").astype(np.int32)
    return order


def _nothing(users: int) -> ItemSets:
    return ItemSets.of(np.zeros(0, np.int64), np.zeros(0, np.int32), users)
