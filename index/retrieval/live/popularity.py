"""How often each item of a version was chosen in train: the ranking for users of whom nothing is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows, Scores
from index.search.ties import TieOrder
from pipelines.contracts.arrays import Int64


@dataclass(frozen=True, eq=False)
class Popularity:
    """frequency: ``[items] int64`` train events. scores: ``[items] float32`` log1p of them. order: ``[items] int32``
    rows, the most frequent first, equals in the order of their ids.
    """

    frequency: Int64
    scores: Scores
    order: Rows

    @classmethod
    def of(cls, frequency: Int64) -> Popularity:
        """That of a bundle, whose rows are in the order of their ids."""
        order = np.argsort(-frequency, kind="stable").astype(np.int32)
        return cls(frequency, np.log1p(frequency).astype(np.float32), order)

    def with_fresh(self, frequency: Int64, ties: TieOrder) -> Popularity:
        """The same with fresh rows after the others, at their places in the order: nothing is sorted again.

        Args:
            frequency: ``[fresh] int64``.
            ties: of all rows.
        """
        falling = -self.frequency[self.order]
        first = np.searchsorted(falling, -frequency, side="left")
        last = np.searchsorted(falling, -frequency, side="right")
        before = ties.before
        places = np.array(
            [
                start + np.searchsorted(self.order[start:end], row)
                for start, end, row in zip(first, last, before, strict=True)
            ],
            np.int64,
        )
        arranged = np.lexsort((ties.rank, -frequency))
        rows: npt.NDArray[np.int32] = (len(self.frequency) + arranged).astype(np.int32)
        return Popularity(
            np.concatenate([self.frequency, frequency]),
            np.concatenate([self.scores, np.log1p(frequency).astype(np.float32)]),
            np.insert(self.order, places[arranged], rows),
        )
