"""Quality of one ranking: every metric at every cut-off, for all, repeated and novel items, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import Field

from index.evaluation.measures.bootstrap import Interval, bootstrap
from index.evaluation.measures.metrics import METRIC_NAMES, user_metrics, weighted_recall
from index.evaluation.ranking import Rankings, novel_truth, repeated_truth
from index.evaluation.sections.part import Bounds, Figure, Part
from index.evaluation.settings import EvaluationSettings
from pipelines.contracts.arrays import Bools, Float64, Int32
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets

# Parts of the truth: everything, items new to the user, items the user interacted with before.
ALL, NOVEL, REPEAT = "all", "novel", "repeat"
# The same truth of recall alone, apart: of users who chose something before the test part, or not, and of items that
# somebody chose before it, or not.
NEWNESS = ("new users", "known users", "new items", "known items")
# The midpoint of the powers that Yang et al. 2018 report for implicit feedback, and the smallest propensity.
_PROPENSITY_POWER, _PROPENSITY_CLIP = 0.5, 0.01
# By part, then by k as text.
Means = dict[str, dict[str, Figure]]


class QualityPart(Part):
    """The measures of a report: metric, then part of the truth, then k as text. ``report.recall["all"]["20"]``.

    Recall has further parts, ``NEWNESS``, where there are both new and known users, or both new and known items.

    intervals: by the metric's name, otherwise the same keys. by_action: the same metrics for the held-out events of
    each action. effective_sample: number of pairs of equal weight that carry as much information as the debiased ones.
    """

    recall: Means
    ndcg: Means
    mrr: Means
    hit_rate: Means
    value_recall: Means = Field(default_factory=dict)
    debiased_recall: Means = Field(default_factory=dict)
    intervals: dict[str, dict[str, dict[str, Bounds]]]
    by_action: dict[str, QualityPart] = Field(default_factory=dict)
    effective_sample: float = 0.0


@dataclass(frozen=True)
class Measure:
    """One number of a report. values: ``[users] float64``, NaN for users without a value."""

    metric: str
    part: str
    k: int
    values: Float64
    interval: Interval


@dataclass(frozen=True)
class Quality:
    """All measures of one ranking, and the effective number of pairs behind the debiased ones."""

    measures: tuple[Measure, ...]
    effective_sample: float
    by_action: dict[str, tuple[Measure, ...]] = field(default_factory=dict)

    def find(self, metric: str, part: str, k: int) -> Measure:
        """The measure of that metric, part and cut-off.

        Raises:
            KeyError: it was not measured.
        """
        for measure in self.measures:
            if (measure.metric, measure.part, measure.k) == (metric, part, k):
                return measure
        raise KeyError(f"{metric}.{part}.{k}")

    def has(self, part: str) -> bool:
        """Whether the part was measured and any user had a value."""
        return any(measure.part == part and measure.interval.users for measure in self.measures)

    def part(self) -> QualityPart:
        """The part of the report."""
        means: dict[str, dict[str, dict[str, float]]] = {}
        intervals: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
        for one in self.measures:
            means.setdefault(one.metric, {}).setdefault(one.part, {})[str(one.k)] = one.interval.mean
            bounds = one.interval.low, one.interval.high
            intervals.setdefault(one.metric, {}).setdefault(one.part, {})[str(one.k)] = bounds
        more: dict[str, Any] = {}
        if self.by_action:
            more["by_action"] = {
                action: Quality(measures, float("nan")).part() for action, measures in self.by_action.items()
            }
        if np.isfinite(self.effective_sample):
            more["effective_sample"] = self.effective_sample
        return QualityPart.model_validate({"intervals": intervals, **means, **more})


def propensities(item_events: Float64) -> Float64:
    """``[items] float64``: ``(n / max n) ** power``, clipped from below: the probability that an item was ever seen.

    Yang et al. 2018 (Unbiased offline recommender evaluation), eq. 8, with the clip as the only deviation.
    """
    largest = max(float(item_events.max(initial=0.0)), 1.0)
    return np.maximum((item_events / largest) ** _PROPENSITY_POWER, _PROPENSITY_CLIP)


def measure_quality(
    rankings: Rankings,
    held_out: HeldOut,
    item_events: Float64,
    truth_by_action: Mapping[str, ItemSets],
    settings: EvaluationSettings,
) -> Quality:
    """Measures one ranking of the held-out users.

    Args:
        rankings: the same users.
        held_out: truth, and what was seen before.
        item_events: ``[items] float64`` events of each item before the test part.
        truth_by_action: the same users' truth, by name of the action.
        settings: cut-offs and the bootstrap.
    """
    if settings.remove_seen:
        parts = {ALL: (rankings.novel, novel_truth(held_out))}
    else:
        parts = {
            ALL: (rankings.served, held_out.truth),
            NOVEL: (rankings.novel, novel_truth(held_out)),
            REPEAT: (rankings.served, repeated_truth(held_out)),
        }
    measures: list[Measure] = []
    for part, (ranked, truth) in parts.items():
        measures += _measures(part, ranked, truth, settings)
    ranked, truth = parts[ALL]
    for part, kept in _newness(truth, held_out, item_events).items():
        recall = user_metrics(ranked, truth.where(kept), settings.k).recall
        measures += _with_intervals(["recall"] * len(settings.k), part, settings.k, recall, settings)
    inverse = 1.0 / propensities(item_events)[truth.rows]
    weighted = {"value_recall": truth.values, "debiased_recall": inverse}
    for metric, weights in weighted.items():
        columns = [weighted_recall(ranked, truth, weights, k) for k in settings.k]
        measures += _with_intervals([metric] * len(columns), ALL, settings.k, np.stack(columns, axis=1), settings)
    by_action = {
        name: tuple(_measures(ALL, ranked, pairs, settings))
        for name, pairs in truth_by_action.items()
        if len(truth_by_action) > 1
    }
    effective = float(inverse.sum() ** 2 / (inverse**2).sum()) if len(inverse) else 0.0
    return Quality(tuple(measures), effective, by_action)


def _newness(truth: ItemSets, held_out: HeldOut, item_events: Float64) -> dict[str, Bools]:
    """``[pairs of truth] bool`` by name; a side of which there is nothing has no entry, nor has its opposite then."""
    new_users, new_items = (held_out.seen.counts == 0)[truth.owners], item_events[truth.rows] == 0
    masks = zip(NEWNESS, (new_users, ~new_users, new_items, ~new_items), strict=True)
    mixed = {"users": new_users.any() and not new_users.all(), "items": new_items.any() and not new_items.all()}
    return {name: kept for name, kept in masks if mixed[name.split()[1]]}


def _measures(part: str, ranked: Int32, truth: ItemSets, settings: EvaluationSettings) -> list[Measure]:
    found = user_metrics(ranked, truth, settings.k)
    columns = np.concatenate([getattr(found, name) for name in METRIC_NAMES], axis=1)
    names = [name for name in METRIC_NAMES for _ in settings.k]
    return _with_intervals(names, part, settings.k * len(METRIC_NAMES), columns, settings)


def _with_intervals(
    names: list[str], part: str, k: tuple[int, ...], columns: Float64, settings: EvaluationSettings
) -> list[Measure]:
    # Users without a truth in this part have no value in any column: only the others are resampled.
    present = np.isfinite(columns).any(axis=1)
    intervals = bootstrap(columns[present], resamples=settings.resamples, confidence=settings.confidence)
    return [
        Measure(name, part, cut, columns[:, column], interval)
        for column, (name, cut, interval) in enumerate(zip(names, k, intervals, strict=True))
    ]
