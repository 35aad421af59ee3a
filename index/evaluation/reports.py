"""The results of an evaluation and of a comparison: ``report.json`` and ``compare.json`` as models."""

from __future__ import annotations

from typing import Any

from index.evaluation.sections.curves import Frontier, TrainingCurves, ValueFrontier
from index.evaluation.sections.embedding_map import EmbeddingMap
from index.evaluation.sections.gaps import GapsPart
from index.evaluation.sections.health import Health
from index.evaluation.sections.part import Bounds, Figure, Mean, Part
from index.evaluation.sections.quality import QualityPart
from index.evaluation.sections.slices import Slice
from index.evaluation.sections.waterfall import Waterfall
from index.evaluation.towers_measured import MeasuredTowers


class Counts(Part):
    """What was evaluated, and what was left out. new_users: evaluated ones who chose nothing before the test part."""

    users_evaluated: int
    users_without_truth: int
    truth_pairs: int
    repeated_pairs: int
    truth_outside_catalogue: int
    truth_never_seen_before: int
    items: int
    items_in_truth: int
    users_without_history: int
    new_users: int = 0


class Example(Part):
    """The first candidates of one user, as the retriever returns them."""

    user_id: Any
    item_ids: list[Any]


class EvaluationReport(QualityPart):
    """``report.json``: one version, with the baselines ranked for the same users.

    features: fingerprint of the features. settings: those of ``[evaluation]``. baselines: by name. lorenz: points of
    the curves, by name. towers: those measured; None in reports of earlier releases. Sections that do not apply to the
    version are None.
    """

    dataset: str
    version: str
    features: str
    counts: Counts
    settings: dict[str, Any]
    examples: list[Example]
    baselines: dict[str, QualityPart]
    waterfall: Waterfall
    slices: list[Slice]
    health: Health
    lorenz: dict[str, list[tuple[float, float]]]
    gaps: GapsPart
    map: EmbeddingMap
    frontier: Frontier | None
    value_frontier: ValueFrontier | None
    training: TrainingCurves | None
    seconds: float
    towers: MeasuredTowers | None = None


class ComparedVersion(Part):
    """One side of a comparison: what it is, and what it costs. towers: those measured on held-out events."""

    dataset: str
    version: str
    features: str
    towers: MeasuredTowers
    counts: Counts
    size_bytes: int
    dim: int
    engine: str
    space: str
    created_at: str


class CommonItems(Part):
    """How the two catalogues overlap, in items."""

    in_both: int
    only_first: int
    only_second: int


class PairedDifference(Part):
    """The second version's mean minus the first's, user by user.

    relative: to the first, None if that is 0. verdict: "better", "worse" or "same"; of a slice also "small" (too
    few users) and "empty".
    """

    first: Figure
    second: Figure
    difference: Figure
    interval: Bounds
    relative: Figure
    users: int
    verdict: str


class MetricDifference(PairedDifference):
    """The difference of one metric on a part of the truth (all, novel, repeat) at one cut-off."""

    metric: str
    part: str
    k: int


class SliceDifference(PairedDifference):
    """The difference of recall in one slice. p_adjusted: corrected for all slices, None if it was not tested."""

    side: str
    name: str
    value: str
    p_adjusted: float | None


class Mover(Part):
    """An advertiser or a category whose share of the exposures moved."""

    name: str
    first: float
    second: float
    change: float


class Latency(Part):
    """Time of single searches for the top 100, in microseconds."""

    p50_us: float
    p99_us: float
    searches: int


class Comparison(Part):
    """``compare.json``: two versions on the same users. churn: share of a user's top k that is not in the first's."""

    dataset: str
    first: ComparedVersion
    second: ComparedVersion
    k: int
    confidence: float
    items: CommonItems
    metrics: list[MetricDifference]
    slices: list[SliceDifference]
    churn: Mean
    advertisers: list[Mover]
    categories: list[Mover]
    latency: dict[str, Latency]
    verdicts: tuple[dict[str, Any], ...] = ()
    verdict_lines: tuple[str, ...] = ()
