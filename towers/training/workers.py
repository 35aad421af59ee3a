"""More than one machine: each worker learns from its share of the users of a common batch.

Every worker draws the same batch (same seed) and keeps its part of the users with their positives, but all candidates.
The parts' losses add up to the batch's, so the sum of the workers' gradients equals that of one worker with the whole
batch, including the negatives of all workers. The workers are listed in ``TF_CONFIG``, as TensorFlow's own strategies
read it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from towers.data.batches import Batch
from towers.runtime import tf


@dataclass(frozen=True)
class Workers:
    """The workers of a run, seen by one of them: it is number ``index`` of ``count``."""

    strategy: Any
    index: int
    count: int

    @property
    def writes(self) -> bool:
        """Whether this worker writes the model; exactly one does."""
        return self.index == 0

    def agree(self, value: object) -> bool:
        """Whether all workers call this with the same value."""
        if self.count == 1:
            return True
        checksum = tf.constant([zlib.crc32(repr(value).encode())], tf.int64)
        found = self.strategy.gather(self.strategy.run(lambda: tf.identity(checksum)), axis=0).numpy()
        return bool((found == found[0]).all())


@functools.cache
def workers() -> Workers:
    """This process alone, or the workers of ``TF_CONFIG``. Must be called before anything else uses TensorFlow."""
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    count = len(config.get("cluster", {}).get("worker", ()))
    if count < 2:
        return Workers(tf.distribute.get_strategy(), 0, 1)
    return Workers(tf.distribute.MultiWorkerMirroredStrategy(), int(config["task"]["index"]), count)


def part_of(batch: Batch, index: int, count: int) -> Batch:
    """The part of a batch that worker ``index`` of ``count`` learns from; the parts' losses add up to the batch's."""
    if count == 1:
        return batch
    owners = np.arange(len(batch.users)) * count // max(len(batch.users), 1)
    users = np.flatnonzero(owners == index)
    queries = np.flatnonzero(owners[batch.query_users] == index)
    first_user = users[0] if len(users) else 0
    place = np.full(len(batch.query_users), -1, np.int32)
    place[queries] = np.arange(len(queries), dtype=np.int32)

    def own(pairs: Any) -> Any:
        return place[pairs[:, 0]] >= 0

    def moved(pairs: Any) -> Any:
        kept = pairs[own(pairs)]
        return np.stack([place[kept[:, 0]], kept[:, 1]], 1)

    return dataclasses.replace(
        batch,
        users=batch.users[users],
        history=batch.history[users],
        ages_days=batch.ages_days[users],
        actions=batch.actions[users],
        user_moving=batch.user_moving[users],
        query_users=batch.query_users[queries] - np.int32(first_user),
        query_positions=batch.query_positions[queries],
        positives=moved(batch.positives),
        weights=batch.weights[own(batch.positives)],
        novel=batch.novel[own(batch.positives)],
        excluded=moved(batch.excluded),
        seen=moved(batch.seen),
        certain=moved(batch.certain),
        certain_weights=batch.certain_weights[own(batch.certain)],
    )
