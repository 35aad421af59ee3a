"""Fitting: what the train window says of each feature, in pieces that can be computed apart and merged.

A partition is summarised by ``summarise``; ``fit`` merges the summaries. Any cut of the data gives the same result to
the last bit: counts are integers, sums exact rationals, samples chosen by a stable hash.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Float64, Int64
from pipelines.contracts.encoding import days_since, words
from pipelines.contracts.hashing import hash_ids
from pipelines.contracts.schema import (
    CategoricalFeature,
    CountFeature,
    EmbeddingFeature,
    Feature,
    IdFeature,
    ListFeature,
    NumericFeature,
    TextFeature,
    TimeSinceFeature,
)
from pipelines.contracts.vocabulary import Fitted, FittedCodes, FittedNumbers, canonical
from pipelines.tables.conversion import one_array

# 128 steps of equal mass: the error of a place is below 1/128, under the noise of any window.
_QUANTILES = 129
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
        """The mean; 0 of nothing."""
        return float(self.total / self.count) if self.count else 0.0

    @property
    def spread(self) -> float:
        """Population standard deviation; 0 of nothing."""
        if not self.count:
            return 0.0
        variance = self.squares / self.count - (self.total / self.count) ** 2
        return math.sqrt(max(variance, Fraction(0)))


def exact_sum(values: Float64) -> Fraction:
    """The sum without any rounding, so that it depends on no order: mantissas are added by exponent, as integers."""
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
    """What one partition says of one feature: counts of values, or moments, or a sample (value and its hash)."""

    counts: pa.Table | None = None
    moments: Moments | None = None
    sample: pa.Table | None = None


@dataclass(frozen=True)
class SideSummary:
    """Summaries of one side's features, by name."""

    features: dict[str, Summary] = field(default_factory=dict)


def summarise(
    features: Sequence[Feature], table: pa.Table, ids: pa.Array, frequency: Int64, as_of_us: int
) -> SideSummary:
    """Summarises rows of one side.

    Args:
        features: what is to be fitted.
        table: raw columns; one that is absent counts as null.
        ids: ``[n]`` the rows' own ids.
        frequency: ``[n]`` train events of each; rows of none are not looked at. Values are counted with it as the
            weight; numbers count once a row.
        as_of_us: the moment from which ``time_since`` counts.
    """
    seen = np.flatnonzero(frequency > 0)
    table, ids, frequency = table.take(pa.array(seen)), ids.take(pa.array(seen)), frequency[seen]
    summaries = {}
    for feature in features:
        if isinstance(feature, CountFeature | EmbeddingFeature):
            continue
        column = one_array(table[feature.source]) if feature.source in table.column_names else pa.nulls(len(seen))
        summaries[feature.name] = _summarise(feature, column, ids, frequency, as_of_us)
    return SideSummary(summaries)


def _summarise(feature: Feature, column: pa.Array, ids: pa.Array, frequency: Int64, as_of_us: int) -> Summary:
    if isinstance(feature, IdFeature | CategoricalFeature):
        return Summary(counts=_weighted_counts(column, frequency, feature.hash_buckets))
    if isinstance(feature, ListFeature | TextFeature):
        lists = words(column) if isinstance(feature, TextFeature) else column
        if pa.types.is_null(lists.type):
            return Summary(counts=_weighted_counts(pa.array([], pa.string()), np.zeros(0, np.int64), None))
        owners = np.asarray(pc.list_parent_indices(lists), np.int64)
        return Summary(counts=_weighted_counts(pc.list_flatten(lists), frequency[owners], feature.hash_buckets))
    if isinstance(feature, TimeSinceFeature):
        days = days_since(column, as_of_us)
        return Summary(moments=Moments.of(FittedNumbers.transform("log", days[~np.isnan(days)])))
    values = np.asarray(column.cast(pa.float64()).fill_null(np.nan), np.float64)
    known = np.isfinite(values)
    if isinstance(feature, NumericFeature) and feature.scale == "quantile":
        return Summary(sample=_sample(values[known], hash_ids(ids.filter(pa.array(known)))))
    scale = feature.scale if isinstance(feature, NumericFeature) else "standard"
    return Summary(moments=Moments.of(FittedNumbers.transform(scale, values[known])))


def _weighted_counts(values: pa.Array, weights: Int64, hash_buckets: int | None) -> pa.Table:
    if pa.types.is_null(values.type) or hash_buckets is not None:
        values, weights = pa.array([], pa.string()), np.zeros(0, np.int64)
    table = pa.table({"value": canonical(values), "count": weights})
    return _summed(table.filter(table["value"].is_valid()))


def _merged_counts(tables: Sequence[pa.Table]) -> pa.Table:
    """The counts of several tables together, each of which has a value once."""
    if len(tables) == 1:
        return tables[0]
    types = {table["value"].type for table in tables}
    if len(types) > 1:  # An empty partition's column reads as text.
        tables = [table.set_column(0, "value", table["value"].cast(pa.string())) for table in tables]
    return _summed(pa.concat_tables(tables))


def _summed(table: pa.Table) -> pa.Table:
    """Each value once, its counts added up (exact: float64 holds every integer below 2**53)."""
    values = one_array(table["value"]).dictionary_encode()
    counts = np.bincount(np.asarray(values.indices), np.asarray(table["count"], np.float64), len(values.dictionary))
    return pa.table({"value": values.dictionary, "count": counts.astype(np.int64)})


def _sample(values: Float64, hashes: npt.NDArray[np.uint64]) -> pa.Table:
    order = np.argsort(hashes)[:_SAMPLE]
    return pa.table({"value": values[order], "hash": hashes[order]})


def fit(features: Sequence[Feature], summaries: Iterable[SideSummary]) -> dict[str, Fitted]:
    """Merges partitions' summaries into what the vocabulary keeps; embeddings need nothing.

    ``count`` features become log1p of the count as it is: most counts are 0, and a spread would hardly be stable.
    """
    parts = list(summaries)
    fitted: dict[str, Fitted] = {}
    for feature in features:
        if isinstance(feature, EmbeddingFeature):
            continue
        if isinstance(feature, CountFeature):
            fitted[feature.name] = FittedNumbers("log")
            continue
        fitted[feature.name] = _fit(feature, [part.features[feature.name] for part in parts])
    return fitted


def _fit(feature: Feature, parts: Sequence[Summary]) -> Fitted:
    if isinstance(feature, IdFeature | CategoricalFeature | ListFeature | TextFeature):
        counts = _merged_counts([part.counts for part in parts if part.counts is not None])
        return FittedCodes.fit(feature, counts["value"].combine_chunks(), counts["count"].combine_chunks())
    samples = [part.sample for part in parts if part.sample is not None]
    if samples:
        table = pa.concat_tables(samples)
        kept = _sample(np.asarray(table["value"], np.float64), np.asarray(table["hash"], np.uint64))
        values = np.sort(np.asarray(kept["value"], np.float64))
        quantiles = np.quantile(values, np.linspace(0, 1, _QUANTILES)) if len(values) else None
        return FittedNumbers("quantile", quantiles=quantiles)
    moments = Moments()
    for part in parts:
        moments = moments.plus(part.moments or Moments())
    scale = feature.scale if isinstance(feature, NumericFeature) else "log"
    return FittedNumbers(scale, center=moments.mean, spread=moments.spread)
