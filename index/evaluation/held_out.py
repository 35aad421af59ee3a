"""Which users are evaluated: those with events in the test part, or a stable sample of them."""

from __future__ import annotations

import numpy as np

from index.inference.user_records import UserRecords
from pipelines.contracts.arrays import Int64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.sequences.held_out import HeldOut, held_out_events

TEST = SPLITS.index("test")


def held_out(
    users: UserRecords,
    schema: DatasetSchema,
    max_users: int | None = None,
    seed: int = 17,
    *,
    context_is_seen: bool = False,
) -> HeldOut:
    """The held-out events of the test part, for the users who have any.

    Args:
        users: all users of the features.
        schema: names the actions; those of weight 0 do not count as truth.
        max_users: a stable sample of at most this many users.
        seed: of that sample.
        context_is_seen: an item of actions of weight 0 alone is not novel either.

    Raises:
        SchemaError: no user has an event in the test part.
    """
    chosen = users_with_truth(users, schema)
    if len(chosen) == 0:
        raise SchemaError(
            f"expected users with events in the test part, found none among {users.num_users}. "
            "Check [split]: test_from must lie before the latest event."
        )
    if max_users is not None and max_users < len(chosen):
        chosen = np.sort(users.sample(max_users, seed, chosen))
    return HeldOut.of(users.events, TEST, schema.action_weights, chosen, context_is_seen=context_is_seen)


def users_with_truth(users: UserRecords, schema: DatasetSchema) -> Int64:
    """``[n] int64`` places of the users with an event in the test part that counts, ascending."""
    counts = held_out_events(users.events, TEST, schema.action_weights).counts
    return np.flatnonzero(counts).astype(np.int64)
