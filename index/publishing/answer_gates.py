"""Gates on what is served: every user of the panel is answered as a retriever would answer.

Each returns None where it is switched off, or does not apply.
"""

from __future__ import annotations

import numpy as np

from index.building.tuning.measurement import recall
from index.evaluation.measures.bootstrap import paired_bootstrap
from index.evaluation.sections.slices import TruthHits
from index.publishing.answers import K
from index.publishing.case import Case, Unasked
from index.publishing.verdict import Outcome, Verdict
from index.search.searcher import Rows
from pipelines.contracts.vocabulary import ValueTable

# A category with fewer users that have held-out events in it is not tested.
_LEAST_USERS = 30
# Ten categories are tested at the 0.25 % quantile of the draws, which a thousand draws do not show.
_CATEGORY_RESAMPLES = 4000


def ann_recall(case: Case) -> Verdict | None:
    """The searcher finds what exact search finds, for the users whom a search answers."""
    gate, threshold = "ann recall", case.settings.ann_recall_at_100
    if threshold is None:
        threshold = case.bundle.spec.target
    if threshold is None:
        return None
    served = case.served
    if len(served.exact) == 0:
        return Verdict.skipped(gate, threshold, "build", "no user of the panel is answered by a search")
    detail = f"share of exact search's top {K} found, {len(served.exact):,} users whom a search answers"
    return Verdict.at_least(gate, recall(served.found, served.exact), threshold, "build", detail)


def reachable_items(case: Case) -> Verdict | None:
    """Served answers reach about the items that they would reach by exact search."""
    threshold = case.settings.reachable_items
    if threshold is None:
        return None
    found, exact = (np.unique(rows[rows >= 0]) for rows in (case.served.answers.rows, case.served.with_exact_search))
    detail = (
        f"{len(found):,} of {case.bundle.num_items:,} items are in a top {K}, with exact search {len(exact):,}, "
        f"{case.served.answers.users}"
    )
    return Verdict.at_least("reachable items", len(found) / max(1, len(exact)), threshold, "build", detail)


def reachable_advertisers(case: Case) -> Verdict | None:
    """Served answers reach about the advertisers that they would reach by exact search."""
    gate, threshold = "reachable advertisers", case.settings.reachable_advertisers
    roles = case.bundle.schema.tables.items
    if threshold is None or roles is None or roles.advertiser_id is None:
        return None
    column = case.bundle.items[roles.advertiser_id].combine_chunks().dictionary_encode()
    codes = np.asarray(column.indices.fill_null(-1))
    found, exact = (_distinct(codes, rows) for rows in (case.served.answers.rows, case.served.with_exact_search))
    if exact == 0:
        return Verdict.skipped(gate, threshold, "build", f"no item in a top {K} has an advertiser")
    detail = f"{found:,} of {len(column.dictionary):,} advertisers are in a top {K}, with exact search {exact:,}"
    return Verdict.at_least(gate, found / exact, threshold, "build", detail)


def _distinct(codes: np.ndarray, rows: Rows) -> int:
    seen = np.unique(codes[rows[rows >= 0]])
    return int((seen >= 0).sum())


def latency(case: Case) -> Verdict | None:
    """A served call is fast enough. Of the search alone it shows the one figure that manifest and report have."""
    threshold, taken = case.settings.latency_p99_us, case.served.latencies
    p50, p99 = (float(figure) for figure in np.percentile(taken, [50, 99]))
    detail = f"µs, p99 of one call; p50 {p50:,.0f}, {len(taken)} users timed"
    spec = case.served.bundle.spec
    if spec.measured is not None:
        built = spec.measured
        detail += f"; the search alone, as build measured it: p50 {built.p50_us:,.0f}, p99 {built.p99_us:,.0f}"
    if spec.why_exact is not None:
        detail += f"; {spec.why_exact}"
    if threshold is None:
        # It depends on the machine, so there is no threshold that a first night could be held to.
        return Verdict("latency", "skipped", p99, None, "build", f"{detail}; not judged: set gates.latency_p99_us")
    return Verdict.at_most("latency", p99, threshold, "build", detail)


def recall_against_live(case: Case) -> Verdict | None:
    """Held-out events are found about as often as by the live version."""
    gate, allowed = "recall against live", case.settings.recall_drop
    if allowed is None:
        return None
    live, recalls = case.live_measured, case.recalls(case.measured)
    recall = float(np.nanmean(recalls)) if np.isfinite(recalls).any() else None
    if isinstance(live, Unasked):
        return Verdict(gate, "skipped", None, None, "train", live.why, recall)
    difference = paired_bootstrap(case.recalls(live), recalls, confidence=case.settings.confidence)
    if difference.users == 0 or not np.isfinite(difference.relative):
        why = "no panel user has a hit on the live version"
        return Verdict(gate, "skipped", None, -allowed, "train", why, recall)
    certain = difference.high < 0.0
    outcome: Outcome = "failed" if certain and difference.relative < -allowed else "passed"
    detail = (
        f"recall@{K} on held-out events {difference.second:.4f} against {difference.first:.4f}, interval of the "
        f"difference {difference.low:+.4f} to {difference.high:+.4f}, {difference.users:,} users"
    )
    return Verdict(gate, outcome, difference.relative, -allowed, "train", detail, recall)


def recall_by_category(case: Case) -> Verdict | None:
    """No category's held-out events are found much less often than by the live version.

    The drop of one category may be hidden by another's rise. All categories are tested together (Bonferroni).
    """
    gate, allowed = "recall by category", case.settings.category_recall_drop
    cuts = case.held_out.categories
    if allowed is None or not cuts:
        return None
    live = case.live_measured
    if isinstance(live, Unasked):
        return Verdict.skipped(gate, None, "train", live.why)
    if len(case.held_out.truth.rows) == 0:
        return Verdict.skipped(gate, -allowed, "train", "no user of the panel has held-out events")
    before, after = (TruthHits.of(case.ranked(answers), case.held_out.truth, K) for answers in (live, case.measured))
    confidence = 1.0 - (1.0 - case.settings.confidence) / len(cuts)
    worst, what = 0.0, f"no {cuts[0].name} has certainly lost recall"
    for cut in cuts:
        inside = cut.chosen[case.held_out.truth.rows]
        change = paired_bootstrap(
            before.recall(inside), after.recall(inside), confidence=confidence, resamples=_CATEGORY_RESAMPLES
        )
        if change.users >= _LEAST_USERS and change.high < 0.0 and change.relative < worst:
            worst = change.relative
            what = f"{cut.name} {cut.value}: {change.second:.4f} against {change.first:.4f}, {change.users:,} users"
    detail = f"largest certain change of recall@{K}; {what}, {len(cuts)} values tested together"
    return Verdict.at_least(gate, worst, -allowed, "train", detail)


def agreement(case: Case) -> Verdict | None:
    """The towers to be published agree with the backtest's, which are the ones that were measured."""
    gate, threshold = "agreement", case.settings.agreement
    if threshold is None or case.bundle.backtest is None:
        return None
    found = case.agreement
    if found is None:
        return Verdict.skipped(gate, threshold, "train", "fewer than two users of the panel are answered by a search")
    detail = (
        f"with the backtest's towers, beyond that of two users; {found.same_user:.2f} of a user's best {found.depth} "
        f"items are the same, {found.two_users:.2f} of those of two users, {found.users:,} users"
    )
    return Verdict.at_least(gate, found.above_chance, threshold, "train", detail)


def churn(case: Case) -> Verdict | None:
    """Users see about what the live version would show them."""
    gate, threshold = "churn", case.settings.churn
    if threshold is None:
        return None
    live, ours = case.live_served, case.served.answers
    if isinstance(live, Unasked):
        return Verdict.skipped(gate, None, "train", live.why)
    before = live.rows_in(ValueTable(ours.item_ids))
    known = ValueTable(live.item_ids).places(ours.item_ids) >= 0
    shares = []
    for new, old in zip(ours.rows, before, strict=True):
        kept = new[new >= 0]
        kept, old_rows = kept[known[kept]], old[old >= 0]
        if len(kept) and len(old_rows):
            shares.append(1.0 - np.isin(kept, old_rows).sum() / min(len(kept), len(old_rows)))
    if not shares:
        return Verdict.skipped(gate, threshold, "train", "the two versions have no item in common")
    detail = f"mean share of a top {K} that the live version does not show, {ours.users}"
    return Verdict.at_most(gate, float(np.mean(shares)), threshold, "train", detail)
