"""Health of the marketplace: who is shown, how evenly, how new, and how similar to what users chose before.

An exposure is one place in the top k of one user. Every figure about exposures is shown next to the same figure of
the users' past: the marketplace as it was without the towers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.evaluation.catalogue import Catalogue
from index.evaluation.measures.bootstrap import bootstrap
from index.evaluation.sections.part import Figure, Mean, Part
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from pipelines.contracts.arrays import Bools, Float64, Int32
from pipelines.sequences.item_sets import ItemSets

# Steck 2018 (Calibrated recommendations), eq. 4: keeps the divergence finite where a category is never shown.
_SMOOTHING = 0.01
# Number of users whose lists are compared at once.
_USERS_AT_ONCE = 1024


class Spread(Part):
    """How evenly exposures are spread over entities (ads or advertisers).

    coverage: share of entities shown at all. gini: 0 if all are equal, 1 if one has everything. effective_number: exp
    of the Shannon entropy, the number of equally shown entities with the same spread (Hill 1973, order 1).
    """

    things: int
    coverage: float
    gini: Figure
    effective_number: Figure

    @classmethod
    def of(cls, exposures: Float64) -> Spread:
        """From ``[things] float64`` exposures; if nothing was shown, only the coverage (0) has a value."""
        total = exposures.sum()
        if total <= 0:
            return cls(things=len(exposures), coverage=0.0, gini=None, effective_number=None)
        shares = exposures[exposures > 0] / total
        return cls(
            things=len(exposures),
            coverage=float((exposures > 0).mean()),
            gini=gini(exposures),
            effective_number=float(np.exp(-(shares * np.log(shares)).sum())),
        )


def gini(values: Float64) -> float:
    """Gini coefficient of ``[n] float64`` values of 0 or more with a positive sum."""
    ordered = np.sort(values)
    n = len(ordered)
    ranks = np.arange(1, n + 1)
    return float((2.0 * ranks - n - 1) @ ordered / (n * ordered.sum()))


def lorenz(exposures: Float64, points: int = 200) -> npt.NDArray[np.float64]:
    """``[points + 1, 2]``: share of entities (least shown first) and their share of the exposures."""
    ordered = np.concatenate([[0.0], np.cumsum(np.sort(exposures))])
    at = np.linspace(0, len(exposures), points + 1)
    shares = np.interp(at, np.arange(len(ordered)), ordered / max(ordered[-1], 1e-300))
    return np.stack([at / max(len(exposures), 1), shares], axis=1)


class Health(Part):
    """Figures of what is served and of the past, side by side.

    category_calibration: Kullback–Leibler divergence of the categories shown to a user from those of the user's past,
    in nats, 0 if they are the same. intra_list_diversity: mean of 1 - cosine over the pairs of a list. novelty_bits:
    mean of -log2 of the share of users that interacted with an ad.
    """

    k: int
    ads: Spread
    past_ads: Spread
    advertisers: Spread | None = None
    past_advertisers: Spread | None = None
    fresh_share: float | None
    fresh_share_of_catalogue: float | None
    fresh_share_of_past: float | None
    category_calibration: Mean
    intra_list_diversity: Mean
    novelty_bits: Mean
    past_novelty_bits: Mean


@dataclass(frozen=True)
class Exposures:
    """How often each entity was shown, and chosen before: ``[ads]`` and ``[advertisers] float64``.

    Those of advertisers are None if the data set does not name them.
    """

    ads: Float64
    past_ads: Float64
    advertisers: Float64 | None
    past_advertisers: Float64 | None

    @classmethod
    def of(cls, top: Int32, data: EvaluationData, catalogue: Catalogue) -> Exposures:
        """Counts the places of ``top`` (``[users, k] int32``) and the events of the users' past."""
        items, past = len(data.item_ids), data.held_out.seen
        shown = np.bincount(top[top >= 0], minlength=items).astype(np.float64)
        met = np.bincount(past.rows, past.events, minlength=items).astype(np.float64)
        owned = catalogue.advertiser
        if owned is None:
            return cls(shown, met, None, None)
        return cls(shown, met, *(np.bincount(owned, counts).astype(np.float64) for counts in (shown, met)))


def measure_health(
    top: Int32, exposures: Exposures, subject: Subject, catalogue: Catalogue, settings: EvaluationSettings
) -> Health:
    """Measures the top ``waterfall_k`` of what is served.

    Args:
        top: ``[users, k] int32`` rows of the features' catalogue, -1 where a ranking has ended.
        exposures: counted from the same.
        subject: the version and the users.
        catalogue: what is known about the ads.
        settings: k, days of freshness, the bootstrap.
    """
    data = subject.data
    past = data.held_out.seen
    fresh = None if catalogue.age_days is None else catalogue.age_days < settings.fresh_days
    bits = item_bits(data.users.num_users, _users_of_items(subject))
    per_user = np.stack(
        [
            calibration(top, past, catalogue.category_code, len(catalogue.categories)),
            diversity(top, vectors_of_features(subject)),
            _mean_of(top, bits),
            _mean_of_pairs(past, bits),
        ],
        axis=1,
    )
    intervals = bootstrap(per_user, resamples=settings.resamples, confidence=settings.confidence)
    advertisers = {
        name: Spread.of(counts)
        for name, counts in (
            ("advertisers", exposures.advertisers),
            ("past_advertisers", exposures.past_advertisers),
        )
        if counts is not None
    }
    return Health(
        k=settings.waterfall_k,
        ads=Spread.of(exposures.ads[subject.in_catalogue]),
        past_ads=Spread.of(exposures.past_ads),
        **advertisers,
        fresh_share=_share(exposures.ads, fresh),
        fresh_share_of_catalogue=None if fresh is None else float(fresh.mean()),
        fresh_share_of_past=_share(exposures.past_ads, fresh),
        category_calibration=Mean.of(intervals[0]),
        intra_list_diversity=Mean.of(intervals[1]),
        novelty_bits=Mean.of(intervals[2]),
        past_novelty_bits=Mean.of(intervals[3]),
    )


def _share(exposures: Float64, chosen: Bools | None) -> float | None:
    total = float(exposures.sum())
    return None if chosen is None or total == 0 else float(exposures[chosen].sum() / total)


def _users_of_items(subject: Subject) -> Float64:
    """``[items] float64``: number of users of the features that interacted with each item before the test part."""
    met = ItemSets.of_events(subject.data.past)
    return np.bincount(met.rows, minlength=subject.data.num_items).astype(np.float64)


def item_bits(users: int, users_of_items: Float64) -> Float64:
    """``[items] float64``: -log2 of the share of users that interacted with an item, plus one user for every item."""
    return -np.log2((users_of_items + 1.0) / (users + 1.0))


def vectors_of_features(subject: Subject) -> npt.NDArray[np.float32]:
    """``[items of the features, dim] float32`` unit vectors, zeros for items that the version does not have."""
    vectors = np.zeros((len(subject.data.item_ids), subject.bundle.dim), np.float32)
    known = subject.to_feature_row >= 0
    vectors[subject.to_feature_row[known]] = subject.bundle.vectors[known]
    lengths: npt.NDArray[np.float32] = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    vectors /= lengths
    return vectors


def calibration(top: Int32, past: ItemSets, category: npt.NDArray[np.int32], categories: int) -> Float64:
    """``[users] float64``: divergence of the shown categories from the past's (Steck 2018, eq. 2 to 4); NaN for users
    without a past or without anything shown."""
    users = len(top)
    chosen = np.zeros((users, categories))
    np.add.at(chosen, (past.owners, category[past.rows]), past.events)
    shown = np.zeros((users, categories))
    who, place = np.nonzero(top >= 0)
    np.add.at(shown, (who, category[top[who, place]]), 1.0)
    usable = (chosen.sum(axis=1) > 0) & (shown.sum(axis=1) > 0)
    p = chosen[usable] / chosen[usable].sum(axis=1, keepdims=True)
    q = shown[usable] / shown[usable].sum(axis=1, keepdims=True)
    q = (1.0 - _SMOOTHING) * q + _SMOOTHING * p
    ratio = np.where(p > 0, p / np.where(p > 0, q, 1.0), 1.0)
    result = np.full(users, np.nan)
    result[usable] = (p * np.log(ratio)).sum(axis=1)
    return result


def diversity(top: Int32, unit_vectors: npt.NDArray[np.float32]) -> Float64:
    """``[users] float64``: mean of 1 - cosine over the pairs of a list; NaN for lists of fewer than two ads.

    The pairs' cosines sum to (squared length of the sum of the vectors - their number) / 2.
    """
    result = np.full(len(top), np.nan)
    for start in range(0, len(top), _USERS_AT_ONCE):
        part = top[start : start + _USERS_AT_ONCE]
        present = part >= 0
        sums = np.einsum("uk,ukd->ud", present.astype(np.float64), unit_vectors[np.where(present, part, 0)])
        counts = present.sum(axis=1).astype(np.float64)
        own = np.einsum("uk,uk->u", present, (unit_vectors[np.where(present, part, 0)] ** 2).sum(axis=2))
        pairs = counts * (counts - 1.0)
        cosines = ((sums**2).sum(axis=1) - own) / np.where(pairs > 0, pairs, 1.0)
        result[start : start + len(part)] = np.where(pairs > 0, 1.0 - cosines, np.nan)
    return result


def _mean_of(top: Int32, values: Float64) -> Float64:
    present = top >= 0
    counts = present.sum(axis=1)
    sums = np.where(present, values[np.where(present, top, 0)], 0.0).sum(axis=1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _mean_of_pairs(past: ItemSets, values: Float64) -> Float64:
    weights = np.bincount(past.owners, past.events, minlength=past.num_users)
    sums = np.bincount(past.owners, past.events * values[past.rows], minlength=past.num_users)
    return np.where(weights > 0, sums / np.maximum(weights, 1), np.nan)
