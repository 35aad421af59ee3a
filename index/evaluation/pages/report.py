"""The report as one HTML file: tables beside the pictures, nothing loaded from elsewhere.

Reads and writes nothing: takes the report's JSON and PNG bytes, gives text.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.4rem; border-bottom: 1px solid #d8dee4; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #e6eaee; }
th:first-child, td:first-child { text-align: left; } tr.own td { font-weight: 600; background: #eef5fc; }
figure { margin: 1.2rem 0; } figcaption, .note { color: #57606a; font-size: .9rem; } img { max-width: 100%; }
.bad { color: #b42318; }
"""
_TABLE_CUTS = (("all", 20), ("all", 100), ("novel", 20), ("novel", 100), ("repeat", 20), ("repeat", 100))


@dataclass(frozen=True)
class Picture:
    """A PNG with the words below it."""

    title: str
    png: bytes
    caption: str

    def _repr_png_(self) -> bytes:
        """How a notebook shows it."""
        return self.png


@dataclass(frozen=True)
class Table:
    """A table with a header; ``own``: the line that is set off."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""
    own: int | None = None

    def _repr_html_(self) -> str:
        """How a notebook shows it."""
        return table_html(self)


def write_html(report: dict[str, Any], pictures: Sequence[Picture], tables: Sequence[Table] = ()) -> str:
    """Returns the whole page.

    Args:
        report: as ``report.json`` has it.
        pictures: in the order they are shown.
        tables: after the table of metrics.
    """
    counts = report["counts"]
    title = f"{report['dataset']}: version {report['version']}"
    lead = (
        f"{counts['users_evaluated']:,} users with held-out events ({counts['users_without_truth']:,} without are left "
        f"out), {counts['truth_pairs']:,} held-out pairs, {counts['repeated_pairs']:,} of them repeats, "
        f"{counts['items']:,} items ranked for each user, none sampled."
    )
    parts = [f"<h1>{html.escape(title)}</h1>", f"<p>{html.escape(lead)}</p>"]
    if counts["truth_outside_catalogue"]:
        missing = f"{counts['truth_outside_catalogue']:,} held-out pairs name items this version does not have."
        parts.append(f'<p class="bad">{missing} They count as misses.</p>')
    parts += [table_html(table) for table in (metrics_table(report), *tables)]
    parts += [picture_html(picture) for picture in pictures]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def metrics_table(report: dict[str, Any]) -> Table:
    """Recall beside the baselines'."""
    cuts = [(part, k) for part, k in _TABLE_CUTS if str(k) in report["recall"].get(part, {})]
    rows = {"towerline": report, **report["baselines"]}
    lines = [
        (name.replace("_", " "), *(share(told["recall"][part][str(k)]) for part, k in cuts))
        for name, told in rows.items()
    ]
    return Table(
        title="Recall beside the baselines",
        header=("ranking", *(f"{part} @{k}" for part, k in cuts)),
        lines=tuple(lines),
        note="|top k ∩ truth| / min(k, |truth|), mean over users. Novel: without what the user had met, on both sides. "
        "Repeat: the part of the truth that the user had met.",
        own=0,
    )


def tables(report: dict[str, Any]) -> list[Table]:
    """The tables beside the pictures: further metrics, health, gaps."""
    told = [further_metrics(report)]
    if report.get("health"):
        told.append(health_table(report["health"]))
    if report.get("gaps"):
        told.append(gaps_table(report["gaps"]))
    return told


def further_metrics(report: dict[str, Any]) -> Table:
    """The version's own metrics at each cut-off, with intervals."""
    cuts = list(report["recall"]["all"])
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
        values = report.get(metric, {}).get(part)
        if values is None:
            continue
        bounds = report["intervals"][metric][part]
        cells = (f"{share(values[k])} [{share(bounds[k][0])}, {share(bounds[k][1])}]" for k in cuts)
        lines.append((f"{metric.replace('_', ' ')}, {part}", *cells))
    for action, own in report.get("by_action", {}).items():
        lines.append((f"recall, {action}", *(share(own["recall"]["all"][k]) for k in cuts)))
    return Table(
        title="All metrics, with intervals",
        header=("metric", *(f"@{k}" for k in cuts)),
        lines=tuple(lines),
        note="Debiased recall weighs a pair by 1 / propensity, clipped; "
        f"{report.get('effective_sample', 0):,.0f} pairs of equal weight would say as much.",
    )


def health_table(health: dict[str, Any]) -> Table:
    """What is shown beside what was met before."""

    def spread(name: str, figure: str) -> tuple[str, str]:
        return share(health[name][figure]), share(health[f"past_{name}"][figure])

    lines: list[tuple[str, ...]] = []
    for name in ("ads", "advertisers"):
        if name in health:
            things = f"{health[name]['things']:,}"
            lines.append((f"{name} shown at all, share of {things}", *spread(name, "coverage")))
            lines.append((f"Gini of {name}", *spread(name, "gini")))
            numbers = (health[name]["effective_number"], health[f"past_{name}"]["effective_number"])
            lines.append((f"effective number of {name}", *("–" if one is None else f"{one:,.0f}" for one in numbers)))
    if health["fresh_share"] is not None:
        note = f"share of fresh ads ({share(health['fresh_share_of_catalogue'])} of the catalogue)"
        lines.append((note, share(health["fresh_share"]), share(health["fresh_share_of_past"])))
    lines.append(("novelty, bits", share(health["novelty_bits"]["mean"]), share(health["past_novelty_bits"]["mean"])))
    lines.append(("divergence of categories from the past, nats", share(health["category_calibration"]["mean"]), "0"))
    lines.append(("diversity within a list, 1 - cosine", share(health["intra_list_diversity"]["mean"]), "–"))
    return Table(f"Health of the marketplace, top {health['k']}", ("figure", "shown", "met before"), tuple(lines))


def gaps_table(gaps: dict[str, Any]) -> Table:
    """The largest content gaps."""
    lines: list[tuple[str, ...]] = []
    for number, gap in enumerate(gaps["found"], start=1):
        before = "–" if gap["supply_before"] is None else f"{gap['ads'] - gap['supply_before']:+,}"
        price = "–" if gap["median_price"] is None else f"{gap['median_price']:,.2f}"
        lines.append(
            (
                f"{number}. {', '.join(gap['categories'])}",
                f"{gap['demand']:,.0f}",
                f"{gap['supply']:,}",
                f"{gap['good']:,}",
                f"{gap['pressure']:.1f}",
                price,
                before,
                ", ".join(gap["tokens"]),
                "; ".join(gap["nearest"][:2]),
            )
        )
    kind = "leaves of the index" if gaps["regions_of_the_tree"] else "k-means regions (the version searches exactly)"
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
        lines=tuple(lines),
        note=f"Of {gaps['regions']:,} {kind}. Good ads stand in somebody's top list; pressure is users per good ad, "
        "relative to the whole marketplace; trend is the change in ads since the previous version.",
    )


def share(value: float | None) -> str:
    """Three digits after the point; a dash where no user had a value."""
    return "–" if value is None else f"{value:.3f}"


def table_html(table: Table) -> str:
    """One table."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in table.header)
    lines = []
    for number, line in enumerate(table.lines):
        mark = ' class="own"' if number == table.own else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>")
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    return f"<h2>{html.escape(table.title)}</h2><table><tr>{head}</tr>{''.join(lines)}</table>{note}"


def picture_html(picture: Picture) -> str:
    """One picture, its bytes inside the page."""
    data = base64.b64encode(picture.png).decode()
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    return (
        f'<h2>{title}</h2><figure><img alt="{title}" src="data:image/png;base64,{data}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
