"""Content gaps: regions of the embedding space with many users but few good ads that may be shown.

The regions are the leaves of the version's own tree. A version with exact search has no tree and gets k-means regions
of about 200 ads, clustered by direction (vector lengths are mostly popularity, and would make each best-seller a
region).
A user counts by a third in each of the three regions whose centers score best. A region's good ads are its eligible ads
that are in the top k of any evaluated user. A gap's size is users per good ad, relative to the whole marketplace.
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index.evaluation.catalogue import Catalogue
from index.evaluation.sections.part import Part
from index.evaluation.settings import SEED, EvaluationSettings
from index.evaluation.subject import Subject
from index.registry.bundle import Bundle
from index.rules.attributes import Attributes
from index.rules.where import mask_of
from index.search.leaves import Leaves
from index.search.searcher import Vectors
from pipelines.contracts.arrays import Bools, Float64, Int32

_REGIONS_OF_USER = 3
_ADS_OF_REGION = 200
# A k-means region with fewer ads is merged into its neighbors: a single ad is not a region.
_LEAST_ADS = 20
_KMEANS_SAMPLE = 8000
_KMEANS_REGIONS = 250
_TOKENS = 6
_NEAREST = 5


@dataclass(frozen=True)
class Regions:
    """Parts of the space. region_of_row: ``[items of the version] int32``. middles: ``[regions, dim] float32``.

    of_tree: they are the index's own leaves.
    """

    region_of_row: npt.NDArray[np.int32]
    middles: Vectors
    of_tree: bool

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self.middles)

    @classmethod
    def of(cls, bundle: Bundle, seed: int) -> Regions:
        """The leaves of the bundle's tree, or k-means regions if it has none."""
        leaves = Leaves.of(bundle.searcher, bundle.vectors)
        if leaves is not None:
            return cls(leaves.leaf_of_row, leaves.centroids, of_tree=True)
        return cls._by_kmeans(bundle.vectors, seed)

    @classmethod
    def _by_kmeans(cls, vectors: Vectors, seed: int) -> Regions:
        from scipy.cluster.vq import kmeans2

        wanted = max(1, min(len(vectors) // _ADS_OF_REGION, _KMEANS_REGIONS))
        rng = np.random.default_rng(seed)
        sample = _directions(
            vectors[np.sort(rng.choice(len(vectors), min(len(vectors), _KMEANS_SAMPLE), replace=False))]
        )
        start = sample[rng.choice(len(sample), wanted, replace=False)].astype(np.float64)
        with warnings.catch_warnings():
            # An empty region keeps its center and is merged like the small ones.
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            middles = kmeans2(sample.astype(np.float64), start, iter=6, minit="matrix")[0]
        middles = _directions(middles.astype(np.float32))
        sizes = np.bincount(nearest_middle(_directions(vectors), middles), minlength=wanted)
        kept = middles[(sizes >= _LEAST_ADS) | (sizes == sizes.max())]
        return cls(nearest_middle(_directions(vectors), kept), kept, of_tree=False)

    def containing(self, vectors: Vectors) -> npt.NDArray[np.int32]:
        """``[n] int32``: the region of each vector of the same space."""
        return nearest_middle(vectors if self.of_tree else _directions(vectors), self.middles)


def _directions(vectors: Vectors) -> Vectors:
    """Rows scaled to length 1; rows of zeros stay zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Vectors = (vectors / np.maximum(lengths, 1e-30)).astype(np.float32)
    return scaled


def nearest_middle(vectors: Vectors, middles: Vectors) -> npt.NDArray[np.int32]:
    """``[items] int32``: the center nearest to each vector by Euclidean distance."""
    half = (middles**2).sum(axis=1) / 2.0
    nearest = np.empty(len(vectors), np.int32)
    for start in range(0, len(vectors), 1 << 14):
        nearest[start : start + (1 << 14)] = (vectors[start : start + (1 << 14)] @ middles.T - half).argmax(axis=1)
    return nearest


class Gap(Part):
    """One region.

    demand: users, in thirds. ads: all in the region; supply: the eligible ones; good: those in any user's top k.
    pressure: users per (good ads + 1), relative to the whole marketplace. supply_before: ads of the previous version in
    the region, None if unknown.
    """

    region: int
    demand: float
    ads: int
    supply: int
    good: int
    pressure: float
    categories: tuple[str, ...]
    tokens: tuple[str, ...]
    nearest: tuple[str, ...]
    median_price: float | None
    supply_before: int | None


class GapsPart(Part):
    """The largest gaps, most pressing first, and the number of all regions."""

    regions: int
    regions_of_the_tree: bool
    found: tuple[Gap, ...]


@dataclass(frozen=True)
class Gaps:
    """The largest gaps, most pressing first. demand, good: ``[regions] float64`` of all regions, for the map."""

    regions: Regions
    found: tuple[Gap, ...]
    demand: Float64
    good: Float64

    def part(self) -> GapsPart:
        """The part of the report."""
        return GapsPart(regions=self.regions.number, regions_of_the_tree=self.regions.of_tree, found=self.found)


def find_gaps(
    served: Int32,
    subject: Subject,
    catalogue: Catalogue,
    settings: EvaluationSettings,
    previous: Bundle | None = None,
) -> Gaps:
    """Finds regions with many users and few good eligible ads.

    Args:
        served: ``[users, depth] int32`` rows of the features' catalogue.
        subject: the version and its users.
        catalogue: what is known about the ads.
        settings: the rule of eligibility, k, number of gaps.
        previous: the version before, for the trend of the supply.

    Raises:
        SchemaError: the rule does not fit the bundle's attributes.
    """
    bundle = subject.bundle
    regions = Regions.of(bundle, SEED)
    eligible = np.ones(bundle.num_items, np.bool_)
    if settings.eligible is not None:
        eligible = np.asarray(mask_of(settings.eligible, Attributes(bundle.items)), np.bool_)
    demand = user_demand(subject.user_vectors, regions)
    good_rows = good_ads(served[:, : settings.waterfall_k], subject.to_feature_row) & eligible
    supply = np.bincount(regions.region_of_row[eligible], minlength=regions.number)
    good = np.bincount(regions.region_of_row[good_rows], minlength=regions.number).astype(np.float64)
    overall = demand.sum() / max(good.sum(), 1.0)
    pressure = demand / (good + 1.0) / max(overall, 1e-12)
    # A region with less than a tenth of the mean demand is ignored.
    order = np.lexsort((np.arange(len(demand)), -np.where(demand >= 0.1 * demand.mean(), pressure, 0.0)))
    before = _supply_before(previous, subject, regions)
    describe = _Describer(subject, catalogue, regions)
    found = [
        Gap(
            region=int(region),
            demand=round(float(demand[region]), 2),
            ads=int((regions.region_of_row == region).sum()),
            supply=int(supply[region]),
            good=int(good[region]),
            pressure=round(float(pressure[region]), 3),
            supply_before=None if before is None else int(before[region]),
            **describe.words(int(region)),
        )
        for region in order[: settings.gaps]
    ]
    return Gaps(regions, tuple(found), demand, good)


def user_demand(users: Vectors, regions: Regions) -> Float64:
    """``[regions] float64``: users, each divided over the regions whose centers score best."""
    shares = min(_REGIONS_OF_USER, regions.number)
    if len(users) == 0:
        return np.zeros(regions.number)
    scores = users @ regions.middles.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :shares]
    return np.bincount(best.ravel(), minlength=regions.number) / shares


def good_ads(top: Int32, to_feature_row: Int32) -> Bools:
    """``[items of the version] bool``: the ad is in some user's top k."""
    shown = np.unique(top[top >= 0])
    return np.isin(to_feature_row, shown)


def _supply_before(previous: Bundle | None, subject: Subject, regions: Regions) -> npt.NDArray[np.int64] | None:
    """Ads of the previous version by region: by its vectors if the space is the same, else by the ads in common."""
    if previous is None:
        return None
    if previous.space == subject.bundle.space:
        rows = regions.containing(previous.vectors)
        return np.bincount(rows, minlength=regions.number)
    had = subject.data.rows_of(previous.vocabulary.item_ids)
    shared = np.isin(subject.to_feature_row, had[had >= 0])
    return np.bincount(regions.region_of_row[shared], minlength=regions.number)


class _Describer:
    """Describes a region: categories, words that are frequent in it and rare elsewhere, nearest ads."""

    def __init__(self, subject: Subject, catalogue: Catalogue, regions: Regions) -> None:
        self._subject, self._catalogue, self._regions = subject, catalogue, regions
        titles = catalogue.title
        self._titles = [None] * len(subject.data.item_ids) if titles is None else titles.to_pylist()
        self._words = [set(re.findall(r"[^\W\d_]{3,}", str(title or "").lower())) for title in self._titles]
        self._everywhere = Counter(word for words in self._words for word in words)

    def words(self, region: int) -> dict[str, Any]:
        subject, catalogue = self._subject, self._catalogue
        own = np.flatnonzero(self._regions.region_of_row == region)
        rows = subject.to_feature_row[own]
        rows = rows[rows >= 0]
        counted = Counter(catalogue.categories[code] for code in catalogue.category_code[rows].tolist())
        frequent = Counter(word for row in rows.tolist() for word in self._words[row])
        total = len(self._titles)
        # How much more frequent here than everywhere, weighted by the frequency here.
        share = total / max(len(rows), 1)
        words = sorted(
            frequent,
            key=lambda word: (-frequent[word] * np.log(share * frequent[word] / self._everywhere[word]), word),
        )
        scores = subject.bundle.vectors[own] @ self._regions.middles[region]
        nearest = subject.to_feature_row[own[np.argsort(-scores, kind="stable")[:_NEAREST]]]
        prices = np.zeros(0) if catalogue.price is None else catalogue.price[rows]
        prices = prices[np.isfinite(prices)]
        ids = subject.data.item_ids
        return {
            "categories": tuple(
                f"{name} {100 * count / max(len(rows), 1):.0f} %" for name, count in counted.most_common(3)
            ),
            "tokens": tuple(words[:_TOKENS]),
            "nearest": tuple(
                str(ids[row].as_py()) + (f" {self._titles[row]}" if self._titles[row] else "")
                for row in nearest.tolist()
                if row >= 0
            ),
            "median_price": round(float(np.median(prices)), 2) if len(prices) else None,
        }
