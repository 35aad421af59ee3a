"""Events in the last days before a moment, causally: what happens at the moment itself or later never counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import US_PER_DAY


def window_counts(owners: npt.NDArray[np.integer], times: Int64, size: int, moment_us: int, days: int) -> Int64:
    """``[size] int64``: for each owner, its events with ``moment - days <= time < moment``.

    Args:
        owners: ``[events]`` whose event it is, below ``size``.
        times: ``[events] int64`` microseconds UTC.
        size: number of owners.
        moment_us: the moment, not counted in.
        days: length of the window.
    """
    inside = (times < moment_us) & (times >= moment_us - days * US_PER_DAY)
    return np.bincount(owners[inside], minlength=size).astype(np.int64)
