"""Evaluates a version on held-out events: ``towerline evaluate``.

Reads a bundle and the features with the held-out events; writes ``report.json`` and ``report.html``. The version and
the baselines rank the same users over the same catalogue and are measured against the same truth.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from index.evaluation.baselines import check_implicit, rank_baseline
from index.evaluation.quality import Quality, measure_quality
from index.evaluation.ranking import Rankings, rank
from index.evaluation.report import write_html
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import Heldout, Subject
from pipelines.manifest import write_durably

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def evaluate(
    bundle: Path | str,
    features: Path,
    settings: EvaluationSettings,
    out: Path,
    *,
    version: str | None = None,
    progress: bool = True,
) -> Path:
    """Writes the report and returns the path of ``report.json``.

    Args:
        bundle: a bundle, or a registry.
        features: the features with the held-out events.
        settings: cut-offs, baselines, slices.
        out: the folder of the report.
        version: of a registry: another one than CURRENT.
        progress: show bars.

    Raises:
        ArtifactError: bundle or features are missing or damaged.
        SchemaError: no held-out event, or bundle and features are of different catalogues.
        ConfigError: a baseline needs a library that is not installed.
    """
    if {"item_knn", "als"} & set(settings.baselines):
        check_implicit()
    started = time.perf_counter()
    data = Heldout.open(features, settings)
    subject = Subject.open(bundle, data, version)
    rankings = rank(subject, settings.k[-1], progress=progress)
    report = {
        **facts_of(subject),
        **measured(subject.data, rankings, settings).plain(),
        "baselines": measure_baselines(data, settings, progress=progress),
    }
    report["seconds"] = round(time.perf_counter() - started, 1)
    out.mkdir(parents=True, exist_ok=True)
    write_durably(out / REPORT_JSON, json.dumps(report, indent=2, allow_nan=False).encode())
    write_durably(out / REPORT_HTML, write_html(report, ()).encode())
    return out / REPORT_JSON


def measured(data: Heldout, rankings: Rankings, settings: EvaluationSettings) -> Quality:
    """Quality of one ranking of the held-out users."""
    return measure_quality(rankings, data.held_out, data.item_events, data.schema.action_names, settings)


def measure_baselines(data: Heldout, settings: EvaluationSettings, *, progress: bool = True) -> dict[str, Any]:
    """Every baseline's measures by its name, as JSON."""
    told = {}
    for name in tqdm(settings.baselines, desc="baselines", disable=not progress or not settings.baselines):
        rankings = rank_baseline(name, data.past, data.held_out, settings)
        told[name] = measured(data, rankings, settings).plain()
    return told


def facts_of(subject: Subject) -> dict[str, Any]:
    """What was evaluated, and what was left out, counted and named."""
    held_out = subject.data.held_out
    outside = int((~subject.in_catalogue[held_out.truth.rows]).sum())
    past = subject.data.item_events
    return {
        "dataset": subject.data.schema.dataset.name,
        "version": subject.version,
        "features": subject.data.fingerprint,
        "counts": {
            "users_evaluated": held_out.num_users,
            "users_without_truth": held_out.without_truth,
            "truth_pairs": len(held_out.truth.rows),
            "repeated_pairs": int(held_out.truth.within(held_out.seen).sum()),
            "truth_outside_catalogue": outside,
            "truth_never_seen_before": int((past[held_out.truth.rows] == 0).sum()),
            "items": subject.bundle.num_items,
            "items_in_truth": len(np.unique(held_out.truth.rows)),
            "users_without_history": int((held_out.history_events == 0).sum()),
        },
    }
