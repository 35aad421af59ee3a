"""What was known before the test part: all that baselines, propensities and popularity are counted on.

Reads ``Sequences``; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.evaluation.held_out import Int32
from pipelines.contracts.schema import SPLITS
from pipelines.sequences.reader import Sequences

_TEST = SPLITS.index("test")


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
