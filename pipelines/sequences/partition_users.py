"""The users of a partition, and how many events each has.

Stored as three columns of ``users/`` next to those of the users table, so that a run that appends need not read the
sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.arrays import Int64
from pipelines.sequences.grouping import Grouped, places_of, union_ids
from pipelines.sequences.reader import EVENTS_COLUMN, TRAIN_COLUMN, VALID_COLUMN
from pipelines.sequences.segments import joined


@dataclass(frozen=True)
class Users:
    """Users of a partition: ``ids`` [users] ascending, their ``events``, those in train and in valid, [users] int64."""

    ids: pa.Array
    events: Int64
    train: Int64
    valid: Int64

    @classmethod
    def of(cls, grouped: Grouped) -> Users:
        """The users of sequences."""
        train, valid = (
            np.bincount(grouped.owners[grouped.splits == split], minlength=len(grouped.user_ids)) for split in (0, 1)
        )
        return cls(grouped.user_ids, np.diff(grouped.offsets), train, valid)

    @classmethod
    def idle(cls, ids: pa.Array) -> Users:
        """Users without events."""
        return cls(ids, *(np.zeros(len(ids), np.int64) for _ in range(3)))

    @property
    def new_in_test(self) -> int:
        """How many have test events and none before."""
        return int(((self.events > 0) & (self.train == 0) & (self.valid == 0)).sum())

    @classmethod
    def read(cls, part: Path) -> Users:
        """Those of a part of ``users/``."""
        table = pq.ParquetFile(part).read(columns=["user_id", EVENTS_COLUMN, TRAIN_COLUMN, VALID_COLUMN])
        counts = (np.asarray(table[name], np.int64) for name in (EVENTS_COLUMN, TRAIN_COLUMN, VALID_COLUMN))
        return cls(joined(table["user_id"]), *counts)

    def columns(self) -> dict[str, pa.Array]:
        """What ``read`` reads back."""
        counts = {EVENTS_COLUMN: self.events, TRAIN_COLUMN: self.train, VALID_COLUMN: self.valid}
        return {"user_id": self.ids, **{name: pa.array(count.astype(np.int32)) for name, count in counts.items()}}

    @classmethod
    def together(cls, pieces: Sequence[Users]) -> Users:
        """Users of several pieces, each once, their counts added up."""
        ids = union_ids([piece.ids for piece in pieces])
        events, train, valid = (np.zeros(len(ids), np.int64) for _ in range(3))
        for piece in pieces:
            if len(piece.ids):
                places = slice(None) if len(piece.ids) == len(ids) else places_of(piece.ids, ids)
                events[places] += piece.events
                train[places] += piece.train
                valid[places] += piece.valid
        return cls(ids, events, train, valid)
