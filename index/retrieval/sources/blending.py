"""Several sources in one answer: the towers' candidates, the user's own items, and new ads.

Each source takes its configured share of the places, evenly spread, for as long as it lasts. A rule that forbids an
item forbids it in every source. New ads have places of their own because, where vectors have free lengths, they rank
behind the ads that have sold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows


def interleaved(sources: Sequence[Rows], shares: Sequence[float]) -> npt.NDArray[np.int64]:
    """Returns the order of a blended answer, as places in the concatenated sources.

    Of every beginning of the answer a source has its share while it lasts, to within half an item between two sources,
    and ``1/2 + share * (n - 2) / 2`` items among n (the j-th item of each stands where a Sainte-Lague apportionment
    has it). An item of several sources stands where it comes first. The order does not depend on how many candidates
    are asked for: a longer answer begins with the shorter one.

    Args:
        sources: ``[n] int32`` each, best first. At equal places the earlier source comes first.
        shares: of each source.
    """
    wanted = [(np.arange(len(rows)) + 0.5) / max(share, 1e-9) for rows, share in zip(sources, shares, strict=True)]
    # Stable: what stands at the same place stays in the order of the sources.
    order = np.argsort(np.concatenate(wanted), kind="stable")
    _, first = np.unique(np.concatenate(sources)[order], return_index=True)
    kept: npt.NDArray[np.int64] = order[np.sort(first)]
    return kept


def places_of(k: int, share: float) -> int:
    """How many items of a source the first k places of a blended answer can hold, of three sources at most."""
    return math.ceil(share * k)
