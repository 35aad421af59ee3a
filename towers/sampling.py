"""Batches: which users at which moment, which items are positives, which are candidates.

Vectorised NumPy over the sequences; no Python loop over examples. One generator a purpose, seeded by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from towers.inputs import DAY_US, Events, Int8, Int32, Int64
from towers.losses import log_inclusion
from towers.settings import TowersSettings

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Histories:
    """Padded histories, oldest first, left-aligned: ``rows [users, history] int32`` (-1: padding), ``ages_days
    [users, history] float32``, ``actions [users, history] int8``.
    """

    rows: Int32
    ages_days: Float32
    actions: Int8


@dataclass(frozen=True)
class Batch:
    """One step's examples.

    ``rows [unique]``: the items whose vectors the step needs. ``history [users, history]`` points into ``rows``
    (-1: padding), ``candidates [candidates]`` as well. A query is a user (or, with ``query_users`` and
    ``query_positions``, a position of a user's history). ``positives [pairs, 2]`` are (query, candidate), ``weights
    [pairs]`` add up to 1; ``seen [pairs, 2]`` are candidates that stand in the query's history; ``novel [pairs]``
    are the weights with repeated items left out.
    """

    rows: Int32
    users: Int32
    history: Int32
    ages_days: Float32
    actions: Int8
    candidates: Int32
    log_inclusion: Float32
    query_users: Int32
    query_positions: Int32
    positives: Int32
    weights: Float32
    novel: Float32
    seen: Int32


def ranges(starts: Int64, stops: Int64) -> Int64:
    """All integers of ``[starts[i], stops[i])``, one range after the other."""
    counts = stops - starts
    owners = np.repeat(np.arange(len(starts)), counts)
    before = np.cumsum(counts) - counts
    places: Int64 = np.arange(int(counts.sum()), dtype=np.int64) - before[owners] + starts[owners]
    return places


def histories(events: Events, starts: Int64, stops: Int64, now: Int64 | None, length: int) -> Histories:
    """The ``length`` newest of the events ``starts[i]`` to ``stops[i]`` of each user.

    Args:
        now: ``[users]`` the moment ages are counted to; None where times are no times: ages are 0.
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
    events: Events, users: Int32, split: int, now: int | None, length: int, *, timed: bool
) -> Histories:
    """What is known of ``users`` when ``split`` begins: their events of the splits before it."""
    known = events.before(split)
    starts, stops = known.offsets[users], known.offsets[users + 1]
    moments = None
    if timed:
        last = known.times[np.maximum(stops - 1, 0)] if len(known.times) else np.zeros(len(users), np.int64)
        moments = last if now is None else np.full(len(users), now, np.int64)
    return histories(known, starts, stops, moments, length)


class Sampler:
    """Makes the batches of an epoch.

    Args:
        events: what may be learned from, and nothing else.
        item_frequency: ``[items]`` train events of each item.
        settings: resolved.
        length: events in a history.
        timed: whether times are microseconds.
    """

    def __init__(
        self, events: Events, item_frequency: Int64, settings: TowersSettings, length: int, *, timed: bool
    ) -> None:
        self.events = events
        self.item_frequency = item_frequency
        self.settings = settings
        self.length = length
        self.timed = timed
        counts = np.diff(events.offsets)
        least = 1 if settings.protocol == "sets" else 2
        self.users = np.flatnonzero(counts >= least).astype(np.int32)
        self._clock = _Clock(events) if settings.protocol == "windows" else None

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        batches = -(-len(self.users) // self.settings.batch_users)
        return max(batches, self.settings.min_steps) if self._clock is not None else batches

    def epoch(self, generator: np.random.Generator) -> Iterator[Batch]:
        """The batches of one pass over the users, in random order."""
        done = 0
        while done < self.steps:
            order = self._order(generator)
            for start in range(0, len(order), self.settings.batch_users):
                if done == self.steps:
                    return
                chosen = order[start : start + self.settings.batch_users]
                done += 1
                batch = self._batch(np.sort(chosen), generator)
                if batch is not None:
                    yield batch

    def _order(self, generator: np.random.Generator) -> Int32:
        """Users in random order; where a batch is as wide as its longest history, like lengths stand together."""
        order = generator.permutation(self.users)
        if self.settings.protocol != "positions":
            return order
        size, counts = self.settings.batch_users, np.diff(self.events.offsets)
        # Sorted within pools of some batches: a batch's users still differ from epoch to epoch.
        pools = [order[start : start + 16 * size] for start in range(0, len(order), 16 * size)]
        ordered = np.concatenate([pool[np.argsort(counts[pool], kind="stable")] for pool in pools])
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        # The last batch is the smaller one wherever it stands: full batches are shuffled before it.
        mixed = [batches[place] for place in generator.permutation(len(batches) - 1)]
        return np.concatenate([*mixed, batches[-1]])

    def _batch(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        if self.settings.protocol == "windows":
            return self._windows(users, generator)
        if self.settings.protocol == "positions":
            return self._positions(users, generator)
        return self._sets(users, generator)

    def _windows(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        assert self._clock is not None
        cuts = self._clock.cuts(users, self.settings, generator)
        window_us = int(self.settings.window_days * DAY_US)
        starts = self.events.offsets[users]
        middles = self._clock.place(users, cuts)
        stops = self._clock.place(users, cuts + window_us)
        useful = (stops > middles) & (middles > starts)
        if not useful.any():
            return None
        users, cuts, starts = users[useful], cuts[useful], starts[useful]
        middles, stops = middles[useful], stops[useful]
        known = histories(self.events, starts, middles, cuts, self.length)
        queries = np.repeat(np.arange(len(users), dtype=np.int32), stops - middles)
        return self._assemble(users, known, queries, self.events.rows[ranges(middles, stops)], generator)

    def _positions(self, users: Int32, generator: np.random.Generator) -> Batch:
        stops = self.events.offsets[users + 1]
        starts = np.maximum(self.events.offsets[users], stops - self.length - 1)
        lengths = stops - 1 - starts
        known = histories(self.events, starts, stops - 1, None, int(lengths.max()))
        query_users = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
        query_positions = (ranges(np.zeros_like(lengths), lengths)).astype(np.int32)
        following = self.events.rows[ranges(starts + 1, stops)]
        queries = np.arange(len(following), dtype=np.int32)
        return self._assemble(users, known, queries, following, generator, query_users, query_positions)

    def _sets(self, users: Int32, generator: np.random.Generator) -> Batch:
        starts, stops = self.events.offsets[users], self.events.offsets[users + 1]
        queries = np.repeat(np.arange(len(users), dtype=np.int32), stops - starts)
        rows = self.events.rows[ranges(starts, stops)]
        if self.settings.history_encoder == "none":
            known = histories(self.events, starts, starts, None, 1)
            return self._assemble(users, known, queries, rows, generator)
        # The target must not stand in its own history: a random half is history, the rest are positives.
        hidden = generator.random(len(rows)) < 0.5
        hidden[np.unique(queries, return_index=True)[1]] = True
        kept = Events(
            np.concatenate([[0], np.cumsum(np.bincount(queries[~hidden], minlength=len(users)))]).astype(np.int64),
            rows[~hidden], np.zeros((~hidden).sum(), np.int64), np.zeros((~hidden).sum(), np.int8),
            np.zeros((~hidden).sum(), np.int8),
        )  # fmt: skip
        known = histories(kept, kept.offsets[:-1], kept.offsets[1:], None, self.length)
        return self._assemble(users, known, queries[hidden], rows[hidden], generator)

    def _assemble(
        self,
        users: Int32,
        known: Histories,
        queries: Int32,
        positive_rows: Int32,
        generator: np.random.Generator,
        query_users: Int32 | None = None,
        query_positions: Int32 | None = None,
    ) -> Batch:
        """Joins positives and uniform negatives into candidates, and finds everything's place."""
        items = len(self.item_frequency)
        width = np.int64(items)
        pairs = np.unique(queries.astype(np.int64) * width + positive_rows)
        queries, positive_rows = (pairs // width).astype(np.int32), (pairs % width).astype(np.int32)
        uniform = min(self.settings.uniform_negatives, items)
        drawn = generator.choice(items, uniform, replace=False, shuffle=False).astype(np.int32)
        candidate_rows = np.unique(np.concatenate([positive_rows, drawn]))
        rows = np.unique(np.concatenate([known.rows[known.rows >= 0], candidate_rows]))
        # Table lookups, not searches: places are found for hundreds of thousands of entries a step.
        place = np.full(items + 1, -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        candidate_place = np.full(items + 1, -1, np.int32)
        candidate_place[candidate_rows] = np.arange(len(candidate_rows), dtype=np.int32)
        counts = np.bincount(queries)
        weights = 1.0 / counts[queries] if query_users is None else np.ones(len(queries))
        positives = np.stack([queries, candidate_place[positive_rows]], 1)
        seen, novel = np.zeros((0, 2), np.int32), weights
        if self.settings.protocol == "windows" and self.settings.novel_weight > 0:
            seen, novel = _novel(known, candidate_place, queries, positive_rows, width)
        return Batch(
            rows=rows,
            users=users,
            history=place[known.rows],
            ages_days=known.ages_days,
            actions=known.actions,
            candidates=place[candidate_rows],
            log_inclusion=log_inclusion(self.item_frequency, candidate_rows, len(queries), uniform),
            query_users=np.arange(len(users), dtype=np.int32) if query_users is None else query_users,
            query_positions=np.zeros(len(users), np.int32) if query_positions is None else query_positions,
            positives=positives.astype(np.int32),
            weights=(weights / weights.sum()).astype(np.float32),
            novel=(novel / max(novel.sum(), 1e-9)).astype(np.float32),
            seen=seen,
        )


def _novel(
    known: Histories, candidate_place: Int32, queries: Int32, positive_rows: Int32, width: np.int64
) -> tuple[Int32, npt.NDArray[np.float64]]:
    """Places of the candidates a query's history has, and the positives' weights without repeated items."""
    owner, slot = np.nonzero(known.rows >= 0)
    seen_keys = np.unique(owner.astype(np.int64) * width + known.rows[owner, slot])
    owners, rows = seen_keys // width, seen_keys % width
    places = candidate_place[rows]
    seen = np.stack([owners, places], 1)[places >= 0]
    is_novel = ~np.isin(queries.astype(np.int64) * width + positive_rows, seen_keys)
    counts = np.bincount(queries[is_novel], minlength=int(queries.max(initial=0)) + 1)
    return seen.astype(np.int32), np.where(is_novel, 1.0 / np.maximum(counts[queries], 1), 0.0)


class _Clock:
    """Finds places in the events by user and time: one search over all users at once."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.first = int(events.times.min(initial=0)) if len(events.times) else 0
        seconds = (events.times - self.first) // 1_000_000
        self.span = int(seconds.max(initial=0)) + 2
        self.keys = events.user_of_event().astype(np.int64) * self.span + seconds
        self.last = int(events.times.max(initial=0))

    def place(self, users: Int32, moments: Int64) -> Int64:
        """``[users] int64`` the first event of each user at or after the moment (whole seconds)."""
        seconds = np.clip(-(-(moments - self.first) // 1_000_000), 0, self.span - 1)
        return np.searchsorted(self.keys, users.astype(np.int64) * self.span + seconds)

    def cuts(self, users: Int32, settings: TowersSettings, generator: np.random.Generator) -> Int64:
        """``[users]`` a moment for each user, such that an event of the user follows within the window.

        An event of the user is drawn, and a moment up to a window before it; not later than one window before the end
        of the data, so that the window is whole, where the user has events before that.
        """
        window_us = settings.window_days * DAY_US
        starts, stops = self.events.offsets[users], self.events.offsets[users + 1]
        anchors = self.events.times[(starts + generator.random(len(users)) * (stops - starts)).astype(np.int64)]
        cuts = anchors - generator.random(len(users)) * window_us
        earliest = self.events.times[starts] + 1_000_000
        latest = np.maximum(self.last - window_us, earliest)
        return np.clip(np.maximum(cuts, earliest), None, latest).astype(np.int64)
