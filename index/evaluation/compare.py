"""Compares two versions on the same users: ``towerline compare A B``, the release notes of an index.

Reads two bundles (or two versions of a registry) and the features with the held-out events; writes ``compare.json``
and ``compare.html``. Each difference is paired: the second version's number minus the first's, user by user. The
verdicts are passed in: those that the gates would give with the first version live.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import stats

from index.evaluation.catalogue import Catalogue
from index.evaluation.evaluate import counts_of, measured
from index.evaluation.measures.bootstrap import Difference, bootstrap, paired_bootstrap
from index.evaluation.pages import plots
from index.evaluation.pages.release_notes import release_notes_page
from index.evaluation.ranking import Rankings, rank
from index.evaluation.reports import (
    CommonItems,
    ComparedVersion,
    Comparison,
    Latency,
    MetricDifference,
    Mover,
    SliceDifference,
)
from index.evaluation.sections.part import Mean
from index.evaluation.sections.quality import ALL, NOVEL, REPEAT, Quality
from index.evaluation.sections.slices import TruthHits, ad_cuts, user_cuts
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.registry.bundle import Bundle
from pipelines.contracts.arrays import Float64, Int32
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import write_durably
from pipelines.progress import SILENT, Progress

COMPARE_JSON = "compare.json"
COMPARE_HTML = "compare.html"
_METRICS = ("recall", "ndcg", "mrr", "hit_rate", "value_recall", "debiased_recall")
_CUTS = (20, 100)
_MOVERS = 8
# Single searches timed per version, alternating, so that both see the same load on the machine.
_TIMED_SEARCHES = 300


class GateVerdict(Protocol):
    """A gate's verdict on a version."""

    @property
    def line(self) -> str:
        """One line for a person."""

    def as_fact(self) -> dict[str, Any]:
        """The same as JSON."""


@dataclass(frozen=True)
class RankedVersion:
    """One version with its rankings of the held-out users."""

    subject: Subject
    rankings: Rankings
    quality: Quality

    @property
    def bundle(self) -> Bundle:
        """The bundle that is measured."""
        return self.subject.bundle


def run(
    first: str | Path,
    second: str | Path,
    features: Path,
    settings: EvaluationSettings,
    judge: Callable[[Bundle, Bundle], Sequence[GateVerdict]],
    out: Path,
    *,
    registry: str | Path | None = None,
    progress: Progress = SILENT,
) -> Path:
    """Compares two versions and returns the path of ``compare.json``.

    Args:
        first: the version before: its name in the registry, or a bundle's directory.
        second: the version after.
        features: the features with the held-out events.
        settings: as for ``evaluate``.
        judge: returns the verdicts on the second version, with the first one live.
        out: the folder of the report.
        registry: where the versions are; None takes ``first`` and ``second`` as directories.
        progress: shows the users ranked.

    Raises:
        ArtifactError: a version does not exist or is damaged.
        SchemaError: the versions have no item in common, or none with the features.
    """
    with progress.waiting("compare"):
        data = EvaluationData.open(features, settings)
        sides = [_open(version, data, registry) for version in (first, second)]
        check_same_catalogue(sides[0], sides[1])
        before, after = (_side(subject, settings, progress=progress) for subject in sides)
        compared = compare_sides(before, after, settings)
        # The gates query a version for the features it was built from; they cannot judge it on another catalogue's.
        ours = after.bundle.vocabulary.item_ids.equals(data.item_ids)
        verdicts = judge(after.subject.published, before.subject.published) if ours else ()
        lines = [verdict.line for verdict in verdicts] or [
            f"skip all gates: {after.subject.version} has another catalogue than {features}, "
            "which it was not built from"
        ]
        comparison = compared.model_copy(
            update={"verdicts": tuple(verdict.as_fact() for verdict in verdicts), "verdict_lines": tuple(lines)}
        )
        out.mkdir(parents=True, exist_ok=True)
        write_durably(out / COMPARE_JSON, comparison.model_dump_json(indent=2).encode())
        write_durably(out / COMPARE_HTML, release_notes_page(comparison, (plots.comparison(comparison),)).encode())
    return out / COMPARE_JSON


def _open(version: str | Path, data: EvaluationData, registry: str | Path | None) -> Subject:
    if registry is None:
        return Subject.open(version, data)
    return Subject.open(registry, data, str(version))


def _side(subject: Subject, settings: EvaluationSettings, *, progress: Progress) -> RankedVersion:
    rankings = rank(subject, settings.k[-1], progress=progress)
    return RankedVersion(subject, rankings, measured(subject.data, rankings, settings))


def check_same_catalogue(first: Subject, second: Subject) -> None:
    """Checks that two versions have an item in common.

    Raises:
        SchemaError: they are of different catalogues.
    """
    if not (first.in_catalogue & second.in_catalogue).any():
        raise SchemaError(
            f"versions {first.version} ({first.bundle.num_items} items) and {second.version} "
            f"({second.bundle.num_items} items) have no item in common: they are of different catalogues. Compare "
            "versions of one registry."
        )


def compare_sides(before: RankedVersion, after: RankedVersion, settings: EvaluationSettings) -> Comparison:
    """Measures all sections except the verdicts."""
    data = before.subject.data
    # An ad that one of the two has learned from is new to neither side of a slice.
    catalogue = Catalogue.of(data, settings, before.subject.learned_events + after.subject.learned_events)
    k = settings.waterfall_k
    shown = [side.rankings.novel if settings.remove_seen else side.rankings.served for side in (before, after)]
    return Comparison(
        dataset=data.schema.dataset.name,
        first=compared_version(before.subject),
        second=compared_version(after.subject),
        k=k,
        confidence=settings.confidence,
        items=CommonItems(
            in_both=int((before.subject.in_catalogue & after.subject.in_catalogue).sum()),
            only_first=int((before.subject.in_catalogue & ~after.subject.in_catalogue).sum()),
            only_second=int((~before.subject.in_catalogue & after.subject.in_catalogue).sum()),
        ),
        metrics=metric_differences(before.quality, after.quality, settings),
        slices=slice_differences(shown[0], shown[1], data, catalogue, settings),
        churn=churn(shown[0][:, :k], shown[1][:, :k], settings),
        advertisers=movers(shown, catalogue.advertiser, catalogue.advertisers, k),
        categories=movers(shown, catalogue.category_code, catalogue.categories, k),
        latency=time_searches(before, after),
    )


def metric_differences(first: Quality, second: Quality, settings: EvaluationSettings) -> list[MetricDifference]:
    """Paired differences of every metric and part at 20 and 100."""
    differences = []
    for metric in _METRICS:
        for part in (ALL, NOVEL, REPEAT):
            for k in (cut for cut in _CUTS if cut in settings.k):
                if not any((one.metric, one.part) == (metric, part) for one in first.measures):
                    continue
                values = [quality.find(metric, part, k).values for quality in (first, second)]
                paired = _figures(_paired(*values, settings=settings))
                differences.append(MetricDifference(metric=metric, part=part, k=k, **paired))
    return differences


def _paired(first: Float64, second: Float64, *, settings: EvaluationSettings) -> Difference:
    return paired_bootstrap(first, second, resamples=settings.resamples, confidence=settings.confidence)


def _figures(difference: Difference) -> dict[str, Any]:
    """The fields of a ``PairedDifference``."""
    verdict = "same" if not difference.is_certain else "better" if difference.difference > 0 else "worse"
    return {
        "first": difference.first,
        "second": difference.second,
        "difference": difference.difference,
        "interval": (difference.low, difference.high),
        "relative": difference.relative,
        "users": difference.users,
        "verdict": verdict,
    }


def slice_differences(
    first: Int32, second: Int32, data: EvaluationData, catalogue: Catalogue, settings: EvaluationSettings
) -> list[SliceDifference]:
    """Paired differences of recall by slice, with t-tests corrected together; small slices are never tested."""
    truth, k = data.held_out.truth, settings.waterfall_k
    found = [TruthHits.of(ranked, truth, k) for ranked in (first, second)]
    lines: list[dict[str, Any]] = []
    p_values: list[float] = []
    tested: list[int] = []
    for cut in [*user_cuts(data, settings), *ad_cuts(data, catalogue, settings)]:
        inside = cut.chosen[truth.owners] if cut.side == "users" else cut.chosen[truth.rows]
        values = [one.recall(inside) for one in found]
        difference = _paired(*values, settings=settings)
        line = {"side": cut.side, "name": cut.name, "value": cut.value, **_figures(difference), "p_adjusted": None}
        if difference.users < settings.min_slice_users:
            line["verdict"] = "empty" if difference.users == 0 else "small"
        else:
            change = (values[1] - values[0])[np.isfinite(values[0])]
            tested.append(len(lines))
            p_values.append(float(stats.ttest_1samp(change, 0.0).pvalue) if change.std() > 0 else float(change[0] == 0))
        lines.append(line)
    if tested:
        for place, adjusted in zip(tested, stats.false_discovery_control(p_values).tolist(), strict=True):
            lines[place]["p_adjusted"] = adjusted
            if adjusted >= 1.0 - settings.confidence:
                lines[place]["verdict"] = "same"
    return [SliceDifference.model_validate(line) for line in lines]


def churn(first: Int32, second: Int32, settings: EvaluationSettings) -> Mean:
    """Share of each user's top k in the second version that is not in that of the first."""
    changed = np.full(len(first), np.nan)
    for user, (old, new) in enumerate(zip(first, second, strict=True)):
        shown = new[new >= 0]
        if len(shown):
            changed[user] = 1.0 - np.isin(shown, old).mean()
    interval = bootstrap(changed, resamples=settings.resamples, confidence=settings.confidence)[0]
    return Mean.of(interval)


def movers(shown: list[Int32], group: Int32 | None, names: tuple[str, ...], k: int) -> list[Mover]:
    """Advertisers or categories whose share of the exposures moved most, gains first.

    Args:
        shown: ``[users, depth] int32`` of both versions.
        group: ``[items] int32`` place in ``names``; None if the data set has no such column.
        names: of the groups.
        k: number of places of a ranking that count as exposures.
    """
    if group is None:
        return []
    shares = []
    for ranked in shown:
        top = ranked[:, :k]
        counts = np.bincount(group[top[top >= 0]], minlength=len(names)).astype(np.float64)
        shares.append(counts / max(counts.sum(), 1.0))
    change = shares[1] - shares[0]
    largest = np.argsort(-np.abs(change), kind="stable")[:_MOVERS]
    moved = [place for place in largest[np.argsort(-change[largest], kind="stable")].tolist() if change[place] != 0.0]
    return [
        Mover(
            name=names[place],
            first=float(shares[0][place]),
            second=float(shares[1][place]),
            change=float(change[place]),
        )
        for place in moved
    ]


def compared_version(subject: Subject) -> ComparedVersion:
    """A version's facts and size."""
    bundle = subject.published
    return ComparedVersion(
        dataset=subject.data.schema.dataset.name,
        version=subject.version,
        features=subject.data.fingerprint,
        towers=subject.towers,
        counts=counts_of(subject),
        size_bytes=sum(entry.bytes for entry in bundle.manifest.files.values()),
        dim=bundle.dim,
        engine=bundle.spec.engine,
        space=bundle.space,
        created_at=bundle.manifest.created_at,
    )


def time_searches(before: RankedVersion, after: RankedVersion) -> dict[str, Latency]:
    """Median and p99 of one search for the top 100 in what is published, microseconds, both alternating in one
    thread."""
    times: tuple[list[float], list[float]] = ([], [])
    queries = [side.subject.published_vectors(_TIMED_SEARCHES) for side in (before, after)]
    for place in range(min(len(part) for part in queries)):
        for side, part, taken in zip((before, after), queries, times, strict=True):
            started = time.perf_counter()
            side.subject.published.searcher.search(part[place], 100)
            taken.append((time.perf_counter() - started) * 1e6)
    return {
        name: Latency(p50_us=float(np.median(taken)), p99_us=float(np.quantile(taken, 0.99)), searches=len(taken))
        for name, taken in zip(("first", "second"), times, strict=True)
        if taken
    }
