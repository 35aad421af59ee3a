"""Held-out truth: the items of a split, and what the same users had before it. NumPy only.

Training's validation, the evaluation and the gates all measure against this one truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Bools, Int32, Int64
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.strengths import counting


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Some users' items of a split, and their items of the splits before it.

    users: ``[n] int32`` places among all users. truth, seen: ``n`` sets each, in the order of ``users``; what is in
    ``seen`` is not novel.
    """

    users: Int32
    truth: ItemSets
    seen: ItemSets

    @classmethod
    def of(
        cls,
        events: EventLists,
        split: int,
        weights: Sequence[float] | None = None,
        users: npt.NDArray[np.integer] | None = None,
        *,
        context_is_seen: bool = False,
    ) -> HeldOut:
        """What is held out in a split.

        Args:
            events: of all users and splits.
            split: its code.
            weights: of each action, in the schema's order. Actions of weight 0 are context: neither truth nor seen.
                None: all actions count.
            users: ``[n]`` the users; None is those with any truth, ascending.
            context_is_seen: what a user had by actions of weight 0 alone counts as seen, too.
        """
        held = held_out_events(events, split, weights)
        chosen = np.flatnonzero(held.counts) if users is None else users
        before = events.of_users(chosen).before(split)
        if weights is not None and not context_is_seen:
            before = before.where(counting(before, weights))
        return cls(
            users=chosen.astype(np.int32),
            truth=ItemSets.of_events(held.of_users(chosen)),
            seen=ItemSets.of_events(before),
        )

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.users)

    def where(self, kept: Bools) -> HeldOut:
        """Only the truth at which ``kept`` (``[pairs of truth] bool``) is true; users with none left are dropped."""
        return self.with_truth(self.truth.where(kept))

    def with_truth(self, truth: ItemSets) -> HeldOut:
        """The same users with another truth (``n`` sets); users with an empty one are dropped."""
        return replace(self, truth=truth).of_places(np.flatnonzero(truth.counts))

    def without_seen(self) -> HeldOut:
        """Only the truth that a user did not have before; users with none left are dropped."""
        return self.where(~self.truth.within(self.seen))

    def spread(self, count: int) -> HeldOut:
        """``count`` of the users, evenly spaced: users of neighbouring rows are often similar, in age or origin."""
        if self.num_users <= count:
            return self
        return self.of_places(np.arange(count, dtype=np.int64) * self.num_users // count)

    def of_places(self, places: Int64) -> HeldOut:
        """Only the users at these places (``[m]`` below ``n``), in this order."""
        return HeldOut(self.users[places], self.truth.of_users(places), self.seen.of_users(places))


def held_out_events(events: EventLists, split: int, weights: Sequence[float] | None = None) -> EventLists:
    """The events of a split whose action has a weight above 0 (``weights``: as for ``HeldOut.of``)."""
    held = events.splits == split
    return events.where(held if weights is None else held & counting(events, weights))


def truth_by_action(
    events: EventLists, split: int, weights: Sequence[float], users: npt.NDArray[np.integer]
) -> tuple[ItemSets, ...]:
    """The truth of these users (``[n]``) by action, in the schema's order; empty for an action of weight 0."""
    held = held_out_events(events, split, weights).of_users(users)
    return tuple(ItemSets.of_events(held.where(held.actions == code)) for code in range(len(weights)))
