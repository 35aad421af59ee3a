"""What is held out: for each user the items of the test part, and what the user met before it.

Reads ``sequences/`` of a features artifact; writes nothing. Rows are those of the features' catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.evaluation.measures.pairs import Pairs
from index.inference.user_records import sample_users
from pipelines.contracts.arrays import Bools, Int32, Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.sequences.reader import Sequences

_TEST = SPLITS.index("test")


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
        max_users: the size of a stable sample of users; None takes all.
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
        users = np.sort(sample_users(sequences.user_ids, max_users, seed, users))
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


@dataclass(frozen=True)
class Past:
    """All that baselines learn from: every event before the test part.

    owners: ``[events]`` places of users; rows, times: alike. users, items: how many of each.
    """

    owners: Int32
    rows: Int32
    times: npt.NDArray[np.int64]
    users: int
    items: int

    @classmethod
    def of(cls, sequences: Sequences, items: int) -> Past:
        """The past of all users, not of the evaluated ones alone."""
        before = sequences.splits != _TEST
        return cls(
            owners=sequences.owners[before],
            rows=sequences.rows[before],
            times=sequences.times[before],
            users=sequences.num_users,
            items=items,
        )
