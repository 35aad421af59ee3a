"""Evaluates a version on held-out events: ``towerline evaluate``.

Reads a bundle and the features with the held-out events; writes ``report.json`` and ``report.html``. The version and
the baselines rank the same users over the same catalogue and are measured against the same truth.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np

from index.evaluation.catalogue import Catalogue
from index.evaluation.pages.plots import pictures
from index.evaluation.pages.report import report_page
from index.evaluation.ranking import Rankings, rank
from index.evaluation.reports import Counts, EvaluationReport, Example
from index.evaluation.sections.baselines import check_implicit, rank_baseline
from index.evaluation.sections.curves import frontier, lorenz_curves, training_curves, value_frontier
from index.evaluation.sections.embedding_map import check_umap, embedding_map
from index.evaluation.sections.gaps import find_gaps
from index.evaluation.sections.health import Exposures, measure_health
from index.evaluation.sections.quality import Quality, QualityPart, measure_quality
from index.evaluation.sections.slices import measure_slices
from index.evaluation.sections.waterfall import measure_waterfall
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from pipelines.contracts.manifest import MANIFEST_FILE, open_artifact, write_durably
from pipelines.progress import SILENT, Progress

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"


def evaluate(
    bundle: Path | str,
    features: Path,
    settings: EvaluationSettings,
    out: Path,
    *,
    version: str | None = None,
    previous: Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Writes the report and returns the path of ``report.json``.

    Args:
        bundle: a bundle, or a registry.
        features: the features with the held-out events.
        settings: cut-offs, baselines, slices.
        out: the folder of the report.
        version: a version of the registry to use instead of CURRENT.
        previous: the bundle of the version before, for trends.
        progress: shows the users ranked and the baselines measured.

    Raises:
        ArtifactError: bundle or features are missing or damaged, or the registry has no such version.
        SchemaError: no held-out event, or bundle and features are of different catalogues.
        ConfigError: a baseline needs a library that is not installed, or the settings name an unknown column.
    """
    if {"item_knn", "als"} & set(settings.baselines):
        check_implicit()
    if settings.map == "umap":
        check_umap()
    with progress.waiting("evaluate"):
        data = EvaluationData.open(features, settings)
        subject = Subject.open(bundle, data, version)
        before = version_before(bundle, subject.version) if previous is None else Bundle.open(previous).measured
        report = make_report(subject, settings, previous=before, progress=progress)
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / REPORT_JSON, report.model_dump_json(indent=2, exclude_unset=True).encode())
        write_durably(out / REPORT_HTML, report_page(report, pictures(report)).encode())
    return out / REPORT_JSON


def make_report(
    subject: Subject, settings: EvaluationSettings, *, previous: Bundle | None = None, progress: Progress = SILENT
) -> EvaluationReport:
    """Measures all sections of the report.

    Args:
        subject: the version and the held-out users.
        settings: what to measure.
        previous: the version before, for trends.
        progress: shows the users ranked and the baselines measured.

    Raises:
        ConfigError: the settings name an unknown column.
        SchemaError: a rule of the settings does not fit the version.
    """
    started = time.perf_counter()
    data = subject.data
    catalogue = Catalogue.of(data, settings, subject.learned_events)
    rankings = rank(subject, settings.k[-1], progress=progress)
    shown = rankings.novel if settings.remove_seen else rankings.served
    top = shown[:, : settings.waterfall_k]
    exposures = Exposures.of(top, data, catalogue)
    gaps = find_gaps(shown, subject, catalogue, settings, previous)
    return EvaluationReport(
        dataset=data.schema.dataset.name,
        version=subject.version,
        features=data.fingerprint,
        towers=subject.towers,
        counts=counts_of(subject),
        settings=settings.model_dump(mode="json"),
        **measured(data, rankings, settings).part().model_dump(exclude_unset=True),
        examples=examples(subject, rankings),
        baselines=measure_baselines(data, settings, progress=progress),
        waterfall=measure_waterfall(subject, settings, progress=progress),
        slices=list(measure_slices(shown, data, catalogue, settings)),
        health=measure_health(top, exposures, subject, catalogue, settings),
        lorenz=lorenz_curves(exposures),
        gaps=gaps.part(),
        map=embedding_map(subject, catalogue, gaps, settings),
        frontier=frontier(subject.published),
        value_frontier=value_frontier(subject, settings),
        training=training_curves(data.features.parent / "model"),
        seconds=round(time.perf_counter() - started, 1),
    )


def current_report(
    bundle: Path | str, features: Path, settings: EvaluationSettings, out: Path, *, progress: Progress = SILENT
) -> EvaluationReport:
    """The report of a bundle or a registry's live version: the one below ``out`` if it is still valid, else a new one.

    Raises:
        ArtifactError, SchemaError, ConfigError: as ``evaluate``.
    """
    written = out / REPORT_JSON
    version = bundle_version(bundle)
    fingerprint = open_artifact(features, kind="features", verify=False).manifest.fingerprint
    wanted = {"version": version, "features": fingerprint, "settings": settings.model_dump(mode="json")}
    if written.is_file():
        found = json.loads(written.read_bytes())
        if all(found.get(name) == value for name, value in wanted.items()):
            return EvaluationReport.model_validate(found)
    made = evaluate(bundle, features, settings, out, progress=progress)
    return EvaluationReport.model_validate_json(made.read_bytes())


def bundle_version(bundle: Path | str) -> str:
    """Name of a registry's live version; for a bundle, its fingerprint."""
    if (Path(bundle) / MANIFEST_FILE).is_file():
        return open_artifact(Path(bundle), kind="bundle", verify=False).manifest.fingerprint
    return Registry(bundle).current()


def version_before(bundle: Path | str, version: str) -> Bundle | None:
    """What was measured of the version before; None for a bundle, or if there is no earlier version."""
    if (Path(bundle) / MANIFEST_FILE).is_file():
        return None
    registry = Registry(bundle)
    earlier = [name for name in sorted(registry.version_names()) if name < version]
    return registry.open(earlier[-1], verify=False).bundle.measured if earlier else None


def examples(subject: Subject, rankings: Rankings, users: int = 3, k: int = 10) -> list[Example]:
    """The first answers unchanged: what ``retrieve_by_id`` returns for the same user."""
    user_ids = subject.users["user_id"].slice(0, users).to_pylist()
    rows = (answer[answer >= 0][:k] for answer in rankings.served)
    return [
        Example(user_id=user_id, item_ids=subject.data.item_ids.take(found).to_pylist())
        for user_id, found in zip(user_ids, rows, strict=False)
    ]


def measured(data: EvaluationData, rankings: Rankings, settings: EvaluationSettings) -> Quality:
    """Quality of one ranking of the held-out users."""
    return measure_quality(rankings, data.held_out, data.item_events, data.truth_by_action, settings)


def measure_baselines(
    data: EvaluationData, settings: EvaluationSettings, *, progress: Progress = SILENT
) -> dict[str, QualityPart]:
    """The measures of every baseline, by name."""
    measures: dict[str, QualityPart] = {}
    with progress.bar(len(settings.baselines), "baselines", "baselines") as bar:
        for name in settings.baselines:
            with progress.waiting(f"baseline {name}"):
                rankings = rank_baseline(name, data, settings, progress=progress)
                measures[name] = measured(data, rankings, settings).part()
            bar.advance()
    return measures


def counts_of(subject: Subject) -> Counts:
    """What was evaluated, and what was left out."""
    held_out = subject.data.held_out
    outside = int((~subject.in_catalogue[held_out.truth.rows]).sum())
    past = subject.data.item_events
    return Counts(
        users_evaluated=held_out.num_users,
        users_without_truth=subject.data.users_without_truth,
        truth_pairs=len(held_out.truth.rows),
        repeated_pairs=int(held_out.truth.within(held_out.seen).sum()),
        truth_outside_catalogue=outside,
        truth_never_seen_before=int((past[held_out.truth.rows] == 0).sum()),
        items=subject.published.num_items,
        items_in_truth=len(np.unique(held_out.truth.rows)),
        users_without_history=int((subject.data.history_events == 0).sum()),
        new_users=int((held_out.seen.counts == 0).sum()),
    )
