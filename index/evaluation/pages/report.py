"""The page of an evaluation: its tables, with the plots below them."""

from __future__ import annotations

from collections.abc import Sequence

from index.evaluation.pages.rendering import Picture, Table, render
from index.evaluation.reports import EvaluationReport
from index.evaluation.sections.gaps import GapsPart
from index.evaluation.sections.health import Health
from index.evaluation.sections.quality import NEWNESS

_TABLE_CUTS = (("all", 20), ("all", 100), ("novel", 20), ("novel", 100), ("repeat", 20), ("repeat", 100))


def report_page(report: EvaluationReport, pictures: Sequence[Picture]) -> str:
    """The whole page as HTML; the pictures in the order they are shown."""
    return render(
        "report.html.j2",
        title=f"{report.dataset}: version {report.version}",
        counts=report.counts,
        towers=report.towers,
        tables=tables(report),
        pictures=pictures,
    )


def tables(report: EvaluationReport) -> list[Table]:
    """The tables of the page: recall with the baselines, all metrics, health, gaps."""
    apart = newness_table(report)
    first = () if apart is None else (apart,)
    return [
        *first,
        metrics_table(report),
        further_metrics(report),
        health_table(report.health),
        gaps_table(report.gaps),
    ]


def newness_table(report: EvaluationReport) -> Table | None:
    """Recall of new and known users and items apart; None where there is nothing to tell apart."""
    parts = [part for part in NEWNESS if part in report.recall]
    cuts = [(part, k) for part in parts for k in (20, 100) if str(k) in report.recall[part]]
    if not cuts:
        return None
    rows = {"towerline": report, **report.baselines}
    counts = report.counts
    return Table(
        title="New users and new items apart",
        header=("ranking", *(f"{part} @{k}" for part, k in cuts)),
        lines=tuple(
            (name.replace("_", " "), *(share(measured.recall[part][str(k)]) for part, k in cuts))
            for name, measured in rows.items()
        ),
        note=f"Of {counts.users_evaluated:,} users {counts.new_users:,} chose nothing before the test part, and of "
        f"{counts.truth_pairs:,} held-out pairs {counts.truth_never_seen_before:,} are of items that nobody chose "
        "before it. A mean over all of them says little of either.",
        own=0,
    )


def metrics_table(report: EvaluationReport) -> Table:
    """Recall next to that of the baselines."""
    cuts = [(part, k) for part, k in _TABLE_CUTS if str(k) in report.recall.get(part, {})]
    rows = {"towerline": report, **report.baselines}
    lines = [
        (name.replace("_", " "), *(share(measured.recall[part][str(k)]) for part, k in cuts))
        for name, measured in rows.items()
    ]
    return Table(
        title="Recall compared with the baselines",
        header=("ranking", *(f"{part} @{k}" for part, k in cuts)),
        lines=tuple(lines),
        note="|top k ∩ truth| / min(k, |truth|), mean over users. Novel: without the user's earlier items, in truth "
        "and ranking. Repeat: only the user's earlier items in the truth.",
        own=0,
    )


def further_metrics(report: EvaluationReport) -> Table:
    """The version's own metrics at each cut-off, with intervals."""
    cuts = list(report.recall["all"])
    wanted = [
        ("recall", "all"),
        ("recall", "novel"),
        ("recall", "repeat"),
        ("ndcg", "all"),
        ("mrr", "all"),
        ("hit_rate", "all"),
        ("value_recall", "all"),
        ("debiased_recall", "all"),
    ]
    lines: list[tuple[str, ...]] = []
    for metric, part in wanted:
        values = getattr(report, metric).get(part)
        if values is None:
            continue
        bounds = report.intervals[metric][part]
        cells = (f"{share(values[k])} [{share(bounds[k][0])}, {share(bounds[k][1])}]" for k in cuts)
        lines.append((f"{metric.replace('_', ' ')}, {part}", *cells))
    for action, own in report.by_action.items():
        lines.append((f"recall, {action}", *(share(own.recall["all"][k]) for k in cuts)))
    return Table(
        title="All metrics, with intervals",
        header=("metric", *(f"@{k}" for k in cuts)),
        lines=tuple(lines),
        note="Debiased recall weighs a pair by 1 / propensity, clipped; "
        f"{report.effective_sample:,.0f} pairs of equal weight carry as much information.",
    )


def health_table(health: Health) -> Table:
    """What is shown, next to what the users had chosen before."""
    lines: list[tuple[str, ...]] = []
    for name, shown, past in (
        ("ads", health.ads, health.past_ads),
        ("advertisers", health.advertisers, health.past_advertisers),
    ):
        if shown is None or past is None:
            continue
        lines += [
            (f"{name} shown at all, share of {shown.things:,}", share(shown.coverage), share(past.coverage)),
            (f"Gini of {name}", share(shown.gini), share(past.gini)),
            (f"effective number of {name}", whole(shown.effective_number), whole(past.effective_number)),
        ]
    if health.fresh_share is not None:
        note = f"share of fresh ads ({share(health.fresh_share_of_catalogue)} of the catalogue)"
        lines.append((note, share(health.fresh_share), share(health.fresh_share_of_past)))
    lines += [
        ("novelty, bits", share(health.novelty_bits.mean), share(health.past_novelty_bits.mean)),
        ("divergence of categories from the past, nats", share(health.category_calibration.mean), "0"),
        ("diversity within a list, 1 - cosine", share(health.intra_list_diversity.mean), "–"),
    ]
    return Table(f"Health of the marketplace, top {health.k}", ("figure", "shown", "met before"), tuple(lines))


def gaps_table(gaps: GapsPart) -> Table:
    """The largest content gaps."""
    lines = tuple(
        (
            f"{number}. {', '.join(gap.categories)}",
            f"{gap.demand:,.0f}",
            f"{gap.supply:,}",
            f"{gap.good:,}",
            f"{gap.pressure:.1f}",
            "–" if gap.median_price is None else f"{gap.median_price:,.2f}",
            "–" if gap.supply_before is None else f"{gap.ads - gap.supply_before:+,}",
            ", ".join(gap.tokens),
            "; ".join(gap.nearest[:2]),
        )
        for number, gap in enumerate(gaps.found, start=1)
    )
    kind = "leaves of the index" if gaps.regions_of_the_tree else "k-means regions (the version searches exactly)"
    return Table(
        title="Content gaps: many users, few good ads",
        header=(
            "region",
            "users",
            "eligible ads",
            "good ads",
            "pressure",
            "median price",
            "trend",
            "words",
            "nearest ads",
        ),
        lines=lines,
        note=f"Of {gaps.regions:,} {kind}. A good ad is in some user's top list; pressure is users per good ad, "
        "relative to the whole marketplace; trend is the change in ads since the previous version.",
    )


def whole(value: float | None) -> str:
    """No decimals; a dash if there is no value."""
    return "–" if value is None else f"{value:,.0f}"


def share(value: float | None) -> str:
    """Three decimals; a dash if no user had a value."""
    return "–" if value is None else f"{value:.3f}"
