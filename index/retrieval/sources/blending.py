"""Several sources in one answer: the towers' candidates, the user's own items, and new ads.

Each source takes its configured share of the places, evenly spread, until it is exhausted. A rule that forbids an item
forbids it in every source. New ads have reserved places because, where vector lengths are free, they rank behind the
ads that have sold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from index.search.searcher import Rows


def interleaved(sources: Sequence[Rows], shares: Sequence[float]) -> npt.NDArray[np.int64]:
    """Returns the order of a blended answer, as places in the concatenated sources.

    In every prefix of the answer a source has its share until it is exhausted, to within half an item between two
    sources, and ``1/2 + share * (n - 2) / 2`` items among n (the j-th item of each source is placed by Sainte-Laguë
    apportionment). An item of several sources is kept at its first place. The order does not depend on how many
    candidates are asked for: a longer answer begins with the shorter one.

    Args:
        sources: ``[n] int32`` each, best first. At equal places the earlier source comes first.
        shares: share of each source.
    """
    wanted = [(np.arange(len(rows)) + 0.5) / max(share, 1e-9) for rows, share in zip(sources, shares, strict=True)]
    # Stable: items at the same place stay in the order of the sources.
    order = np.argsort(np.concatenate(wanted), kind="stable")
    _, first = np.unique(np.concatenate(sources)[order], return_index=True)
    kept: npt.NDArray[np.int64] = order[np.sort(first)]
    return kept


def places_of(k: int, share: float) -> int:
    """Maximum number of items of one source in the first k places of a blend of at most three sources."""
    return math.ceil(share * k)
