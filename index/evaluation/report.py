"""The report as one HTML file: tables beside the pictures, nothing loaded from elsewhere.

Reads and writes nothing: takes the report's JSON and PNG bytes, gives text.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STYLE = """
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


@dataclass(frozen=True)
class Table:
    """A table with a header; ``own``: the line that is set off."""

    title: str
    header: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    note: str = ""
    own: int | None = None


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
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


def metrics_table(report: dict[str, Any]) -> Table:
    """Recall beside the baselines'."""
    cuts = [(part, k) for part, k in _TABLE_CUTS if str(k) in report["recall"].get(part, {})]
    rows = {"towers": report, **report["baselines"]}
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
