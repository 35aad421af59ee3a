"""The report's smaller sections: frontiers, Lorenz curves, training curves.

Reads ``training.json`` of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from index.evaluation.measures.bootstrap import bootstrap
from index.evaluation.measures.metrics import user_metrics
from index.evaluation.sections.health import Exposures, lorenz
from index.evaluation.sections.part import Bounds, Figure, Part
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import Subject
from index.registry.bundle import Bundle
from index.registry.searcher_spec import Measured
from index.search.value_tree import load_value

TRAINING_FILE = "training.json"
# Users that are queried once per weight.
_VALUE_USERS = 300


class FrontierPoint(Part):
    """One searcher as the tuner measured it. kind: "exact" or "tree". ann_recall: against exact search, at 100."""

    kind: str
    ann_recall: float
    p50_us: float
    p99_us: float


class Frontier(Part):
    """What the tuner measured, the figures of what is served (those of the manifest), and the recall target.

    why_exact: why no tree is served though trees were tried, and what would help; None where that is not so.
    """

    measured: list[FrontierPoint]
    chosen: FrontierPoint | None
    target: float | None
    engine: str
    why_exact: str | None = None


class ValuePoint(Part):
    """Recall and mean value of the ads shown, ranked by ``score + weight * log(value)``."""

    weight: float
    recall: Figure
    interval: Bounds
    value: float


class ValueFrontier(Part):
    """What weighting value costs in recall. users: number of users queried."""

    attribute: str
    users: int
    points: list[ValuePoint]


class TrainingCurves(Part):
    """Loss and validation recall by epoch. Epoch 0 is the start, which has no loss."""

    epoch: list[int]
    loss: list[Figure]
    recall: dict[str, list[Figure]]


def frontier(bundle: Bundle) -> Frontier | None:
    """What the tuner measured; None if nothing was tuned."""
    spec = bundle.spec
    if not spec.frontier:
        return None
    return Frontier(
        measured=[_point(one) for one in spec.frontier],
        chosen=None if spec.measured is None else _point(spec.measured),
        target=spec.target,
        engine=spec.engine,
        why_exact=spec.why_exact,
    )


def _point(measured: Measured) -> FrontierPoint:
    return FrontierPoint(
        kind="exact" if measured.tree is None else "tree",
        ann_recall=measured.ann_recall_at_100,
        p50_us=measured.p50_us,
        p99_us=measured.p99_us,
    )


def value_frontier(subject: Subject, settings: EvaluationSettings) -> ValueFrontier | None:
    """Recall and mean value of the top ``waterfall_k`` at each weight; None if the version has no value.

    The sample is the first users: they are ordered by id, which is unrelated to their taste.
    """
    value = load_value(subject.bundle.dir)
    if value is None:
        return None
    k, held_out = settings.waterfall_k, subject.data.held_out
    places = np.arange(min(_VALUE_USERS, held_out.num_users), dtype=np.int64)
    records, truth = subject.records(places), held_out.truth.of_users(places)
    values = np.zeros(len(subject.data.item_ids))
    known = subject.to_feature_row >= 0
    values[subject.to_feature_row[known]] = np.exp(value.log_values.astype(np.float64))[known]
    points = []
    for weight in settings.value_weights:
        answers = subject.answers(records, k, value_weight=weight) if weight else subject.answers(records, k)
        rows = subject.rows_of_answers(answers, k)
        recalls = user_metrics(rows, truth, (k,)).at("recall", k)
        interval = bootstrap(recalls, resamples=settings.resamples, confidence=settings.confidence)[0]
        points.append(
            ValuePoint(
                weight=weight,
                recall=interval.mean,
                interval=(interval.low, interval.high),
                value=float(values[rows[rows >= 0]].mean()),
            )
        )
    return ValueFrontier(attribute=value.spec.attribute, users=len(places), points=points)


def lorenz_curves(exposures: Exposures) -> dict[str, list[tuple[float, float]]]:
    """Points of the curves: ads and advertisers, shown and chosen before."""
    return {
        name: np.round(lorenz(counts), 5).tolist() for name, counts in vars(exposures).items() if counts is not None
    }


def training_curves(model: Path) -> TrainingCurves | None:
    """Loss and validation recall by epoch, of the search for the best epoch; None if there is no such file."""
    file = model / TRAINING_FILE
    if not file.is_file():
        return None
    written = json.loads(file.read_bytes())
    epochs = [epoch for epoch in written.get("epochs", []) if epoch.get("phase", "search") == "search"]
    names = sorted({name for epoch in epochs for name in epoch.get("recall") or {}})
    if not epochs:
        return None
    return TrainingCurves(
        epoch=[epoch["epoch"] for epoch in epochs],
        # Epoch 0 is the state before training.
        loss=[epoch["loss"] if epoch["epoch"] else None for epoch in epochs],
        recall={name: [(epoch.get("recall") or {}).get(name) for epoch in epochs] for name in names},
    )
