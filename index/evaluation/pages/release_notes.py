"""The release notes of an index: one page on what changed between two versions."""

from __future__ import annotations

from collections.abc import Sequence

from index.evaluation.pages.rendering import Picture, Table, render
from index.evaluation.pages.report import share, whole
from index.evaluation.reports import Comparison, Mover, PairedDifference

_WORDS = {"better": "better", "worse": "worse", "same": "no certain difference"}


def headline(comparison: Comparison) -> str:
    """The comparison in a sentence: recall over everything at the largest cut-off measured."""
    main = [one for one in comparison.metrics if (one.metric, one.part) == ("recall", "all")]
    if not main or main[-1].difference is None:
        return "No user has held-out events of both versions: recall cannot be compared."
    one = main[-1]
    relative = "" if one.relative is None else f", {100 * one.relative:+.1f} %"
    return (
        f"recall@{one.k} goes from {share(one.first)} to {share(one.second)} "
        f"({one.difference:+.4f}{relative}): {_WORDS[one.verdict]}."
    )


def release_tables(comparison: Comparison) -> list[Table]:
    """All tables of the page."""
    return [
        metrics_table(comparison),
        slices_table(comparison),
        movers_table("advertisers", comparison.advertisers),
        movers_table("categories", comparison.categories),
        costs_table(comparison),
    ]


def release_notes_page(comparison: Comparison, pictures: Sequence[Picture]) -> str:
    """The whole page as HTML."""
    failed = any(one["outcome"] == "failed" for one in comparison.verdicts)
    verdict = "hold it back" if failed else "let it pass" if comparison.verdicts else "were not asked"
    items = comparison.items
    lead = (
        f"{headline(comparison)} {100 * (comparison.churn.mean or 0):.0f} % of a user's top {comparison.k} is new. "
        f"{items.only_second:,} items came, {items.only_first:,} went, {items.in_both:,} stayed. The gates {verdict}."
    )
    return render(
        "release_notes.html.j2",
        title=f"{comparison.dataset}: {comparison.second.version} after {comparison.first.version}",
        lead=lead,
        sides=(("Before", comparison.first.towers), ("After", comparison.second.towers)),
        verdict_lines=comparison.verdict_lines,
        pictures=pictures,
        tables=release_tables(comparison),
    )


def _change(one: PairedDifference) -> tuple[str, ...]:
    low, high = one.interval
    if one.difference is None or low is None or high is None:
        return ("–", "–", "–", "–", one.verdict)
    return (
        share(one.first),
        share(one.second),
        f"{one.difference:+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        one.verdict,
    )


def metrics_table(comparison: Comparison) -> Table:
    """Every metric."""
    interval = f"{100 * comparison.confidence:.0f} % interval"
    return Table(
        title="Quality",
        header=("metric", "before", "after", "difference", interval, "verdict"),
        lines=tuple(
            (f"{one.metric.replace('_', ' ')}, {one.part} @{one.k}", *_change(one)) for one in comparison.metrics
        ),
        note="Paired bootstrap over the same users; better or worse if the interval excludes zero.",
    )


def slices_table(comparison: Comparison) -> Table:
    """The slices that still differ after the correction, else the five largest differences."""
    sure = [one for one in comparison.slices if one.verdict in ("better", "worse")]
    known = [one for one in comparison.slices if one.difference is not None]
    shown = sure or sorted(known, key=lambda one: -abs(one.difference or 0.0))[:5]
    return Table(
        title="Slices" if sure else "Slices: none differs for certain; the five largest differences",
        header=("slice", "users", "before", "after", "difference", "interval", "verdict"),
        lines=tuple((f"{one.name}: {one.value}", f"{one.users:,}", *_change(one)) for one in shown),
        note=f"recall@{comparison.k}; paired t-tests, corrected for the number of slices (Benjamini–Hochberg).",
    )


def movers_table(group: str, movers: Sequence[Mover]) -> Table:
    """Who gains and who loses exposure."""
    return Table(
        title=f"Exposure by {group}: largest changes",
        header=(group, "before", "after", "change, points"),
        lines=tuple(
            (one.name, f"{100 * one.first:.2f} %", f"{100 * one.second:.2f} %", f"{100 * one.change:+.2f}")
            for one in movers
        ),
    )


def costs_table(comparison: Comparison) -> Table:
    """Latency and size."""
    sides = (comparison.first, comparison.second)
    timed = [comparison.latency.get(name) for name in ("first", "second")]
    return Table(
        "Latency and size",
        ("figure", "before", "after"),
        (
            ("size, MB", *(f"{side.size_bytes / 1e6:,.1f}" for side in sides)),
            ("items", *(f"{side.counts.items:,}" for side in sides)),
            ("dimensions", *(str(side.dim) for side in sides)),
            ("engine", *(side.engine for side in sides)),
            ("one search, p50, µs", *(whole(None if one is None else one.p50_us) for one in timed)),
            ("one search, p99, µs", *(whole(None if one is None else one.p99_us) for one in timed)),
        ),
    )
