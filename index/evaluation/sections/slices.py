"""Slices: recall for some users or ads, compared with the rest: who is served worse, and how certain that is.

A slice of users is compared with all other users (Welch's t-test), a
slice of ads with the other ads of the same users (paired t-test). The p-values of a report are corrected together for
multiple testing (Benjamini and Hochberg 1995). Slices with fewer than ``min_slice_users`` users are never tested.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from index.evaluation.catalogue import Catalogue
from index.evaluation.measures.bootstrap import Interval, bootstrap
from index.evaluation.sections.part import Bounds, Figure, Part
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData
from pipelines.contracts.arrays import Bools, Float64, Int32
from pipelines.contracts.errors import ConfigError
from pipelines.sequences.item_sets import ItemSets

Population = Literal["users", "ads"]
SliceVerdict = Literal["worse", "better", "same", "small", "empty"]
# Number of values of a column that get their own slice; all others share one.
_LARGEST_VALUES = 8
OTHERS = "(others)"
MISSING = "(missing)"


class Slice(Part):
    """Recall of one slice.

    side: whether it holds users or ads. name, value: what it is. users: those with a held-out pair in it. pairs:
    held-out pairs in it. recall, interval: over its users. difference: its mean minus that of the rest. p_value: of the
    difference, None if it was not tested; p_adjusted: corrected for all tests. verdict: "worse", "better", "same",
    "small" (too few users) or "empty".
    """

    side: Population
    name: str
    value: str
    users: int
    pairs: int
    recall: Figure
    interval: Bounds
    difference: float | None
    p_value: float | None
    p_adjusted: float | None
    verdict: SliceVerdict


@dataclass(frozen=True)
class Cut:
    """A slice before it is measured. users: ``[users] bool``, or ads: ``[items] bool``."""

    side: Population
    name: str
    value: str
    chosen: Bools


@dataclass(frozen=True)
class TruthHits:
    """Which held-out pairs a ranking found. truth: the pairs; hit: ``[pairs] bool``; k: the cut-off."""

    truth: ItemSets
    hit: Bools
    k: int

    @classmethod
    def of(cls, ranked: Int32, truth: ItemSets, k: int) -> TruthHits:
        """Looks up the first k of each ranking (``[users, depth] int32``)."""
        places = truth.find(ranked[:, :k])
        hit = np.zeros(len(truth.rows), np.bool_)
        hit[places[places >= 0]] = True
        return cls(truth, hit, k)

    def recall(self, pairs: Bools) -> Float64:
        """``[users] float64``: recall of some of the pairs only, NaN for users without any."""
        sizes = np.bincount(self.truth.owners[pairs], minlength=self.truth.num_users)
        hits = np.bincount(self.truth.owners[pairs & self.hit], minlength=self.truth.num_users)
        return np.where(sizes > 0, hits / np.maximum(np.minimum(sizes, self.k), 1), np.nan)


def measure_slices(
    ranked: Int32, data: EvaluationData, catalogue: Catalogue, settings: EvaluationSettings
) -> tuple[Slice, ...]:
    """Measures every slice at ``waterfall_k``.

    Args:
        ranked: ``[users, depth] int32`` what is served.
        data: the same users.
        catalogue: what is known about the ads.
        settings: columns, the smallest slice, the bootstrap.

    Raises:
        ConfigError: ``slices`` names a column that neither users nor items have.
    """
    found = TruthHits.of(ranked, data.held_out.truth, settings.waterfall_k)
    everything = np.ones(len(found.truth.rows), np.bool_)
    overall = found.recall(everything)
    cuts = [*user_cuts(data, settings), *ad_cuts(data, catalogue, settings)]
    untested = [_measure(cut, found, overall, settings) for cut in cuts]
    return corrected(untested, settings)


def user_cuts(data: EvaluationData, settings: EvaluationSettings) -> Iterator[Cut]:
    """Slices of users: length of the history, and the columns named in the settings."""
    for value, chosen in bands(data.history_events.astype(np.float64), (1, 5, 20, 100), "events"):
        name = "new users" if value == "0 events" else value
        yield Cut("users", "history", name, chosen)
    users = data.users.profiles
    for column in settings.slices:
        if column in users.column_names:
            yield from column_cuts("users", column, users[column].take(pa.array(data.held_out.users)))


def ad_cuts(data: EvaluationData, catalogue: Catalogue, settings: EvaluationSettings) -> Iterator[Cut]:
    """Slices of ads: never seen, category, price, advertiser's size, popularity, age, and the columns named."""
    known = set(data.users.profiles.column_names) | set(data.items.column_names)
    unknown = sorted(set(settings.slices) - known)
    if unknown:
        raise ConfigError(
            f"evaluation.slices: expected columns of the users or items table ({', '.join(sorted(known))}), got "
            f"{unknown[0]!r}."
        )
    yield Cut("ads", "ad", "never seen in training", ~catalogue.learned)
    yield Cut("ads", "ad", "seen in training", catalogue.learned)
    if catalogue.category is not None:
        yield from column_cuts("ads", "category", catalogue.category)
    if catalogue.price is not None:
        yield from _quantiles("price", catalogue.price, 4)
    if catalogue.advertiser is not None:
        sizes = np.bincount(catalogue.advertiser)[catalogue.advertiser].astype(np.float64)
        for value, chosen in bands(sizes, (2, 10, 100, 1000), "ads", first=1):
            yield Cut("ads", "advertiser size", value, chosen)
    yield from _popularity_deciles(data.item_events)
    if catalogue.age_days is not None:
        for value, chosen in bands(catalogue.age_days, (settings.fresh_days, 90, 180, 365), "days"):
            yield Cut("ads", "age of the ad", value, chosen)
    for column in settings.slices:
        if column in data.items.column_names:
            yield from column_cuts("ads", column, data.items[column])


def bands(values: Float64, bounds: tuple[int, ...], unit: str, first: int = 0) -> Iterator[tuple[str, Bools]]:
    """Half-open bands between the bounds, beginning with ``first``, then a band for missing values if there are any."""
    edges = [first, *bounds]
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (values >= low) if high is None else (values >= low) & (values < high)
        last = None if high is None else high - 1
        name = f"{low}+ {unit}" if high is None else f"{low} {unit}" if last == low else f"{low}–{last} {unit}"
        yield name, inside
    if np.isnan(values).any():
        yield MISSING, np.isnan(values)


def _quantiles(name: str, values: Float64, parts: int) -> Iterator[Cut]:
    present = values[np.isfinite(values)]
    if len(present) == 0:
        return
    edges = np.unique(np.quantile(present, np.linspace(0, 1, parts + 1)))
    for number_of, (low, high) in enumerate(itertools.pairwise(edges)):
        last = number_of == len(edges) - 2
        yield Cut(
            "ads", name, f"{low:.4g} to {high:.4g}", (values >= low) & ((values <= high) if last else (values < high))
        )
    if np.isnan(values).any():
        yield Cut("ads", name, MISSING, np.isnan(values))


def _popularity_deciles(item_events: Float64) -> Iterator[Cut]:
    """Ten parts of the ads with events, by rank: the first decile is the most frequent tenth."""
    order = np.argsort(-item_events, kind="stable")
    met = int((item_events > 0).sum())
    for decile in range(10):
        chosen = np.zeros(len(item_events), np.bool_)
        chosen[order[met * decile // 10 : met * (decile + 1) // 10]] = True
        yield Cut("ads", "popularity", f"decile {decile + 1}", chosen)


def column_cuts(side: Population, name: str, column: pa.ChunkedArray) -> Iterator[Cut]:
    """Slices by the most frequent values of a column, the others together, and missing values."""
    text = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_nested(text.type):
        return
    text = text.cast(pa.string())
    counted = sorted(pc.value_counts(text.drop_null()).to_pylist(), key=lambda one: (-one["counts"], one["values"]))
    named = [one["values"] for one in counted[:_LARGEST_VALUES]]
    for value in named:
        yield Cut(side, name, value, _bools(pc.equal(text, value)))
    rest = pc.and_(pc.is_valid(text), pc.invert(pc.is_in(text, pa.array(named, pa.string()))))
    if len(counted) > len(named):
        yield Cut(side, name, OTHERS, _bools(rest))
    if text.null_count:
        yield Cut(side, name, MISSING, _bools(pc.is_null(text)))


def _bools(array: pa.Array) -> Bools:
    return np.asarray(pc.fill_null(array, False), np.bool_)


@dataclass(frozen=True)
class _Untested:
    cut: Cut
    pairs: int
    recall: Interval
    difference: float | None
    p_value: float | None


def _measure(cut: Cut, found: TruthHits, overall: Float64, settings: EvaluationSettings) -> _Untested:
    truth = found.truth
    if cut.side == "users":
        inside = cut.chosen[truth.owners]
        own, rest = overall[cut.chosen], overall[~cut.chosen]
        own, rest = own[np.isfinite(own)], rest[np.isfinite(rest)]
    else:
        inside = cut.chosen[truth.rows]
        own, rest = found.recall(inside), found.recall(~inside)
    interval = bootstrap(own[np.isfinite(own)], resamples=settings.resamples, confidence=settings.confidence)[0]
    if cut.side == "ads":
        both = np.isfinite(own) & np.isfinite(rest)
        own, rest = own[both], rest[both]
    least = settings.min_slice_users
    if len(own) < least or len(rest) < least:
        difference = float(own.mean() - rest.mean()) if len(own) and len(rest) else None
        return _Untested(cut, int(inside.sum()), interval, difference, None)
    with warnings.catch_warnings():
        # If all users have the same recall, the test has no value: there is no difference, or a certain one.
        warnings.simplefilter("ignore", RuntimeWarning)
        test = stats.ttest_rel(own, rest) if cut.side == "ads" else stats.ttest_ind(own, rest, equal_var=False)
    difference = float(own.mean() - rest.mean())
    p_value = float(test.pvalue) if np.isfinite(test.pvalue) else float(difference == 0.0)
    return _Untested(cut, int(inside.sum()), interval, difference, p_value)


def corrected(untested: list[_Untested], settings: EvaluationSettings) -> tuple[Slice, ...]:
    """Corrects all p-values together and returns the verdicts."""
    tested = [number_of for number_of, one in enumerate(untested) if one.p_value is not None]
    adjusted: dict[int, float] = {}
    if tested:
        values = stats.false_discovery_control([untested[place].p_value for place in tested])
        adjusted = dict(zip(tested, values.tolist(), strict=True))
    return tuple(_judged(one, adjusted.get(place), settings) for place, one in enumerate(untested))


def _judged(one: _Untested, adjusted: float | None, settings: EvaluationSettings) -> Slice:
    verdict: SliceVerdict = "same"
    if one.recall.users == 0:
        verdict = "empty"
    elif adjusted is None:
        verdict = "small"
    elif adjusted < 1.0 - settings.confidence and one.difference is not None:
        verdict = "worse" if one.difference < 0 else "better"
    cut = one.cut
    return Slice(
        side=cut.side,
        name=cut.name,
        value=cut.value,
        users=one.recall.users,
        pairs=one.pairs,
        recall=one.recall.mean,
        interval=(one.recall.low, one.recall.high),
        difference=one.difference,
        p_value=one.p_value,
        p_adjusted=adjusted,
        verdict=verdict,
    )
