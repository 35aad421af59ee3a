"""Exact validation: held-out events of a split, the vectors of their users, recall over the whole corpus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Int32
from pipelines.sequences.held_out import held_out_events, truth_by_action
from towers.data.histories import Histories, request_histories
from towers.data.moments import Moving, side_by_side
from towers.data.training_data import Features, TrainingData
from towers.network.model import TwoTowers, all_item_vectors
from towers.runtime import tf
from towers.settings import TowersSettings
from towers.training.recall import Figures, recall_at


def split_start_us(data: TrainingData, split: int) -> int | None:
    """The moment ``split`` (1: valid, 2: test) begins: from the schema or of rolling windows, or the first held-out
    event if all earlier splits' events precede it. None if there is no such moment: then each user's own last event is
    used.
    """
    schema, events = data.schema, data.events
    bounds = schema.split.bounds(data.window)
    if bounds is not None and schema.tables.events.time is not None:
        return bounds[split - 1]
    held, known = events.times[events.splits == split], events.times[events.splits < split]
    if schema.tables.events.time is None or not len(held) or (len(known) and known.max() >= held.min()):
        return None
    return int(held.min())


@dataclass(frozen=True)
class TowerVectors:
    """``items [items, embedding_dim]`` and ``users [users, embedding_dim] float32``."""

    items: npt.NDArray[np.float32]
    users: npt.NDArray[np.float32]


def user_vectors(
    model: TwoTowers,
    item_vectors: npt.NDArray[np.float32],
    users: Int32,
    moving: npt.NDArray[np.float32],
    known: Histories,
    block: int = 256,
) -> npt.NDArray[np.float32]:
    """``[users, embedding_dim]`` of users with these ``moving`` columns (``[users, widths or 0]``) and histories."""
    table = tf.constant(item_vectors)
    vectors = np.zeros((len(users), item_vectors.shape[1]), np.float32)
    # Users with similar numbers of events go together, and a block is as wide as its longest history: padding costs as
    # much as events.
    lengths = (known.rows >= 0).sum(1)
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(users), block):
        part = order[start : start + block]
        width = slice(max(int(lengths[part[-1]]), 1))
        batch = {
            "users": tf.constant(users[part]),
            "user_moving": tf.constant(moving[part]),
            "history": tf.constant(known.rows[part, width]),
            "ages_days": tf.constant(known.ages_days[part, width]),
            "actions": tf.constant(known.actions[part, width]),
        }
        vectors[part] = model.user_tower(model.user_inputs(table, batch)).numpy()
    return vectors


@dataclass(frozen=True)
class KnownAtSplit:
    """What is known when a split begins: the users' ``histories``, and the features of all items and of the users that
    change with the moment, ``{name: [rows, width] float32}``; empty if the split has no such moment.
    """

    histories: Histories
    item_moving: Features
    user_moving: Features


def known_at(data: TrainingData, users: Int32, split: int) -> KnownAtSplit:
    """What is known about the catalogue and ``users`` when ``split`` begins."""
    timed = data.schema.tables.events.time is not None
    start = split_start_us(data, split)
    histories = request_histories(data.events, users, split, start, data.schema.history.max_length, timed=timed)
    if start is None:
        return KnownAtSplit(histories, {}, {})
    before = data.events.before(split)
    rows = np.arange(data.num_items, dtype=np.int32)
    items, owners = Moving(data, before, "item"), Moving(data, before, "user")
    return KnownAtSplit(histories, items.columns(rows, start), owners.columns(users, start))


def all_vectors(model: TwoTowers, data: TrainingData, users: Int32, split: int) -> TowerVectors:
    """Vectors of the catalogue, and of ``users`` as known when ``split`` begins."""
    known = known_at(data, users, split)
    items = all_item_vectors(model, side_by_side(known.item_moving, data.num_items))
    moving = side_by_side(known.user_moving, len(users))
    return TowerVectors(items, user_vectors(model, items, users, moving, known.histories))


def evaluate(
    model: TwoTowers,
    data: TrainingData,
    split: int,
    ks: tuple[int, ...],
    max_users: int | None = None,
    names: tuple[str, ...] = ("all", "novel"),
) -> dict[str, Figures]:
    """Figures of ``split`` by name: ``all`` ranks everything; ``novel`` leaves out items the user had before, in the
    ranking and in the truth. Only those in ``names``; if there are several actions, also ``all <action>`` for each:
    only that action's held-out events.
    """
    weights = data.schema.action_weights
    held_out = data.held_out(split)
    if max_users is not None:
        held_out = held_out.spread(max_users)
    vectors = all_vectors(model, data, held_out.users, split)
    items, users = vectors.items, vectors.users
    figures = {}
    if "all" in names:
        figures["all"] = recall_at(users, items, held_out, ks, remove_seen=False)
    if "novel" in names:
        novel = held_out.without_seen()
        figures["novel"] = recall_at(users[np.isin(held_out.users, novel.users)], items, novel, ks, remove_seen=True)
    if len(weights) == 1:
        return figures
    sets = truth_by_action(data.events, split, weights, held_out.users)
    for action, weight, truth in zip(data.schema.action_names, weights, sets, strict=True):
        if weight == 0:
            continue
        own = held_out.with_truth(truth)
        figures[f"all {action}"] = recall_at(
            users[np.isin(held_out.users, own.users)], items, own, ks, remove_seen=False
        )
    return figures


def can_evaluate(data: TrainingData, split: int) -> bool:
    """Whether any event of an action that counts is held out in ``split``."""
    return held_out_events(data.events, split, data.schema.action_weights).num_events > 0


def selecting(settings: TowersSettings) -> tuple[str, ...]:
    """Names of the figures that choose the weights."""
    return ("all", "novel") if settings.select == "both" else (settings.select,)


def selection(figures: dict[str, Figures], settings: TowersSettings) -> float:
    """The number that early stopping uses: the geometric mean of the chosen capped recalls over ``select_k``.

    Geometric, because recall of novel items is a fraction of that of all: a relative change of either counts the same.
    """
    recalls = [figures[name].capped_recall[k] for name in selecting(settings) for k in settings.select_k]
    return float(np.exp(np.mean(np.log(np.maximum(recalls, 1e-9)))))
