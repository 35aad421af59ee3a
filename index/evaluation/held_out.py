"""What is held out: for each user the items of the test part, and what the user met before it.

Reads ``sequences/`` of a features artifact; writes nothing. Rows are those of the features' catalogue.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.inference.user_records import chosen_users
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.sequences.reader import Sequences

Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
Float64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_TEST = SPLITS.index("test")
# Keys are user * stride + row, in 63 bits.
_STRIDE = 1 << 32


@dataclass(frozen=True)
class Pairs:
    """Sets of rows, one a user: those of user ``u`` are ``rows[offsets[u]:offsets[u + 1]]``, rising, no row twice.

    offsets: ``[users + 1] int64``. rows: ``[pairs] int32``. values: ``[pairs] float64``, what the user's events of the
    item are worth together (0 where nothing tells it). events: ``[pairs] int64``, how many events there were.
    """

    offsets: Int64
    rows: Int32
    values: Float64
    events: Int64

    @classmethod
    def of(cls, owners: npt.NDArray[np.integer], rows: Int32, users: int, values: npt.ArrayLike | None = None) -> Pairs:
        """Gathers events into sets.

        Args:
            owners: ``[events]`` places of users.
            rows: ``[events] int32``; what is negative (outside the catalogue) is left out.
            users: how many there are.
            values: ``[events]``; NaN and negative numbers count as 0.
        """
        worth = np.zeros(len(rows)) if values is None else np.nan_to_num(np.asarray(values, np.float64))
        inside = rows >= 0
        keys, places = np.unique(owners[inside].astype(np.int64) * _STRIDE + rows[inside], return_inverse=True)
        return cls(
            offsets=np.searchsorted(keys, np.arange(users + 1, dtype=np.int64) * _STRIDE).astype(np.int64),
            rows=(keys % _STRIDE).astype(np.int32),
            values=np.bincount(places, np.maximum(worth[inside], 0.0), minlength=len(keys)).astype(np.float64),
            events=np.bincount(places, minlength=len(keys)).astype(np.int64),
        )

    @property
    def num_users(self) -> int:
        """How many users, those with an empty set counted in."""
        return len(self.offsets) - 1

    @property
    def counts(self) -> Int64:
        """``[users] int64`` size of each set."""
        return np.diff(self.offsets)

    @functools.cached_property
    def owners(self) -> Int64:
        """``[pairs] int64`` place of each pair's user."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), self.counts)

    @functools.cached_property
    def keys(self) -> Int64:
        """``[pairs] int64``, rising: one number a pair."""
        return self.owners * _STRIDE + self.rows

    def find(self, ranked: Int32) -> Int64:
        """``[users, k] int64``: the place among the pairs of each ranked row of each user, -1 where it is in no set."""
        if len(self.keys) == 0:
            return np.full(ranked.shape, -1, np.int64)
        wanted = np.arange(len(ranked), dtype=np.int64)[:, None] * _STRIDE + ranked
        places = np.minimum(np.searchsorted(self.keys, wanted), len(self.keys) - 1)
        return np.where((self.keys[places] == wanted) & (ranked >= 0), places, -1)

    def contains(self, ranked: Int32) -> Bools:
        """``[users, k] bool``: whether each ranked row of each user is in the user's set."""
        return self.find(ranked) >= 0

    def where(self, kept: Bools) -> Pairs:
        """The sets without the pairs that ``kept`` (``[pairs] bool``) denies."""
        before = np.concatenate([[0], np.cumsum(kept)])
        return Pairs(before[self.offsets], self.rows[kept], self.values[kept], self.events[kept])

    def within(self, others: Pairs) -> Bools:
        """``[pairs] bool``: the pair is in ``others`` too."""
        return np.isin(self.keys, others.keys, assume_unique=True)

    def of_users(self, users: Int64) -> Pairs:
        """The sets of some users (``[n]`` places), in that order."""
        counts = self.counts[users]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.offsets[users] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Pairs(offsets, self.rows[places], self.values[places], self.events[places])


@dataclass(frozen=True)
class HeldOut:
    """The users that are evaluated, with their truth and their past.

    users: ``[users] int64`` places in the features' user order; user_ids alike. truth: items of the test part.
    truth_of_action: the same by action, in the schema's order. seen: items met before the test part.
    history_events: ``[users] int64`` events before the test part. without_truth: users left out, having no test event.
    total_users: all users of the features.
    """

    users: Int64
    user_ids: pa.Array
    truth: Pairs
    truth_of_action: tuple[Pairs, ...]
    seen: Pairs
    history_events: Int64
    without_truth: int
    total_users: int

    @property
    def num_users(self) -> int:
        """Users evaluated."""
        return len(self.users)


def load_held_out(features: Path, schema: DatasetSchema, max_users: int | None = None, seed: int = 17) -> HeldOut:
    """Reads the held-out events.

    Args:
        features: the features artifact.
        schema: names the actions.
        max_users: a stable sample of at most so many users.
        seed: of that sample.

    Raises:
        SchemaError: no user has an event in the test part.
    """
    return held_out(Sequences.open(features), schema, max_users, seed)


def held_out(sequences: Sequences, schema: DatasetSchema, max_users: int | None = None, seed: int = 17) -> HeldOut:
    """As ``load_held_out``, from sequences in memory. What weighs 0 in ``[actions]`` is no truth."""
    is_test = sequences.splits == _TEST
    weighs = np.array(schema.action_weights) > 0
    held = is_test & weighs[sequences.actions]
    counts = np.bincount(sequences.owners[held], minlength=sequences.num_users)
    with_truth = np.flatnonzero(counts).astype(np.int64)
    if len(with_truth) == 0:
        raise SchemaError(
            f"expected users with events in the test part, found none among {sequences.num_users}. "
            "Check [split]: test_from must lie before the latest event."
        )
    users = with_truth
    if max_users is not None and max_users < len(users):
        users = np.sort(chosen_users(sequences.user_ids, max_users, seed, users))
    place = np.full(sequences.num_users, -1, np.int64)
    place[users] = np.arange(len(users))
    owners = place[sequences.owners]
    chosen = owners >= 0
    test, past = chosen & held, chosen & ~is_test

    def pairs(events: Bools) -> Pairs:
        return Pairs.of(owners[events], sequences.rows[events], len(users), sequences.values[events])

    return HeldOut(
        users=users,
        user_ids=sequences.user_ids.take(pa.array(users)),
        truth=pairs(test),
        truth_of_action=tuple(pairs(test & (sequences.actions == code)) for code in range(len(schema.action_names))),
        seen=pairs(past),
        history_events=np.bincount(owners[past], minlength=len(users)).astype(np.int64),
        without_truth=sequences.num_users - len(with_truth),
        total_users=sequences.num_users,
    )
