"""Batches: which users at which moment, which items are positives, which are candidates.

Vectorised NumPy over the sequences; no Python loop over examples. One generator per purpose, seeded by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Float64, Int32, Int64
from pipelines.contracts.errors import SchemaError
from pipelines.sequences.event_lists import EventLists, offsets_of, ranges
from towers.data.batches import Batch
from towers.data.histories import Histories, histories
from towers.data.inclusion import Takers, log_inclusion
from towers.data.moments import MomentSampler
from towers.data.places import Places, different
from towers.data.training_data import TrainingData
from towers.settings import TowersSettings


@dataclass(frozen=True)
class _Targets:
    """The targets of a batch's queries, before candidates are drawn.

    ``targets [n]`` are places of events, each sought by the query ``queries [n]``, for which it counts ``credits [n]``.
    ``others`` are (query, row), as ``_taken`` has them, that are not negatives, including the positives; None: only
    the positives. A query is a user, or, with ``users`` and ``positions [queries]``, one at a position.
    """

    queries: Int32
    targets: Int64
    credits: Float64
    others: Int64 | None = None
    users: Int32 | None = None
    positions: Int32 | None = None

    @classmethod
    def of_users(cls, queries: Int32, targets: Int64, others: Int64 | None = None) -> _Targets:
        """One query per user; all its targets count the same."""
        return cls(queries, targets, np.ones(len(targets)), others)


@dataclass(frozen=True)
class _Baskets:
    """Events of one user at one moment, none of which is used to predict another: ``of_event [events] int64`` the
    number of each event's basket, ascending; ``starts [baskets + 1]`` their first events.
    """

    of_event: Int64
    starts: Int64

    @classmethod
    def of(cls, events: EventLists, owners: Int32) -> _Baskets:
        """All baskets of the events, whose users are ``owners [events]``."""
        begins = np.ones(len(owners), np.bool_)
        begins[1:] = (owners[1:] != owners[:-1]) | (events.times[1:] != events.times[:-1])
        return cls(np.cumsum(begins) - 1, np.append(np.flatnonzero(begins), len(owners)))

    def begins(self, baskets: Int64) -> Int64:
        """The first event of each of these; beyond the last one, the end."""
        return self.starts[np.minimum(baskets, len(self.starts) - 1)]


@dataclass(frozen=True)
class _Moment:
    """When a batch is, microseconds, and how many users were drawn for it, whether they were there or not."""

    us: int
    drawn: int


@dataclass(frozen=True, eq=False)
class _Drawn:
    """``takers`` of every item, and ``events_each [items] float64``: the mean number of their events of it."""

    takers: Takers
    events_each: Float64


class Sampler:
    """Makes the batches of an epoch.

    Args:
        data: the catalogue and its features.
        events: the events to learn from, and no others. A positive has the weight of its event's action in
            ``[actions]``, the largest if a query has it several times; 0: context only, never a positive.
        settings: resolved.

    Raises:
        SchemaError: nothing could be a positive.
    """

    def __init__(self, data: TrainingData, events: EventLists, settings: TowersSettings) -> None:
        self.events = events
        self.settings = settings
        self.items = data.num_items
        self.length = data.schema.history.max_length
        weights = np.array(data.schema.action_weights)
        self._strengths, self._counts = weights[events.actions], weights > 0
        taken = data.weighs(events)
        owners = events.owners
        least = 1 if settings.protocol == "sets" else 2
        self.users = np.flatnonzero(np.diff(events.offsets) >= least).astype(np.int32)
        self._baskets = _Baskets.of(events, owners) if settings.protocol == "positions" else None
        drawn = self._drawn_from(owners, taken)
        self._takers, self._events_each = drawn.takers, drawn.events_each
        if not drawn.takers.number.any() or not len(self.users):
            raise SchemaError(
                f"expected users with {least} or more events to learn from, some of them of an action that weighs "
                f"something; got {len(self.users)} such users, and {int(drawn.takers.number.sum())} pairs of a user "
                "and an item to be found by what the user did before. Check [split] and [actions]."
            )
        names = data.schema.action_names
        self._shown: Float64 | None = None
        if settings.negative_actions:
            self._shown = np.array([settings.negative_actions.get(name, 0.0) for name in names])[events.actions]
        self._mined = (
            None if data.mined is None else _untaken(data.mined, owners[taken], events.rows[taken], self.items)
        )
        self._uniform = min(settings.uniform_negatives, self.items)
        self._places, self._candidate_places = Places(self.items), Places(self.items)
        self._lookahead = settings.lookahead if settings.protocol == "positions" else 0.0
        self._reach = _reach(self._lookahead, self.length)
        self._activity_power = 0.0 if settings.protocol == "positions" else settings.activity_power
        self._moments = MomentSampler(data, events, taken, settings) if settings.protocol == "windows" else None

    def _drawn_from(self, owners: Int32, taken: npt.NDArray[np.bool_]) -> _Drawn:
        """The users that may bring each item into an epoch's batches as a positive.

        For sequences, by the events that have earlier ones in the part that is read; else by a user's distinct items,
        and if histories hide some (``_hidden``), with the probability of being hidden. (For windows it depends on the
        moment; here it is everything that was taken.)
        """
        rows, keys = self.events.rows, owners.astype(np.int64) * self.items + self.events.rows
        if self._baskets is not None:
            starts, stops = self.events.offsets[:-1], self.events.offsets[1:]
            oldest = np.maximum(starts, stops - self.length - 1)[owners]
            taken = taken & (self._baskets.of_event > self._baskets.of_event[oldest])
        users, found = self._parts(different(keys[taken]))
        number = np.bincount(found, minlength=self.items).astype(np.float64)
        events_each = np.bincount(rows[taken], minlength=self.items) / np.maximum(number, 1.0)
        if self.settings.protocol != "sets" or self.settings.history_encoder == "none":
            return _Drawn(Takers(number), events_each)
        each = np.bincount(self._parts(different(keys))[0], minlength=self.events.num_users)[users]
        hidden = np.bincount(found, (each + 1) / (2 * each), self.items)
        return _Drawn(Takers(number, hidden / np.maximum(number, 1.0)), events_each)

    @property
    def steps(self) -> int:
        """Batches in an epoch."""
        batches = -(-len(self.users) // self.settings.batch_users)
        return batches if self.settings.protocol == "sets" else max(batches, self.settings.min_steps)

    def epoch(self, generator: np.random.Generator) -> Iterator[Batch]:
        """The batches of one pass over the users, in random order, or several passes if ``min_steps`` asks for them."""
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
        """Users in random order; if a batch is as wide as its longest history, similar lengths are put together."""
        order = generator.permutation(self.users)
        if self.settings.protocol != "positions":
            return order
        size, counts = self.settings.batch_users, np.diff(self.events.offsets)
        # Sorted within pools of some batches: a batch's users still differ from epoch to epoch.
        pools = [order[start : start + 16 * size] for start in range(0, len(order), 16 * size)]
        ordered = np.concatenate([pool[np.argsort(counts[pool], kind="stable")] for pool in pools])
        batches = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        # The last batch is the smaller one and stays last: the full batches are shuffled before it.
        mixed = [batches[place] for place in generator.permutation(len(batches) - 1)]
        return np.concatenate([*mixed, batches[-1]])

    def _batch(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        if self.settings.protocol == "windows":
            return self._windows(users, generator)
        if self.settings.protocol == "positions":
            return self._positions(users, generator)
        return self._sets(users, generator)

    def _windows(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        """All users at one moment, so that an item has one vector in the batch and one probability to be in it."""
        assert self._moments is not None
        moment = self._moments.draw(generator)
        starts = self.events.offsets[users]
        middles = self._moments.users.place(users, moment)
        stops = self._moments.users.place(users, moment + self._moments.window_us)
        useful = (stops > middles) & (middles > starts)
        if not useful.any():
            return None
        drawn = len(users)
        users, starts, middles, stops = users[useful], starts[useful], middles[useful], stops[useful]
        known = histories(self.events, starts, middles, np.full(len(users), moment), self.length)
        queries = np.repeat(np.arange(len(users), dtype=np.int32), stops - middles)
        asked = _Targets.of_users(queries, ranges(middles, stops))
        return self._assemble(users, known, asked, generator, _Moment(moment, drawn))

    def _positions(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        stops = self.events.offsets[users + 1]
        starts = np.maximum(self.events.offsets[users], stops - self.length - 1)
        lengths = stops - 1 - starts
        known = histories(self.events, starts, stops - 1, None, int(lengths.max()))
        query_users = np.repeat(np.arange(len(users), dtype=np.int32), lengths)
        query_positions = (ranges(np.zeros_like(lengths), lengths)).astype(np.int32)
        assert self._baskets is not None
        places = ranges(starts, stops - 1)
        queries = np.arange(len(places), dtype=np.int32)
        basket = self._baskets.of_event[places]
        following, ends = (
            np.minimum(self._baskets.begins(basket + after), stops[query_users]) for after in (1, 1 + self._reach)
        )
        owners, targets = np.repeat(queries, ends - following), ranges(following, ends)
        distances = self._baskets.of_event[targets] - basket[owners] - 1
        credits = np.power(np.float64(self._lookahead), distances, dtype=np.float64)
        credits /= np.bincount(owners, credits)[owners]
        # Items the user took elsewhere in the sequence are certain to be in the batch, and are not negatives.
        first, last = starts[query_users], stops[query_users]
        others = self._taken(np.repeat(queries, last - first), ranges(first, last))
        asked = _Targets(owners, targets, credits, others, query_users, query_positions)
        return self._assemble(users, known, asked, generator)

    def _sets(self, users: Int32, generator: np.random.Generator) -> Batch | None:
        starts, stops = self.events.offsets[users], self.events.offsets[users + 1]
        queries = np.repeat(np.arange(len(users), dtype=np.int32), stops - starts)
        targets = ranges(starts, stops)
        rows = self.events.rows[targets]
        if self.settings.history_encoder == "none":
            known = histories(self.events, starts, starts, None, 1)
            return self._assemble(users, known, _Targets.of_users(queries, targets), generator)
        hidden = self._hidden(self._keys(queries, targets), generator)
        kept = EventLists(
            offsets_of(np.bincount(queries[~hidden], minlength=len(users))),
            rows[~hidden], np.zeros((~hidden).sum(), np.int64), np.zeros((~hidden).sum(), np.int8),
            np.zeros((~hidden).sum(), np.int8),
        )  # fmt: skip
        known = histories(kept, kept.offsets[:-1], kept.offsets[1:], None, self.length)
        asked = _Targets.of_users(queries[hidden], targets[hidden], self._taken(queries, targets))
        return self._assemble(users, known, asked, generator)

    def _hidden(self, keys: Int64, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
        """``[events]`` whether each is one of the items to predict, which must not be in the history used for it.

        One item of each user, drawn evenly, and every other with probability 1/2: of n, each with (n + 1) / 2n.
        """
        different, places = np.unique(keys, return_inverse=True)
        counts = np.bincount(self._parts(different)[0])
        hidden = generator.random(len(different)) < 0.5
        hidden[np.cumsum(counts) - counts + generator.integers(counts)] = True
        return hidden[places]

    def _assemble(
        self,
        users: Int32,
        known: Histories,
        asked: _Targets,
        generator: np.random.Generator,
        at: _Moment | None = None,
    ) -> Batch | None:
        """Joins positives and uniform negatives into candidates and finds all places; None without positives."""
        keys = self._keys(asked.queries, asked.targets)
        strengths = self._strengths[asked.targets] * asked.credits
        pairs, strengths = _strongest(keys[strengths > 0], strengths[strengths > 0])
        if not len(pairs):
            return None
        queries, positive_rows = self._parts(pairs)
        candidate_rows, candidate_place, kept_share = self._candidates(asked, positive_rows, generator)
        asking = np.arange(len(users), dtype=np.int32) if asked.users is None else asked.users
        no_negatives = pairs if asked.others is None else asked.others
        certain, certain_weights = self._certain(users[asking], keys, asked, no_negatives)
        certain_queries, certain_rows = self._parts(certain)
        rows, place = self._places.of(positive_rows, candidate_rows, certain_rows, known.rows[known.rows >= 0])
        masked_queries, masked_rows = self._parts(np.concatenate([no_negatives, certain]))
        excluded = np.stack([masked_queries, candidate_place[masked_rows]], 1)
        weights = strengths if asked.positions is not None else self._balanced(queries, strengths)
        seen, novel = np.zeros((0, 2), np.int32), weights
        if self.settings.protocol == "windows" and self.settings.novel_weight > 0:
            taken = (known.rows >= 0) & self._counts[known.actions]
            seen, is_novel = _novel(known, taken, candidate_place, pairs, np.int64(self.items))
            novel = self._balanced(queries, strengths * is_novel)
        takers = self._takers_of(candidate_rows, kept_share, None if at is None else at.us)
        item_moving, user_moving = np.zeros((len(rows), 0), np.float32), np.zeros((len(users), 0), np.float32)
        if self._moments is not None and at is not None:
            item_moving, user_moving = self._moments.moving(rows, users, at.us)
        return Batch(
            rows=rows,
            users=users,
            history=place[known.rows],
            ages_days=known.ages_days,
            actions=known.actions,
            candidates=place[candidate_rows],
            log_inclusion=log_inclusion(
                takers, len(self.users), len(users) if at is None else at.drawn, self._uniform / self.items
            ),
            query_users=asking,
            query_positions=np.zeros(len(users), np.int32) if asked.positions is None else asked.positions,
            positives=np.stack([queries, place[positive_rows]], 1),
            excluded=excluded[excluded[:, 1] >= 0],
            weights=(weights / weights.sum()).astype(np.float32),
            novel=(novel / max(novel.sum(), 1e-9)).astype(np.float32),
            seen=seen,
            certain=np.stack([certain_queries, place[certain_rows]], 1),
            certain_weights=certain_weights.astype(np.float32),
            item_moving=item_moving,
            user_moving=user_moving,
        )

    def _candidates(
        self, asked: _Targets, positive_rows: Int32, generator: np.random.Generator
    ) -> tuple[Int32, Int32, float]:
        """The candidates' rows, the place of each item among them, and the share of the batch's positives that is kept
        for them.
        """
        drawn = generator.choice(self.items, self._uniform, replace=False, shuffle=False).astype(np.int32)
        shared, limit = positive_rows, self.settings.in_batch_negatives
        if asked.positions is not None:
            # An event is in the batch once, however many queries it is a positive of.
            shared = self.events.rows[different(asked.targets[self._strengths[asked.targets] > 0])]
        kept_share = 1.0
        if limit is not None and limit < len(shared):
            kept_share = limit / len(shared)
            shared = shared[generator.choice(len(shared), limit, replace=False, shuffle=False)]
        return *self._candidate_places.of(shared, drawn), kept_share

    def _takers_of(self, rows: Int32, kept_share: float, moment_us: int | None) -> Takers:
        """Who may bring these items into a batch, of whose positives this share is kept as candidates."""
        number, chance = self._takers.number[rows], self._takers.chance
        if self._moments is not None and moment_us is not None:
            number = self._moments.takers(rows, moment_us).astype(np.float64)
        if isinstance(chance, np.ndarray):
            chance = chance[rows]
        if self._baskets is None or kept_share == 1.0:
            return Takers(number, chance * kept_share)
        # Each of a user's events of the item may be kept.
        return Takers(number, 1.0 - (1.0 - kept_share) ** self._events_each[rows])

    def _balanced(self, queries: Int32, strengths: Float64) -> Float64:
        """Weights such that a user's positives sum to their total strength to the power ``activity_power``."""
        whole = np.maximum(np.bincount(queries, strengths)[queries], 1e-9)
        balanced: Float64 = strengths / whole ** (1.0 - self._activity_power)
        return balanced

    def _parts(self, keys: Int64) -> tuple[Int32, Int32]:
        """The queries and the rows that ``_keys`` joined."""
        width = np.int64(self.items)
        return (keys // width).astype(np.int32), (keys % width).astype(np.int32)

    def _keys(self, queries: Int32, places: Int64) -> Int64:
        """One number for a query and the item of an event."""
        return queries.astype(np.int64) * self.items + self.events.rows[places]

    def _taken(self, queries: Int32, places: Int64) -> Int64:
        """The same for events that count as positives; items that were only seen may be negatives."""
        counts = self._strengths[places] > 0
        return self._keys(queries[counts], places[counts])

    def _certain(self, asking: Int32, keys: Int64, asked: _Targets, positives: Int64) -> tuple[Int64, Float64]:
        """The keys of the queries' certain negatives, without the ``positives``, and their weights.

        Args:
            asking: ``[queries]`` the user of each query.
            keys: of the targets.
        """
        found, strengths = [np.zeros(0, np.int64)], [np.zeros(0)]
        if self._shown is not None:
            weights = self._shown[asked.targets] * asked.credits
            found.append(keys[weights > 0])
            strengths.append(weights[weights > 0])
        if self._mined is not None:
            query, place = np.nonzero(self._mined[asking] >= 0)
            found.append(query.astype(np.int64) * self.items + self._mined[asking[query], place])
            strengths.append(np.ones(len(query)))
        if len(found) == 1:
            return found[0], strengths[0]
        all_keys, all_strengths = _strongest(np.concatenate(found), np.concatenate(strengths))
        kept = np.isin(all_keys, positives, invert=True)
        return all_keys[kept], all_strengths[kept]


def _untaken(mined: Int32, owners: Int32, rows: Int32, items: int) -> Int32:
    """``mined [users, n]`` with -1 for items a user took at any time: those are never negatives."""
    keys = np.arange(len(mined), dtype=np.int64)[:, None] * items + mined
    return np.where(np.isin(keys, owners.astype(np.int64) * items + rows), -1, mined).astype(np.int32)


def _reach(lookahead: float, length: int) -> int:
    """How many following baskets are positives: those that count a hundredth of the first or more."""
    if lookahead in (0.0, 1.0):
        return length if lookahead else 1
    return min(1 + int(np.log(0.01) / np.log(lookahead)), length)


def _strongest(keys: Int64, strengths: Float64) -> tuple[Int64, Float64]:
    """The distinct ``keys``, ascending, and the greatest strength of each."""
    order = np.argsort(keys)
    ordered = keys[order]
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    if not len(keys):
        return keys, strengths
    return ordered[first], np.maximum.reduceat(strengths[order], np.flatnonzero(first))


def _novel(
    known: Histories, taken: npt.NDArray[np.bool_], candidate_place: Int32, pairs: Int64, width: np.int64
) -> tuple[Int32, npt.NDArray[np.bool_]]:
    """Places of the candidates that a query's user took before, and which of the positives are not among these.

    ``taken [users, history]``: the events of the histories that count; what was only shown stays novel.
    """
    owner, slot = np.nonzero(taken)
    seen_keys = different(owner.astype(np.int64) * width + known.rows[owner, slot])
    owners, rows = seen_keys // width, seen_keys % width
    places = candidate_place[rows]
    seen = np.stack([owners, places], 1)[places >= 0]
    return seen.astype(np.int32), ~np.isin(pairs, seen_keys)
