"""The section ``[evaluation]`` of the TOML: what a report measures and how finely.

Reads and writes nothing.
"""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.contracts.schema import Section

BaselineName = Literal["popularity", "recent_popularity", "own_frequency", "item_knn", "als"]
BASELINES: tuple[BaselineName, ...] = ("popularity", "recent_popularity", "own_frequency", "item_knn", "als")


class EvaluationSettings(Section):
    """``[evaluation]``: how ``towerline evaluate`` and ``towerline compare`` measure.

    k: cut-offs, rising. The largest is how many items are ranked for each user.
    remove_seen: drop what the user met before from the ranking and from the truth (the protocol of data sets
        without repeats); the table then has no "repeat".
    max_users: evaluate a stable sample of at most so many users; None takes all.
    baselines: what is fitted beside the bundle, on the same history.
    recent_days: window of recent popularity.
    als_factors, als_iterations, knn_neighbors: settings of the two learned baselines (library ``implicit``).
    confidence, resamples: of the bootstrap over users.
    propensity_power, propensity_clip: the propensity of an item is ``(n / max n) ** power``, never below the clip.
        .5 is the middle of what Yang et al. 2018 report for implicit feedback.
    slices: columns of the items or users table to slice by, next to the built-in slices.
    category: the column of the items table that calibration, diversity and gaps are told in; None takes the first
        categorical item feature.
    price: a numeric column of the items table for price bands and gaps.
    first_seen: a time column of the items table; the age of an ad; None takes the first ``time_since`` item feature.
    min_slice_users: a slice with fewer is shown, flagged, and never called different.
    fresh_days: an ad is fresh for so many days.
    eligible: a rule (``where``) that says which ads may be shown; None allows all.
    max_per: attribute to the most candidates that may share a value of it; the waterfall's crowding stage.
    value_weight: weight of the value in the waterfall's last stage.
    value_weights: the weights at which recall and value are traded off.
    waterfall_k: the cut-off the waterfall explains.
    gaps: how many content gaps a report tells.
    map: how the embedding space is laid on a plane: pca, or umap (the extra ``towerline[umap]``).
    """

    k: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 500)
    remove_seen: bool = False
    max_users: int | None = Field(default=None, ge=1)
    baselines: tuple[BaselineName, ...] = BASELINES
    recent_days: int = Field(default=28, ge=1)
    als_factors: int = Field(default=64, ge=1)
    als_iterations: int = Field(default=15, ge=1)
    knn_neighbors: int = Field(default=500, ge=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    resamples: int = Field(default=1000, ge=100)
    propensity_power: float = Field(default=0.5, gt=0.0, le=1.0)
    propensity_clip: float = Field(default=0.01, gt=0.0, le=1.0)
    slices: tuple[str, ...] = ()
    category: str | None = None
    price: str | None = None
    first_seen: str | None = None
    min_slice_users: int = Field(default=30, ge=2)
    fresh_days: int = Field(default=28, ge=1)
    eligible: str | None = None
    max_per: dict[str, int] = Field(default_factory=dict)
    value_weight: float = Field(default=0.0, ge=0.0)
    value_weights: tuple[float, ...] = (0.0, 0.05, 0.1, 0.2, 0.5, 1.0)
    waterfall_k: int = Field(default=100, ge=1)
    gaps: int = Field(default=8, ge=1)
    map: Literal["pca", "umap"] = "pca"
    seed: int = 17

    @field_validator("k")
    @classmethod
    def _rising(cls, k: tuple[int, ...]) -> tuple[int, ...]:
        if not k or k[0] < 1 or any(small >= large for small, large in itertools.pairwise(k)):
            raise ValueError(f"expected rising cut-offs of 1 or more, got {list(k)}")
        return k

    @model_validator(mode="after")
    def _ranked_deep_enough(self) -> Self:
        if self.waterfall_k > self.k[-1]:
            raise ValueError(f"waterfall_k: at most the largest k, {self.k[-1]}, got {self.waterfall_k}")
        return self
