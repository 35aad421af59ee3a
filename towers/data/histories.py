"""Padded histories: the newest events of each user before a place in the sequences, or before a split.

Vectorised NumPy over the sequences, no TensorFlow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipelines.contracts.arrays import Float32, Int8, Int32, Int64
from pipelines.sequences.event_lists import EventLists
from towers.data.training_data import DAY_US


@dataclass(frozen=True)
class Histories:
    """Padded histories, oldest first, left-aligned: ``rows [users, history] int32`` (-1: padding), ``ages_days
    [users, history] float32``, ``actions [users, history] int8``.
    """

    rows: Int32
    ages_days: Float32
    actions: Int8


def histories(events: EventLists, starts: Int64, stops: Int64, now: Int64 | None, length: int) -> Histories:
    """The ``length`` newest of the events ``starts[i]`` to ``stops[i]`` of each user.

    Args:
        now: ``[users]`` the moment ages are counted to; None if events have no real times: ages are 0.
    """
    starts = np.maximum(starts, stops - length)
    counts = stops - starts
    places = starts[:, None] + np.arange(length)
    mask = np.arange(length) < counts[:, None]
    places = np.where(mask, places, 0)
    if len(events.rows) == 0:
        empty = np.zeros(mask.shape)
        return Histories(np.full(mask.shape, -1, np.int32), empty.astype(np.float32), empty.astype(np.int8))
    ages = np.zeros(mask.shape, np.float32)
    if now is not None:
        ages = ((now[:, None] - events.times[places]) / DAY_US).astype(np.float32)
    return Histories(
        np.where(mask, events.rows[places], -1).astype(np.int32),
        np.where(mask, np.maximum(ages, 0), 0).astype(np.float32),
        np.where(mask, events.actions[places], 0).astype(np.int8),
    )


def request_histories(
    events: EventLists, users: Int32, split: int, now: int | None, length: int, *, timed: bool
) -> Histories:
    """The histories of ``users`` when ``split`` begins: their events of the splits before it."""
    known = events.before(split)
    starts, stops = known.offsets[users], known.offsets[users + 1]
    moments = None
    if timed:
        last = known.times[np.maximum(stops - 1, 0)] if len(known.times) else np.zeros(len(users), np.int64)
        moments = last if now is None else np.full(len(users), now, np.int64)
    return histories(known, starts, stops, moments, length)
