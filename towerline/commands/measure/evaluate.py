"""``towerline evaluate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

if TYPE_CHECKING:
    from index.evaluation.reports import EvaluationReport
    from index.evaluation.sections.quality import QualityPart

EXAMPLES = (
    "towerline evaluate --config ads.toml",
    "towerline evaluate --config ads.toml --version 20261128T110800Z-05ad3137 --json",
)

Version = Annotated[
    str | None, typer.Option("--version", metavar="NAME", help="version to use instead of the live one")
]


def verb(call: Call, version: Version = None) -> Answer:
    """The live version on held-out events, compared with the baselines: report.json and report.html."""
    report = call.project.evaluate(version)
    return Answer(lines=recall_lines(report), facts=report.as_json(), written=call.project.work / "report.html")


def recall_lines(report: EvaluationReport) -> list[str]:
    """Recall of the version and of each baseline, side by side; first of new and known users and items apart."""
    counts = report.counts
    summary = f"{counts.users_evaluated:,} users with held-out events, {counts.items:,} items, no sampling"
    apart = _lines(report, ("new users", "known users", "new items", "known items"), ("20",))
    if apart:
        apart += [
            f"{counts.new_users:,} of the users are new; {counts.truth_never_seen_before:,} of {counts.truth_pairs:,} "
            "held-out pairs are of new items",
            "",
        ]
    return [*apart, *_lines(report, ("all", "novel", "repeat"), ("20", "100")), summary]


def _lines(report: EvaluationReport, parts: Sequence[str], ks: Sequence[str]) -> list[str]:
    """A table of the parts that were measured; empty where none was."""
    cuts = [(part, k) for part in parts for k in ks if k in report.recall.get(part, {})]
    rankings: dict[str, QualityPart] = {"towerline": report, **report.baselines}
    rows = [
        [name.replace("_", " "), *(_share(quality, part, k) for part, k in cuts)] for name, quality in rankings.items()
    ]
    return list(table_lines(["recall", *(f"{part}@{k}" for part, k in cuts)], rows)) if cuts else []


def _share(quality: QualityPart, part: str, k: str) -> str:
    """One cell: recall at k, or nothing where it was not measured."""
    value = quality.recall.get(part, {}).get(k)
    return "" if value is None else f"{value:.4f}"
