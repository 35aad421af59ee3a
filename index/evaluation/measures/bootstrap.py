"""Bootstrap intervals over users: how far a mean would vary with other users.

Percentile intervals (Efron 1979); all columns of one call share their resamples, so that differences between them are
those of the same users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Float64

# Weights held at once: 32 MB.
_WEIGHTS_AT_ONCE = 1 << 23


@dataclass(frozen=True)
class Interval:
    """A mean over users and its bootstrap interval. ``users``: number of users with a value. NaN if there are none."""

    mean: float
    low: float
    high: float
    users: int


@dataclass(frozen=True)
class Difference:
    """The second of two paired means minus the first, with its interval, absolute and relative to the first.

    relative: ``difference / first``, NaN if the first is 0. ``users``: number of users with both values.
    """

    first: float
    second: float
    difference: float
    low: float
    high: float
    relative: float
    relative_low: float
    relative_high: float
    users: int

    @property
    def is_certain(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0.0 or self.high < 0.0


def resampled_means(values: Float64, resamples: int, seed: int) -> Float64:
    """``[resamples, columns] float64``: means over users drawn with replacement, ignoring NaN.

    Args:
        values: ``[users, columns] float64``, one user or more.
        resamples: number of draws.
        seed: of the draws.
    """
    present = np.isfinite(values)
    filled = np.where(present, values, 0.0)
    complete = bool(present.all())
    users = len(values)
    rng = np.random.default_rng(seed)
    at_once = max(1, _WEIGHTS_AT_ONCE // users)
    means = np.empty((resamples, values.shape[1]))
    for start in range(0, resamples, at_once):
        draws = min(at_once, resamples - start)
        drawn = rng.integers(0, users, (draws, users), dtype=np.int64)
        drawn += np.arange(draws)[:, None] * users
        weights = np.bincount(drawn.ravel(), minlength=draws * users).reshape(draws, users).astype(np.float64)
        counted = np.full((draws, 1), float(users)) if complete else weights @ present
        with np.errstate(invalid="ignore"):
            means[start : start + draws] = (weights @ filled) / counted
    return means


def bootstrap(
    values: npt.ArrayLike, *, resamples: int = 1000, confidence: float = 0.95, seed: int = 17
) -> list[Interval]:
    """Returns mean and interval of each column.

    Args:
        values: ``[users]`` or ``[users, columns]``; NaN is no value.
        resamples: draws.
        confidence: share of intervals that hold the truth.
        seed: of the draws.
    """
    columns = np.asarray(values, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    users = np.isfinite(columns).sum(axis=0)
    if len(columns) == 0:
        return [Interval(np.nan, np.nan, np.nan, 0) for _ in range(columns.shape[1])]
    means = resampled_means(columns, resamples, seed)
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    intervals = []
    for column, count in enumerate(users.tolist()):
        if count == 0:
            intervals.append(Interval(np.nan, np.nan, np.nan, 0))
            continue
        low, high = np.nanquantile(means[:, column], tails)
        intervals.append(Interval(float(np.nanmean(columns[:, column])), float(low), float(high), count))
    return intervals


def paired_bootstrap(
    first: npt.ArrayLike,
    second: npt.ArrayLike,
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> Difference:
    """Returns how much larger the mean of ``second`` is than that of ``first``, over the same users.

    Args:
        first: ``[users]`` values, NaN where a user has none.
        second: ``[users]`` values of the same users.
        resamples: draws of users; each draw takes both values of a user.
        confidence: share of intervals that hold the truth.
        seed: of the draws.
    """
    both = np.stack([np.asarray(first, np.float64), np.asarray(second, np.float64)], axis=1)
    both = both[np.isfinite(both).all(axis=1)]
    if len(both) == 0:
        none = float("nan")
        return Difference(none, none, none, none, none, none, none, none, users=0)
    means = resampled_means(both, resamples, seed)
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    before, after = both.mean(axis=0).tolist()
    low, high = np.quantile(means[:, 1] - means[:, 0], tails).tolist()
    relative = relative_low = relative_high = float("nan")
    if before != 0.0 and (means[:, 0] != 0.0).all():
        relative = (after - before) / before
        relative_low, relative_high = np.quantile(means[:, 1] / means[:, 0] - 1.0, tails).tolist()
    return Difference(before, after, after - before, low, high, relative, relative_low, relative_high, len(both))


def clustered_means(values: Float64, clusters: npt.NDArray[np.integer], resamples: int, seed: int) -> Float64:
    """``[resamples, columns] float64``: means over rows, ignoring NaN, where whole clusters are drawn with replacement.

    For rows that depend on each other, such as several days of the same user (Field and Welsh 2007).

    Args:
        values: ``[rows, columns] float64``, one row or more.
        clusters: ``[rows]`` the cluster of each row, from 0 on, none left out.
        resamples: number of draws.
        seed: of the draws.
    """
    count = int(clusters.max()) + 1
    present = np.isfinite(values)
    totals = [np.bincount(clusters, column, minlength=count) for column in np.where(present, values, 0.0).T]
    totals += [np.bincount(clusters, column, minlength=count) for column in present.astype(np.float64).T]
    means = resampled_means(np.stack(totals, axis=1), resamples, seed)
    columns = values.shape[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return means[:, :columns] / means[:, columns:]


def clustered_bootstrap(
    values: npt.ArrayLike,
    clusters: npt.NDArray[np.integer],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 17,
) -> list[Interval]:
    """Returns mean and interval of each column over rows, as ``clustered_means`` draws them.

    ``users`` of an interval is the number of clusters with a value.

    Args:
        values: ``[rows]`` or ``[rows, columns]``; NaN is no value.
        clusters: ``[rows]`` the cluster of each row, any integers.
        resamples: draws.
        confidence: share of intervals that hold the truth.
        seed: of the draws.
    """
    columns = np.asarray(values, np.float64)
    columns = columns[:, None] if columns.ndim == 1 else columns
    present = np.isfinite(columns)
    if len(columns) == 0:
        return [Interval(np.nan, np.nan, np.nan, 0) for _ in range(columns.shape[1])]
    _, dense = np.unique(clusters, return_inverse=True)
    means = clustered_means(columns, dense, resamples, seed)
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    intervals = []
    for place, (column, there) in enumerate(zip(columns.T, present.T, strict=True)):
        if not there.any():
            intervals.append(Interval(np.nan, np.nan, np.nan, 0))
            continue
        low, high = np.nanquantile(means[:, place], tails)
        intervals.append(Interval(float(column[there].mean()), float(low), float(high), len(np.unique(dense[there]))))
    return intervals
