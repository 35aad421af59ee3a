"""Counting: events in the last days before a moment, causally: what happens at the moment itself or later never counts.

``window_counts`` counts before one moment (the batch job's features); ``counts_before`` before many moments at once,
one for each training example.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
US_PER_DAY = 86_400_000_000


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


def counts_before(
    owners: npt.NDArray[np.integer],
    times: Int64,
    asked_owners: npt.NDArray[np.integer],
    moments_us: Int64,
    days: int,
) -> Int64:
    """``[asked] int64``: for each (owner, moment) asked, the owner's events in the window before that moment.

    Args:
        owners: ``[events]`` whose event it is.
        times: ``[events] int64`` microseconds UTC.
        asked_owners: ``[asked]``.
        moments_us: ``[asked] int64``, not counted in.
        days: length of the window.
    """
    order = np.lexsort((times, owners))
    owners, times = owners[order], times[order]
    distinct = np.unique(np.concatenate([times, moments_us, moments_us - days * US_PER_DAY]))
    width = len(distinct) + 1
    keys = owners.astype(np.int64) * width + np.searchsorted(distinct, times)
    asked = asked_owners.astype(np.int64) * width
    ends = np.searchsorted(keys, asked + np.searchsorted(distinct, moments_us), "left")
    starts = np.searchsorted(keys, asked + np.searchsorted(distinct, moments_us - days * US_PER_DAY), "left")
    return (ends - starts).astype(np.int64)
