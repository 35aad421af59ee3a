"""Summaries of a feature over the train window, in pieces that are computed separately and merged.

Any cut of the data gives the same result to the last bit: counts are integers, sums exact rationals, samples chosen by
a stable hash.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.arrays import Float64, Int64
from pipelines.contracts.conversion import plain_array
from pipelines.contracts.hashing import hash_ids
from pipelines.contracts.vocabulary import plain_values

# Values kept for the quantiles, those of the smallest hashes: the error of a quantile is about 0.5 / sqrt(size).
_SAMPLE = 100_000
# A mantissa is cut into two halves of 26 and 27 bits, so that 2**26 of them add up exactly in a float64.
_HALF_BITS = 27
_ROWS_PER_SUM = 1 << 25


@dataclass(frozen=True)
class Moments:
    """Number, sum and sum of squares, exact."""

    count: int = 0
    total: Fraction = Fraction(0)
    squares: Fraction = Fraction(0)

    @classmethod
    def of(cls, values: Float64) -> Moments:
        """Moments of ``[n] float64`` finite values."""
        return cls(len(values), exact_sum(values), exact_sum(values * values))

    def plus(self, other: Moments) -> Moments:
        """Moments of both together."""
        return Moments(self.count + other.count, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean; 0 of no values."""
        return float(self.total / self.count) if self.count else 0.0

    @property
    def spread(self) -> float:
        """Population standard deviation; 0 of no values."""
        if not self.count:
            return 0.0
        variance = self.squares / self.count - (self.total / self.count) ** 2
        return math.sqrt(max(variance, Fraction(0)))


def exact_sum(values: Float64) -> Fraction:
    """The sum without rounding, so that the order does not matter: mantissas are added by exponent, as integers."""
    total = Fraction(0)
    for start in range(0, len(values), _ROWS_PER_SUM):
        mantissas, exponents = np.frexp(values[start : start + _ROWS_PER_SUM])
        integers = np.ldexp(mantissas, 53).astype(np.int64)
        high, low = integers >> _HALF_BITS, integers & ((1 << _HALF_BITS) - 1)
        first = int(exponents.min()) if len(exponents) else 0
        sums = [np.bincount(exponents - first, half.astype(np.float64)) for half in (high, low)]
        for place in range(len(sums[0])):
            mantissa = (int(sums[0][place]) << _HALF_BITS) + int(sums[1][place])
            if mantissa:
                total += Fraction(mantissa) * Fraction(2) ** (place + first - 53)
    return total


@dataclass(frozen=True)
class Summary:
    """The summary of one feature in one partition; exactly one of three.

    ``counts``: (value, count), each value once. ``moments``: of numbers. ``sample``: (value, hash), those of the
    smallest hashes.
    """

    counts: pa.Table | None = None
    moments: Moments | None = None
    sample: pa.Table | None = None

    @classmethod
    def of_values(cls, values: pa.Array, weights: Int64) -> Summary:
        """Counts ``[n]`` values, each ``weights`` (``[n] int64``) times; nulls are left out."""
        if pa.types.is_null(values.type):
            return cls.of_no_values()
        table = pa.table({"value": plain_values(values), "count": weights})
        return cls(counts=_summed(table.filter(table["value"].is_valid())))

    @classmethod
    def of_no_values(cls) -> Summary:
        """Counts of no values."""
        return cls(counts=pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())}))

    @classmethod
    def of_sample(cls, values: Float64, ids: pa.Array) -> Summary:
        """Samples ``[n] float64`` finite values, by the hash of the rows' own ids."""
        return cls(sample=_sample(values, hash_ids(ids)))


def merged_counts(parts: Sequence[Summary]) -> pa.Table:
    """The counts of several partitions together: (value, count), each value once."""
    tables = [part.counts for part in parts if part.counts is not None]
    if len(tables) == 1:
        return tables[0]
    types = {table["value"].type for table in tables}
    if len(types) > 1:  # An empty partition's column reads as text.
        tables = [table.set_column(0, "value", table["value"].cast(pa.string())) for table in tables]
    return _summed(pa.concat_tables(tables))


def merged_moments(parts: Sequence[Summary]) -> Moments:
    """The moments of several partitions together."""
    moments = Moments()
    for part in parts:
        moments = moments.plus(part.moments or Moments())
    return moments


def merged_sample(parts: Sequence[Summary]) -> Float64:
    """``[sample] float64`` values of the smallest hashes over several partitions, ascending."""
    table = pa.concat_tables([part.sample for part in parts if part.sample is not None])
    kept = _sample(np.asarray(table["value"], np.float64), np.asarray(table["hash"], np.uint64))
    return np.sort(np.asarray(kept["value"], np.float64))


def _summed(table: pa.Table) -> pa.Table:
    """Each value once, its counts added up (exact: float64 holds every integer below 2**53)."""
    values = plain_array(table["value"]).dictionary_encode()
    counts = np.bincount(np.asarray(values.indices), np.asarray(table["count"], np.float64), len(values.dictionary))
    return pa.table({"value": values.dictionary, "count": counts.astype(np.int64)})


def _sample(values: Float64, hashes: npt.NDArray[np.uint64]) -> pa.Table:
    order = np.argsort(hashes)[:_SAMPLE]
    return pa.table({"value": values[order], "hash": hashes[order]})
