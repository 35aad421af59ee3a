"""The section ``[evaluation]`` of the TOML: what a report measures."""

from __future__ import annotations

import itertools
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.contracts.configuration import Section

BaselineName = Literal["popularity", "recent_popularity", "own_frequency", "own_decayed", "item_knn", "als"]
BASELINES: tuple[BaselineName, ...] = (
    *("popularity", "recent_popularity", "own_frequency", "own_decayed"),
    *("item_knn", "als"),
)
# Every report samples and resamples with the same seed, so that two reports of the same data can be compared.
SEED = 17


class EvaluationSettings(Section):
    """How ``towerline evaluate`` and ``towerline compare`` measure, on held-out events."""

    k: tuple[int, ...] = Field(
        default=(1, 5, 10, 20, 50, 100, 500),
        description="Cut-offs, in rising order. The largest is the number of items ranked per user.",
    )
    remove_seen: bool = Field(
        default=False,
        description="Drop what the user interacted with before from the ranking and from the held-out events. This is "
        "the usual protocol of data sets without repeated purchases.",
    )
    context_is_seen: bool = Field(
        default=False,
        description="Items that a user had by actions of weight 0 alone (impressions) are not novel either, and "
        "remove_seen drops them too.",
    )
    max_users: int | None = Field(
        default=None, ge=1, description="Evaluate a stable sample of at most this many users. Not set: all."
    )
    baselines: tuple[BaselineName, ...] = Field(
        default=BASELINES,
        description="Baselines to fit on the same history. own_decayed is own_frequency with a half-life chosen on the "
        "validation part. item_knn and als need the library `implicit`.",
    )
    recent_days: int = Field(default=28, ge=1, description="Window of the baseline recent_popularity, in days.")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1.0, description="Confidence level of the bootstrap intervals over users."
    )
    resamples: int = Field(
        default=1000, ge=100, description="Number of bootstrap resamples. Fewer: faster and less exact intervals."
    )
    slices: tuple[str, ...] = Field(
        default=(), description="Columns of the items or users table to slice by, next to the built-in slices."
    )
    category: str | None = Field(
        default=None,
        description="Column of the items table used for calibration, diversity and content gaps. Not set: the first "
        "categorical item feature.",
    )
    price: str | None = Field(
        default=None, description="Numeric column of the items table, for price bands. Not set: no price bands."
    )
    first_seen: str | None = Field(
        default=None,
        description="Time column of the items table from which an item's age counts. Not set: the first time_since "
        "item feature.",
    )
    min_slice_users: int = Field(
        default=30,
        ge=2,
        description="Slices with fewer users are drawn as hollow dots and never tested for significance.",
    )
    fresh_days: int = Field(default=28, ge=1, description="An item counts as fresh for this many days.")
    eligible: str | None = Field(
        default=None,
        description="Rule (as in `where`) for the items that may be shown. The waterfall and the content gaps use it. "
        "Not set: all items.",
    )
    max_per: dict[str, int] = Field(
        default_factory=dict,
        description="Maximum number of candidates per value of an attribute, for example { brand = 5 }, in the "
        "waterfall's stage of crowding limits.",
    )
    value_weight: float = Field(
        default=0.0, ge=0.0, description="Weight of the value (`index.value`) in the waterfall's last stage."
    )
    value_weights: tuple[float, ...] = Field(
        default=(0.0, 0.05, 0.1, 0.2, 0.5, 1.0),
        description="Weights of the value in the curve of recall against value.",
    )
    waterfall_k: int = Field(
        default=100,
        ge=1,
        description="Cut-off of the waterfall, the slices and the item health. At most the largest k.",
    )
    gaps: int = Field(default=8, ge=1, description="Number of content gaps in the report.")
    map: Literal["pca", "umap"] = Field(
        default="pca",
        description="How the embedding map is laid out. umap shows neighbourhoods better and needs the extra "
        "`towerline[umap]`.",
    )

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
