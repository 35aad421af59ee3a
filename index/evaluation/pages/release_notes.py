"""The release notes of an index: one page on what changed between two versions.

Reads and writes nothing: takes the comparison's JSON and PNG bytes, gives text.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from index.evaluation.pages.report import STYLE, Picture, Table, picture_html, share, table_html

_WORDS = {"better": "better", "worse": "worse", "same": "no certain difference"}


def headline(told: dict[str, Any]) -> str:
    """The comparison in a sentence: recall over everything at the largest cut-off measured."""
    main = [one for one in told["metrics"] if (one["metric"], one["part"]) == ("recall", "all")]
    if not main or main[-1]["difference"] is None:
        return "No user has held-out events of both versions: nothing can be said of recall."
    one = main[-1]
    relative = "" if one["relative"] is None else f", {100 * one['relative']:+.1f} %"
    return (
        f"recall@{one['k']} goes from {share(one['first'])} to {share(one['second'])} "
        f"({one['difference']:+.4f}{relative}): {_WORDS[one['verdict']]}."
    )


def release_tables(told: dict[str, Any]) -> list[Table]:
    """All tables of the page."""
    return [
        metrics_table(told),
        slices_table(told),
        movers_table(told, "advertisers"),
        movers_table(told, "categories"),
        costs_table(told),
    ]


def write_notes(told: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The whole page."""
    first, second = told["first"]["version"], told["second"]["version"]
    title = f"{told['dataset']}: {second} after {first}"
    churn = told["churn"]
    items = told["items"]
    failed = any(one["outcome"] == "failed" for one in told["verdicts"])
    verdict = "hold it back" if failed else "let it pass" if told["verdicts"] else "were not asked"
    lead = (
        f"{headline(told)} {100 * (churn['mean'] or 0):.0f} % of a user's top {told['k']} is new. "
        f"{items['only_second']:,} items came, {items['only_first']:,} went, {items['in_both']:,} stayed. "
        f"The gates {verdict}."
    )
    lines = "\n".join(html.escape(line) for line in told["verdict_lines"])
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p>",
        f"<h2>Verdicts of the gates</h2><pre>{lines}</pre>",
        *(picture_html(picture) for picture in pictures),
        *(table_html(table) for table in release_tables(told) if table.lines),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _change(one: dict[str, Any]) -> tuple[str, ...]:
    low, high = one["interval"]
    if one["difference"] is None:
        return ("–", "–", "–", "–", one["verdict"])
    return (
        share(one["first"]),
        share(one["second"]),
        f"{one['difference']:+.4f}",
        f"[{low:+.4f}, {high:+.4f}]",
        one["verdict"],
    )


def metrics_table(told: dict[str, Any]) -> Table:
    """Every metric."""
    return Table(
        title="Quality",
        header=("metric", "before", "after", "difference", f"{100 * told['confidence']:.0f} % interval", "verdict"),
        lines=tuple(
            (f"{one['metric'].replace('_', ' ')}, {one['part']} @{one['k']}", *_change(one)) for one in told["metrics"]
        ),
        note="Paired bootstrap over the same users; better or worse where the interval leaves out zero.",
    )


def slices_table(told: dict[str, Any]) -> Table:
    """The slices whose difference stands after the correction, else the five largest differences."""
    sure = [one for one in told["slices"] if one["verdict"] in ("better", "worse")]
    known = [one for one in told["slices"] if one["difference"] is not None]
    shown = sure or sorted(known, key=lambda one: -abs(one["difference"]))[:5]
    return Table(
        title="Slices" if sure else "Slices: none differs for certain; the five largest differences",
        header=("slice", "users", "before", "after", "difference", "interval", "verdict"),
        lines=tuple((f"{one['name']}: {one['value']}", f"{one['users']:,}", *_change(one)) for one in shown),
        note=f"recall@{told['k']}; paired t-tests, corrected for the number of slices (Benjamini–Hochberg).",
    )


def movers_table(told: dict[str, Any], group: str) -> Table:
    """Who gains and who loses exposure."""
    return Table(
        title=f"Exposure by {group}: largest changes",
        header=(group, "before", "after", "change, points"),
        lines=tuple(
            (one["name"], f"{100 * one['first']:.2f} %", f"{100 * one['second']:.2f} %", f"{100 * one['change']:+.2f}")
            for one in told[group]
        ),
    )


def costs_table(told: dict[str, Any]) -> Table:
    """Latency and size."""
    sides = (told["first"], told["second"])
    timed = [told["latency"].get(name) for name in ("first", "second")]
    lines: list[tuple[str, ...]] = [
        ("size, MB", *(f"{side['size_bytes'] / 1e6:,.1f}" for side in sides)),
        ("items", *(f"{side['counts']['items']:,}" for side in sides)),
        ("dimensions", *(str(side["dim"]) for side in sides)),
        ("engine", *(side["engine"] for side in sides)),
    ]
    for figure in ("p50_us", "p99_us"):
        cells = ("–" if one is None else f"{one[figure]:,.0f}" for one in timed)
        lines.append((f"one search, {figure.split('_')[0]}, µs", *cells))
    return Table("Latency and size", ("figure", "before", "after"), tuple(lines))
