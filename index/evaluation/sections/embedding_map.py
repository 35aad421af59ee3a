"""The map of the embedding space: ads, and the centers of content gaps, on a plane.

It shows directions: vector lengths (with a dot product, mostly an ad's popularity) are normalised, because otherwise a
few outliers would squeeze all other ads together. PCA is the default; UMAP (McInnes et al. 2018, library
``umap-learn``, an extra) keeps neighbors together where PCA overlays them.
"""

from __future__ import annotations

import importlib.util
import os
import warnings

import numpy as np
import numpy.typing as npt

from index.evaluation.catalogue import Catalogue
from index.evaluation.sections.gaps import Gaps
from index.evaluation.sections.part import Part
from index.evaluation.settings import SEED, EvaluationSettings
from index.evaluation.subject import Subject
from pipelines.contracts.errors import ConfigError
from pipelines.user_folders import cache_folder

_ADS = 3000
_CATEGORIES = 8
Plane = npt.NDArray[np.float64]


def check_umap() -> None:
    """Checks that the library ``umap-learn`` is installed.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("umap") is None:
        raise ConfigError(
            "evaluation.map: umap needs the library umap-learn, which is not installed. Install 'towerline[umap]', or "
            "set evaluation.map = 'pca'."
        )


class EmbeddingMap(Part):
    """A sample of the ads, and the centers of the gaps, on a plane.

    points: ``[ads, 2]``; category: ``[ads]`` each ad's place in ``categories``. gaps: ``[gaps, 2]``. explained:
    the share of the variance along each axis; None for UMAP, whose axes mean nothing.
    """

    method: str
    points: list[tuple[float, float]]
    category: list[int]
    categories: list[str]
    gaps: list[tuple[float, float]]
    explained: tuple[float, float] | None


def embedding_map(subject: Subject, catalogue: Catalogue, gaps: Gaps, settings: EvaluationSettings) -> EmbeddingMap:
    """Places a sample of the ads, and the centers of the gaps, on a plane.

    Raises:
        ConfigError: UMAP is asked for and not installed.
    """
    vectors = subject.bundle.vectors
    rng = np.random.default_rng(SEED)
    chosen = np.sort(rng.choice(len(vectors), min(_ADS, len(vectors)), replace=False))
    ads = directions(vectors[chosen])
    middles = directions(gaps.regions.middles[[gap.region for gap in gaps.found]])
    explained: tuple[float, float] | None = None
    if settings.map == "umap":
        both = by_umap(np.concatenate([ads, middles]), SEED)
        points, marks = both[: len(ads)], both[len(ads) :]
    else:
        points, marks, explained = by_pca(ads, middles)
    place, names = largest_categories(catalogue)
    rows = subject.to_feature_row[chosen]
    codes = np.where(rows >= 0, catalogue.category_code[rows], len(catalogue.categories) - 1)
    return EmbeddingMap(
        method=settings.map,
        points=np.round(points, 4).tolist(),
        category=place[codes].tolist(),
        categories=names,
        gaps=np.round(marks, 4).tolist(),
        explained=explained,
    )


def directions(vectors: npt.NDArray[np.float32]) -> Plane:
    """``[n, dim] float64`` of length 1; rows of zeros stay zero."""
    wide = vectors.astype(np.float64)
    scaled: Plane = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-30)
    return scaled


def by_pca(ads: Plane, others: Plane) -> tuple[Plane, Plane, tuple[float, float]]:
    """Both projected on the two principal axes of the first, ``[n, 2]``, and the explained shares of the variance."""
    middle = ads.mean(axis=0)
    _, strengths, axes = np.linalg.svd(ads - middle, full_matrices=False)
    plane = axes[:2].T
    variance = strengths**2 / max(float((strengths**2).sum()), 1e-300)
    return (ads - middle) @ plane, (others - middle) @ plane, (float(variance[0]), float(variance[1]))


def by_umap(points: Plane, seed: int) -> Plane:
    """``[n, 2]``: neighbors by cosine stay neighbors; the same seed gives the same map.

    Raises:
        ConfigError: umap-learn is not installed.
    """
    check_umap()
    # Numba keeps what it has compiled next to the library or in the home, and fails where it can write to neither.
    os.environ.setdefault("NUMBA_CACHE_DIR", str(cache_folder() / "numba"))
    with warnings.catch_warnings():
        # Numba's and UMAP's warnings about threads and deprecations do not concern the map.
        warnings.simplefilter("ignore")
        from umap import UMAP

        neighbors = min(15, len(points) - 1)
        start = "spectral" if len(points) > 2 * neighbors else "random"
        placed = UMAP(n_neighbors=neighbors, metric="cosine", init=start, random_state=seed, n_jobs=1).fit_transform(
            points
        )
    return np.asarray(placed, np.float64)


def largest_categories(catalogue: Catalogue) -> tuple[npt.NDArray[np.int64], list[str]]:
    """``[categories]`` the place of each among the largest, which are named; all others share the last place."""
    counted = np.bincount(catalogue.category_code, minlength=len(catalogue.categories))
    largest = np.argsort(-counted, kind="stable")[:_CATEGORIES].tolist()
    place = np.full(len(catalogue.categories), len(largest))
    place[largest] = np.arange(len(largest))
    return place, [*(catalogue.categories[code] for code in largest), "(others)"]
