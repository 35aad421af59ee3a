"""How much each item of a version is chosen: the ranking for users of whom nothing is known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows, Scores
from index.search.ties import TieOrder
from pipelines.contracts.arrays import Float64


@dataclass(frozen=True, eq=False)
class Popularity:
    """strength: ``[items] float64``, see ``Bundle.popularity``. scores: ``[items] float32`` log1p of it. order:
    ``[items] int32`` rows, the strongest first, equals in the order of their ids.
    """

    strength: Float64
    scores: Scores
    order: Rows

    @classmethod
    def of(cls, strength: Float64) -> Popularity:
        """That of a bundle, whose rows are in the order of their ids."""
        order = np.argsort(-strength, kind="stable").astype(np.int32)
        return cls(strength, np.log1p(strength).astype(np.float32), order)

    def with_fresh(self, strength: Float64, ties: TieOrder) -> Popularity:
        """The same with fresh rows after the others, at their places in the order: nothing is sorted again.

        Args:
            strength: ``[fresh] float64``.
            ties: of all rows.
        """
        falling = -self.strength[self.order]
        first = np.searchsorted(falling, -strength, side="left")
        last = np.searchsorted(falling, -strength, side="right")
        before = ties.before
        places = np.array(
            [
                start + np.searchsorted(self.order[start:end], row)
                for start, end, row in zip(first, last, before, strict=True)
            ],
            np.int64,
        )
        arranged = np.lexsort((ties.rank, -strength))
        rows: npt.NDArray[np.int32] = (len(self.strength) + arranged).astype(np.int32)
        return Popularity(
            np.concatenate([self.strength, strength]),
            np.concatenate([self.scores, np.log1p(strength).astype(np.float32)]),
            np.insert(self.order, places[arranged], rows),
        )
