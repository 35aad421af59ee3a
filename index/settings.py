"""The sections ``[index]``, ``[gates]`` and ``[refresh]`` of the TOML, and the settings of one tree.

Reads and writes nothing. A default has a reason or a measurement beside it.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.schema import Section

ReorderType = Literal["float32", "bf16", "int8"]
Engine = Literal["exact", "scann"]


class TreeSettings(Section):
    """What a ScaNN tree is built with, and how hard it searches when a call does not say.

    leaves: partitions of the catalogue.
    leaves_to_search, reorder: the default effort (see ``Effort``).
    soar_lambda: weight of SOAR's second assignment (Sun et al. 2023); None assigns each item once.
    anisotropic_threshold: T of anisotropic quantisation (Guo et al. 2020, eq. 4); None quantises plainly.
    dims_per_block: dimensions that share one 4-bit code.
    reorder_type: how the vectors that reordering reads are stored.
    training_sample: vectors that k-means and the codebook are trained on.
    """

    leaves: int = Field(ge=1)
    leaves_to_search: int = Field(ge=1)
    reorder: int = Field(ge=1)
    soar_lambda: float | None = Field(default=None, gt=0.0)
    anisotropic_threshold: float | None = Field(default=0.2, ge=0.0, lt=1.0)
    dims_per_block: int = Field(default=2, ge=1)
    reorder_type: ReorderType = "float32"
    training_sample: int = Field(default=100_000, ge=1)

    @model_validator(mode="after")
    def _within_tree(self) -> Self:
        if self.leaves_to_search > self.leaves:
            raise ValueError(f"leaves_to_search: at most the {self.leaves} leaves, got {self.leaves_to_search}")
        return self


class IndexSettings(Section):
    """``[index]``: how the bundle is built.

    attributes: columns of the items table that rules may name; they go into the bundle.
    ann_recall_at_100: the target for the share of exact search's best 100 that approximate search finds, on held-out
        users. The tuner adds ``recall_margin``, so that a target met in tuning is met on other users too: .004 is three
        standard errors between two samples of 1,000 users, and the best of many trees was lucky with its own.
    engine: "auto" takes exact search where that is fast enough, else the fastest tree that meets the target.
    exact_below_us: exact search is fast enough where its p50 is below this; it misses nothing, filters at no loss and
        needs no build. 100 µs is about what the query tower and the rules of a call take themselves.
    tree: settings by hand, with shards those of each; then nothing is tuned.
    tuning_queries: held-out users the tuner measures with. 1,000 give a standard error below .001 at recall .99.
    tuning_seconds: when to stop looking for something faster.
    reorder_types: how vectors for reordering may be stored; int8 takes a quarter of the memory.
    shards: parts built independently, each in a Beam worker, and searched as one. While it looks for the
        tree a build holds one part's trees, at the end those of all parts.
    memory_gib, disk_gib, minutes: budgets; a build that is predicted to need more refuses to start.
    threads: for building; None is all cores.
    include_users: put the users' features and histories into the bundle, for ``retrieve_by_id``.
    value: an attribute with bids or margins; the retriever can then weigh its logarithm in.
    probes: users whose answers are kept in the bundle and checked when it is published.
    """

    attributes: tuple[str, ...] = ()
    ann_recall_at_100: float = Field(default=0.99, gt=0.0, le=1.0)
    recall_margin: float = Field(default=0.004, ge=0.0, lt=1.0)
    engine: Literal["auto", "exact", "scann"] = "auto"
    exact_below_us: float = Field(default=100.0, ge=0.0)
    tree: TreeSettings | None = None
    tuning_queries: int = Field(default=1000, ge=10)
    tuning_seconds: float = Field(default=120.0, gt=0.0)
    reorder_types: tuple[ReorderType, ...] = Field(default=("float32", "int8", "bf16"), min_length=1)
    shards: int = Field(default=1, ge=1)
    memory_gib: float | None = Field(default=None, gt=0.0)
    disk_gib: float | None = Field(default=None, gt=0.0)
    minutes: float | None = Field(default=None, gt=0.0)
    threads: int | None = Field(default=None, ge=1)
    include_users: bool = True
    value: str | None = None
    probes: int = Field(default=32, ge=1)
    seed: int = 17


class GatesSettings(Section):
    """``[gates]``: what a bundle must satisfy before it goes live. None switches a gate off.

    ann_recall_at_100: least share of exact search's best 100 found; None is the target of ``[index]``.
    recall_drop: by how much recall@100 on held-out events may be below the live version's, relative; the gate
        fails where the drop is larger and the paired bootstrap is sure that there is one (its interval is below 0).
    confidence: of the bootstrap.
    items: least number of items; items_change: largest change of their number against live, relative.
    reachable_items, reachable_advertisers: least share that stands in the top 100 of any panel user, relative to
        what exact search reaches.
    norm_change: largest change of the mean vector length against live, relative, where the space is the same.
    probe_score_error: largest difference of a golden probe's score.
    latency_p99_us: largest p99 of one search.
    churn: largest mean share of the panel's top 100 that is not in live's; only items in both versions count.
    panel: users of the panel.
    """

    ann_recall_at_100: float | None = Field(default=None, gt=0.0, le=1.0)
    recall_drop: float | None = Field(default=0.05, ge=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    items: int | None = Field(default=1, ge=1)
    items_change: float | None = Field(default=0.5, ge=0.0)
    reachable_items: float | None = Field(default=0.9, ge=0.0, le=1.0)
    reachable_advertisers: float | None = Field(default=0.9, ge=0.0, le=1.0)
    norm_change: float | None = Field(default=0.5, ge=0.0)
    probe_score_error: float | None = Field(default=1e-4, ge=0.0)
    latency_p99_us: float | None = Field(default=5000.0, gt=0.0)
    churn: float | None = Field(default=0.95, ge=0.0, le=1.0)
    panel: int = Field(default=1000, ge=10)


class RefreshSettings(Section):
    """``[refresh]``: the nightly job.

    lock: what a second refresh does: wait (at most ``lock_wait_minutes``) or refuse at once.
    keep_versions: published versions that stay for a rollback, the live one counted in.
    evaluate: write the report of the live version at the end, as ``towerline evaluate`` does.
    warm_nights: after a full training so many nights only go on from the live version's model, for ``warm_epochs``
        epochs each; 0: every night trains in full.
    """

    lock: Literal["wait", "refuse"] = "refuse"
    lock_wait_minutes: float = Field(default=60.0, gt=0.0)
    keep_versions: int = Field(default=5, ge=1)
    evaluate: bool = False
    warm_nights: int = Field(default=0, ge=0)
    warm_epochs: int = Field(default=1, ge=1)
