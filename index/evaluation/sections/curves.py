"""The report's smaller sections: frontiers, Lorenz curves, training curves.

Reads ``training.json`` of a model; writes nothing. Every function gives plain JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from index.evaluation.catalogue import Catalogue
from index.evaluation.measures.bootstrap import bootstrap
from index.evaluation.measures.metrics import user_metrics
from index.evaluation.sections.health import Health, lorenz
from index.evaluation.sections.quality import number
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import Subject
from index.registry.bundle import Bundle
from index.registry.searcher_spec import Measured
from index.search.value_tree import load_value
from pipelines.contracts.arrays import Float64

TRAINING_FILE = "training.json"
# Users asked once a weight.
_VALUE_USERS = 300


def frontier(bundle: Bundle) -> dict[str, Any] | None:
    """What the tuner measured; None where nothing was tuned."""
    spec = bundle.spec
    if not spec.frontier:
        return None
    return {
        "measured": [_point(one) for one in spec.frontier],
        "chosen": None if spec.chosen is None else _point(spec.chosen),
        "target": spec.target,
        "engine": spec.engine,
    }


def _point(measured: Measured) -> dict[str, Any]:
    return {
        "kind": "exact" if measured.tree is None else "tree",
        "ann_recall": measured.ann_recall_at_100,
        "p50_us": measured.p50_us,
        "p99_us": measured.p99_us,
    }


def value_frontier(subject: Subject, settings: EvaluationSettings) -> dict[str, Any] | None:
    """Recall and mean value of the top ``waterfall_k`` at each weight; None where the version has no value.

    The first users stand for all: they are in the order of their ids, which says nothing of their taste.
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
            {
                "weight": weight,
                "recall": number(interval.mean),
                "interval": [number(interval.low), number(interval.high)],
                "value": float(values[rows[rows >= 0]].mean()),
            }
        )
    return {"attribute": value.spec.attribute, "users": len(places), "points": points}


def lorenz_curves(health: Health, catalogue: Catalogue) -> dict[str, list[list[float]]]:
    """Points of the curves: ads and advertisers, shown and met before."""
    curves: dict[str, Float64] = {"ads": health.ad_exposures, "past_ads": health.past_exposures}
    if health.advertiser_exposures is not None and catalogue.advertiser is not None:
        curves["advertisers"] = health.advertiser_exposures
        curves["past_advertisers"] = np.bincount(catalogue.advertiser, health.past_exposures).astype(np.float64)
    return {name: np.round(lorenz(exposures), 5).tolist() for name, exposures in curves.items()}


def training_curves(model: Path) -> dict[str, Any] | None:
    """Loss and validation recall by epoch, of the search for the best epoch; None where there is no such file."""
    file = model / TRAINING_FILE
    if not file.is_file():
        return None
    told = json.loads(file.read_bytes())
    epochs = [epoch for epoch in told.get("epochs", []) if epoch.get("phase", "search") == "search"]
    names = sorted({name for epoch in epochs for name in epoch.get("recall") or {}})
    if not epochs:
        return None
    return {
        "epoch": [epoch["epoch"] for epoch in epochs],
        # Epoch 0 is the start, which nothing was trained for yet.
        "loss": [epoch["loss"] if epoch["epoch"] else None for epoch in epochs],
        "recall": {name: [(epoch.get("recall") or {}).get(name) for epoch in epochs] for name in names},
    }
