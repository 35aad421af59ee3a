"""The sections ``[index]``, ``[retriever]``, ``[gates]`` and ``[refresh]`` of the TOML."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from pipelines.contracts.configuration import Section

ReorderType = Literal["float32", "bf16", "int8"]
Engine = Literal["exact", "scann"]

# Where a bundle keeps its [retriever].
RETRIEVER_FILE = "retriever.json"


class TreeSettings(Section):
    """A ScaNN tree: how it is built, and how much it searches unless a call says otherwise."""

    leaves: int = Field(ge=1, description="Number of partitions of the catalogue.")
    leaves_to_search: int = Field(
        ge=1, description="Partitions searched per query. More: higher recall, slower. At most `leaves`."
    )
    reorder: int = Field(ge=1, description="Candidates per query that are scored again with their stored vectors.")
    soar_lambda: float | None = Field(
        default=None,
        gt=0.0,
        description="Weight of SOAR's second assignment of each item to a leaf (Sun et al. 2023). Not set: one leaf "
        "per item.",
    )
    anisotropic_threshold: float | None = Field(
        default=0.2,
        ge=0.0,
        lt=1.0,
        description="Threshold T of anisotropic quantisation (Guo et al. 2020, equation 4). Not set: plain "
        "quantisation.",
    )
    dims_per_block: int = Field(
        default=2, ge=1, description="Dimensions that share one 4-bit code. Fewer: finer codes, more memory."
    )
    reorder_type: ReorderType = Field(
        default="float32",
        description="Number type of the vectors used for reordering. int8 takes a quarter of float32's memory.",
    )
    training_sample: int = Field(
        default=100_000, ge=1, description="Number of vectors that the partitions and the codes are trained on."
    )
    projection: int | None = Field(
        default=None,
        ge=1,
        description="Directions that the tree works in, those that tell items apart for the users. What it finds is "
        "scored again with the full vectors. Not set: the tree works with the full vectors.",
    )
    rescore: int | None = Field(
        default=None,
        ge=1,
        description="With `projection`: candidates per query that are scored again with the full vectors. At most "
        "`reorder`. Not set: as many as `reorder`.",
    )

    @model_validator(mode="after")
    def _within_tree(self) -> Self:
        if self.leaves_to_search > self.leaves:
            raise ValueError(f"leaves_to_search: at most the {self.leaves} leaves, got {self.leaves_to_search}")
        if self.rescore is not None and self.projection is None:
            raise ValueError("rescore: belongs to a projection, and projection is not set")
        if self.rescore is not None and self.rescore > self.reorder:
            raise ValueError(f"rescore: at most the {self.reorder} candidates of reorder, got {self.rescore}")
        return self


class IndexSettings(Section):
    """How the bundle and its index are built.

    Unless ``tree`` is given, the build looks for the fastest index that meets the recall target on held-out users.
    """

    attributes: tuple[str, ...] = Field(
        default=(),
        description="Columns of the items table to put into the bundle. Rules (`where`, `max_per`) can use these only.",
    )
    # The margin is three standard errors between two samples of 1,000 users; the best of many trees was also lucky.
    ann_recall_at_100: float = Field(
        default=0.99,
        gt=0.0,
        le=1.0,
        description="Recall target: the share of exact search's best 100 that the index finds, on held-out users.",
    )
    recall_margin: float = Field(
        default=0.004,
        ge=0.0,
        lt=1.0,
        description="Added to the recall target during tuning, so that users who were not tuned on reach it too.",
    )
    engine: Literal["auto", "exact", "scann"] = Field(
        default="auto",
        description="exact: brute force, no build, filters at no loss. scann: a ScaNN tree. auto: exact where it is "
        "fast enough (`exact_below_us`) or no tree meets the target, else the fastest tree.",
    )
    # 100 us is about what the query tower and the rules of a call take.
    exact_below_us: float = Field(
        default=100.0,
        ge=0.0,
        description="Exact search is fast enough if its median latency is below this, in microseconds.",
    )
    tree: TreeSettings | None = Field(
        default=None,
        description="A tree by hand, in place of tuning. With `shards` above 1, the tree of each shard.",
    )
    # 1,000 users give a standard error below .001 at a recall of .99.
    tuning_queries: int = Field(
        default=1000,
        ge=10,
        description="Held-out users to tune with; as many others check the result. Fewer: faster and less certain.",
    )
    tuning_seconds: float = Field(
        default=120.0, gt=0.0, description="Time after which tuning starts no further tree, in seconds."
    )
    reorder_types: tuple[ReorderType, ...] = Field(
        default=("float32", "int8", "bf16"),
        min_length=1,
        description='Number types that tuning may use for the reordering vectors. ["int8"] saves memory: a quarter of '
        "float32's.",
    )
    shards: int = Field(
        default=1,
        ge=1,
        description="Number of parts that are built independently, each in a Beam worker, and searched as one. More: "
        "less memory per worker.",
    )
    memory_gib: float | None = Field(
        default=None, gt=0.0, description="Memory budget in GiB. A build that is predicted to need more is refused."
    )
    disk_gib: float | None = Field(
        default=None, gt=0.0, description="Disk budget in GiB. A build that is predicted to need more is refused."
    )
    minutes: float | None = Field(
        default=None, gt=0.0, description="Time budget in minutes. A build that is predicted to need more is refused."
    )
    threads: int | None = Field(default=None, ge=1, description="Threads for building. Not set: all cores.")
    include_users: bool = Field(
        default=True,
        description="Put the users' features and histories into the bundle, so that users can be retrieved for by id. "
        "Switch it off if every request brings the user's record.",
    )
    value: str | None = Field(
        default=None,
        description="Numeric column of the items table with bids or margins. Requests can then add its weighted "
        "logarithm to the score (`value_weight`).",
    )


class RetrieverSettings(Section):
    """How requests are answered unless a call says otherwise. The settings are part of the bundle."""

    own_items_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the k places for items the user interacted with before, by how often and how recently. "
        "The towers may still return such items in the other places. Turn it up where users buy the same items again.",
    )
    own_items_half_life_days: float = Field(
        default=30.0, gt=0.0, description="An event counts half towards `own_items_share` after this many days."
    )
    new_items_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Share of the k places for items that nobody chose before the night, the user's best by the "
        "towers. 0: they compete with all other items. Turn it up to have new ads tried.",
    )
    rule_cache_mib: float = Field(
        default=256.0,
        ge=0.0,
        description="Memory for the results of rules, in MiB. A rule over a million items takes 1 to 5 MiB, and up to "
        "`rule_vectors_mib` more.",
    )
    rule_vectors_mib: float = Field(
        default=64.0,
        ge=0.0,
        description="Largest copy of the vectors that a rule keeps, in MiB. Rules that match more items are answered "
        "without a copy.",
    )

    @model_validator(mode="after")
    def _shares_of_one(self) -> Self:
        if self.own_items_share + self.new_items_share > 1.0:
            raise ValueError(
                "expected own_items_share and new_items_share of 1 or less together, got "
                f"{self.own_items_share} and {self.new_items_share}"
            )
        return self

    @property
    def blends(self) -> bool:
        """Whether an answer has places for other sources than the towers."""
        return self.own_items_share > 0.0 or self.new_items_share > 0.0


class GatesSettings(Section):
    """What a bundle must satisfy before it goes live. Changes are relative to the live version."""

    ann_recall_at_100: float | None = Field(
        default=None,
        gt=0.0,
        le=1.0,
        description="Minimum share of exact search's best 100 found. Not set: the target of `[index]`.",
    )
    recall_drop: float | None = Field(
        default=0.05,
        ge=0.0,
        lt=1.0,
        description="Maximum relative drop of recall@100 on held-out events. The gate fails only if the drop is also "
        "statistically certain (paired bootstrap).",
    )
    category_recall_drop: float | None = Field(
        default=0.1,
        ge=0.0,
        lt=1.0,
        description="Maximum relative drop of recall@100 in any category: the most frequent values of the first "
        "categorical item feature. Only drops that are statistically certain count.",
    )
    confidence: float = Field(
        default=0.95,
        gt=0.5,
        lt=1.0,
        description="Confidence level of the bootstrap of `recall_drop` and `category_recall_drop`.",
    )
    items: int | None = Field(default=1, ge=1, description="Minimum number of items.")
    items_change: float | None = Field(
        default=0.5,
        ge=0.0,
        description="Maximum relative change of their number. Catalogues below 100 items may grow as one of 100.",
    )
    reachable_items: float | None = Field(
        default=0.9,
        ge=0.0,
        le=1.0,
        description="Minimum share of items in any panel user's answer, relative to answers by exact search.",
    )
    reachable_advertisers: float | None = Field(
        default=0.9,
        ge=0.0,
        le=1.0,
        description="Minimum share of advertisers in any panel user's answer, relative to answers by exact search.",
    )
    norm_change: float | None = Field(
        default=0.5,
        ge=0.0,
        description="Maximum relative change of the mean vector length, where both versions are of the same model.",
    )
    probe_score_error: float | None = Field(
        default=1e-4, ge=0.0, description="Maximum difference between a golden probe's score and the stored one."
    )
    latency_p99_us: float | None = Field(
        default=None,
        gt=0.0,
        description="Maximum 99th percentile of a served call's latency, in microseconds, on the machine that "
        "publishes. Not set: the latency is shown and not judged.",
    )
    churn: float | None = Field(
        default=0.95,
        ge=0.0,
        le=1.0,
        description="Maximum mean share of the panel's answers that is not in the live version's. Items of both "
        "versions only.",
    )
    # Healthy trainings reach .50 to .95 on Complete Journey, RetailRocket and Online Retail II; failed ones about 0.
    agreement: float | None = Field(
        default=0.25,
        ge=0.0,
        le=1.0,
        description="With rolling windows: minimum agreement of the published towers with the backtest's on a panel "
        "user's best 100 items, beyond that of two users: 1 if they rank the same, 0 if they say nothing of the user. "
        "A training on all events that failed does not reach it.",
    )
    panel: int = Field(
        default=1000,
        ge=10,
        description="Number of users the gates are measured with: those with held-out events first, with or without a "
        "history.",
    )


class RefreshSettings(Section):
    """The nightly job."""

    lock_wait_minutes: float = Field(
        default=0.0,
        ge=0.0,
        description="How long a refresh waits for another one that is running, in minutes. 0: it fails at once.",
    )
    keep_versions: int = Field(
        default=5, ge=1, description="Number of published versions to keep for a rollback, including the live one."
    )
    evaluate: bool = Field(
        default=False, description="Write the report of the live version at the end, as `towerline evaluate` does."
    )
    warm_nights: int = Field(
        default=0,
        ge=0,
        description="Nights after a full training that continue from the live version's model. 0: every night trains "
        "in full.",
    )
    warm_epochs: int = Field(default=1, ge=1, description="Epochs of such a night.")
