"""The gates: conditions that a bundle must meet to go live, each with a threshold, a figure and a verdict.

Reads the new bundle, the live one and the features. A verdict names the stage at fault, so that the person on call
knows where to look.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from index.building.measurement import recall
from index.evaluation.measures.bootstrap import paired_bootstrap
from index.evaluation.measures.metrics import user_metrics
from index.inference.user_records import UserRecords
from index.publishing.panel import TEST, Answers, K, Panel, in_catalogue_of
from index.registry.bundle import Bundle
from index.search.searcher import Rows
from index.settings import GatesSettings
from pipelines.contracts.arrays import Float64
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """A gate's result. ``stage``: the stage at fault if it failed."""

    gate: str
    outcome: Outcome
    measured: float | None
    threshold: float | None
    stage: str
    detail: str

    @property
    def line(self) -> str:
        """For the terminal."""
        sign = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[self.outcome]
        figure = "" if self.measured is None else f" {_formatted(self.measured)}"
        bound = "" if self.threshold is None else f" (threshold {_formatted(self.threshold)})"
        fault = f"; look at `towerline {self.stage}`" if self.outcome == "failed" else ""
        return f"{sign} {self.gate}{figure}{bound}: {self.detail}{fault}"

    def as_fact(self) -> dict[str, Any]:
        """For the manifest."""
        return dataclasses.asdict(self)


def _formatted(figure: float) -> str:
    """Counts and large figures as whole numbers, fractions with four digits."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 or float(figure).is_integer() else f"{figure:.4g}"


@dataclass(frozen=True)
class _Case:
    """Everything the gates look at. ``live`` and its answers are None if nothing is live or it cannot be queried."""

    bundle: Bundle
    panel: Panel
    answers: Answers
    live: Bundle | None
    live_answers: Answers | None
    recalls: Float64
    live_recalls: Float64 | None
    settings: GatesSettings

    def users(self, number: int) -> str:
        """How many users a gate is about, and how many it cannot judge, in words."""
        left_out = self.panel.without_history
        return f"{number:,} users" + (f" ({left_out:,} more have no history and are not judged)" if left_out else "")


def judge(bundle: Bundle, live: Bundle | None, features: Path, settings: GatesSettings) -> tuple[Verdict, ...]:
    """Runs every gate that is not switched off.

    Args:
        bundle: the new one.
        live: the live one; None if nothing is live.
        features: those the new bundle was built from.
        settings: thresholds.
    """
    users = UserRecords.open(features)
    panel = Panel.of(users, bundle, settings.panel)
    answers = Answers.of(bundle, panel)
    live_answers, live_found = None, None
    if live is not None:
        try:
            live_answers = Answers.of(live, panel)
            live_found = in_catalogue_of(bundle, live_answers.found, live)
        except SchemaError:
            live_answers = None
    truth = _truth(users, panel, bundle.schema)
    case = _Case(
        bundle=bundle,
        panel=panel,
        answers=answers,
        live=live,
        live_answers=live_answers,
        recalls=user_metrics(answers.found, truth, (K,)).at("recall", K),
        live_recalls=None if live_found is None else user_metrics(live_found, truth, (K,)).at("recall", K),
        settings=settings,
    )
    return tuple(verdict for gate in _GATES if (verdict := gate(case)) is not None)


def _truth(users: UserRecords, panel: Panel, schema: DatasetSchema) -> ItemSets:
    return HeldOut.of(users.events, TEST, schema.action_weights, panel.users).truth


def _at_least(gate: str, measured: float, threshold: float, stage: str, detail: str) -> Verdict:
    return Verdict(gate, "passed" if measured >= threshold else "failed", measured, threshold, stage, detail)


def _at_most(gate: str, measured: float, threshold: float, stage: str, detail: str) -> Verdict:
    return Verdict(gate, "passed" if measured <= threshold else "failed", measured, threshold, stage, detail)


def _without_live(gate: str, stage: str, case: _Case) -> Verdict:
    why = "nothing is live yet" if case.live is None else "the live version cannot read these users"
    return Verdict(gate, "skipped", None, None, stage, why)


def _ann_recall(case: _Case) -> Verdict | None:
    threshold = case.settings.ann_recall_at_100
    if threshold is None:
        threshold = case.bundle.spec.target
    if threshold is None:
        return None
    measured = recall(case.answers.found, case.answers.exact)
    detail = f"share of exact search's top {K} found, {case.users(len(case.answers.vectors))}"
    return _at_least("ann recall", measured, threshold, "build", detail)


def _retrieval_recall(case: _Case) -> Verdict | None:
    allowed = case.settings.recall_drop
    if allowed is None:
        return None
    gate = "recall against live"
    if case.live_recalls is None:
        return _without_live(gate, "train", case)
    difference = paired_bootstrap(case.live_recalls, case.recalls, confidence=case.settings.confidence)
    if difference.users == 0 or not np.isfinite(difference.relative):
        return Verdict(gate, "skipped", None, -allowed, "train", "no panel user has a hit on the live version")
    certain = difference.high < 0.0
    outcome: Outcome = "failed" if certain and difference.relative < -allowed else "passed"
    detail = (
        f"recall@{K} on held-out events {difference.second:.4f} against {difference.first:.4f}, interval of the "
        f"difference {difference.low:+.4f} to {difference.high:+.4f}, {case.users(difference.users)}"
    )
    return Verdict(gate, outcome, difference.relative, -allowed, "train", detail)


def _items(case: _Case) -> Verdict | None:
    threshold = case.settings.items
    if threshold is None:
        return None
    return _at_least("items", case.bundle.num_items, threshold, "features", "items in the catalogue")


def _items_change(case: _Case) -> Verdict | None:
    threshold = case.settings.items_change
    if threshold is None:
        return None
    if case.live is None:
        return _without_live("items against live", "features", case)
    items, before = case.bundle.num_items, case.live.num_items
    return _at_most("items against live", abs(items / before - 1.0), threshold, "features", f"{before:,} to {items:,}")


def _reachable_items(case: _Case) -> Verdict | None:
    threshold = case.settings.reachable_items
    if threshold is None:
        return None
    found, exact = (np.unique(rows[rows >= 0]) for rows in (case.answers.found, case.answers.exact))
    detail = f"{len(found):,} of {case.bundle.num_items:,} items are in a top {K}, by exact search {len(exact):,}"
    return _at_least("reachable items", len(found) / len(exact), threshold, "build", detail)


def _reachable_advertisers(case: _Case) -> Verdict | None:
    threshold = case.settings.reachable_advertisers
    roles = case.bundle.schema.tables.items
    if threshold is None or roles is None or roles.advertiser_id is None:
        return None
    column = case.bundle.items[roles.advertiser_id].combine_chunks().dictionary_encode()
    codes = np.asarray(column.indices.fill_null(-1))
    found, exact = (_distinct(codes, rows) for rows in (case.answers.found, case.answers.exact))
    if exact == 0:
        why = f"no item in a top {K} has an advertiser"
        return Verdict("reachable advertisers", "skipped", None, threshold, "build", why)
    detail = f"{found:,} of {len(column.dictionary):,} advertisers are in a top {K}, by exact search {exact:,}"
    return _at_least("reachable advertisers", found / exact, threshold, "build", detail)


def _distinct(codes: np.ndarray, rows: Rows) -> int:
    seen = np.unique(codes[rows[rows >= 0]])
    return int((seen >= 0).sum())


def _norms(case: _Case) -> Verdict | None:
    threshold = case.settings.norm_change
    if threshold is None:
        return None
    norms = np.linalg.norm(case.bundle.vectors, axis=1)
    wrong = int((~np.isfinite(norms)).sum())
    if wrong:
        return Verdict("vector lengths", "failed", float(wrong), 0.0, "embed", f"{wrong} vectors with NaN or infinity")
    if case.live is None or case.live.space != case.bundle.space:
        # Lengths in two spaces cannot be compared; only finiteness can be checked.
        detail = f"all finite, mean {norms.mean():.3g}, no live version of the same space"
        return Verdict("vector lengths", "passed", None, threshold, "embed", detail)
    before = float(np.linalg.norm(case.live.vectors, axis=1).mean())
    change = abs(float(norms.mean()) - before) / before if before > 0 else float(norms.mean() > 0)
    return _at_most(
        "vector lengths", change, threshold, "embed", f"mean {before:.3g} to {norms.mean():.3g}, all finite"
    )


def _probes(case: _Case) -> Verdict | None:
    threshold = case.settings.probe_score_error
    if threshold is None:
        return None
    probes = case.bundle.probes
    vectors = probes.vectors
    if any(probes.records):
        vectors = case.bundle.record_embedder().vectors(probes.records)
    found = case.bundle.exact.search_batch(vectors, probes.neighbors.rows.shape[1])
    error = float(np.abs(found.scores - probes.neighbors.scores).max(initial=0.0))
    return _at_most("golden probes", error, threshold, "build", f"largest score difference of {len(vectors)} probes")


def _latency(case: _Case) -> Verdict | None:
    threshold = case.settings.latency_p99_us
    p50, p99 = (float(figure) for figure in np.percentile(case.answers.latencies_us, [50, 99]))
    detail = f"µs, p99 of one search; p50 {p50:,.0f}, {len(case.answers.latencies_us)} users timed"
    if threshold is None:
        # It depends on the machine, so there is no threshold that a first night could be held to.
        return Verdict("latency", "skipped", p99, None, "build", f"{detail}; not judged: set gates.latency_p99_us")
    return _at_most("latency", p99, threshold, "build", detail)


def _churn(case: _Case) -> Verdict | None:
    threshold = case.settings.churn
    if threshold is None:
        return None
    if case.live is None or case.live_answers is None:
        return _without_live("churn", "train", case)
    before = in_catalogue_of(case.bundle, case.live_answers.found, case.live)
    known = case.live.vocabulary.item_rows(case.bundle.vocabulary.item_ids) >= 0
    shares = []
    for new, old in zip(case.answers.found, before, strict=True):
        kept = new[new >= 0]
        kept, old_rows = kept[known[kept]], old[old >= 0]
        if len(kept) and len(old_rows):
            shares.append(1.0 - np.isin(kept, old_rows).sum() / min(len(kept), len(old_rows)))
    if not shares:
        return Verdict("churn", "skipped", None, threshold, "train", "the two versions have no item in common")
    detail = f"mean share of a top {K} that the live version does not have, {case.users(len(shares))}"
    return _at_most("churn", float(np.mean(shares)), threshold, "train", detail)


_GATES: tuple[Callable[[_Case], Verdict | None], ...] = (
    _items,
    _items_change,
    _norms,
    _probes,
    _ann_recall,
    _reachable_items,
    _reachable_advertisers,
    _latency,
    _retrieval_recall,
    _churn,
)
