"""``towerline evaluate``."""

from __future__ import annotations

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
    """Recall of the version and of each baseline, side by side."""
    cuts = [(part, k) for part in ("all", "novel", "repeat") for k in ("20", "100") if part in report.recall]
    header = ["recall", *(f"{part}@{k}" for part, k in cuts)]
    rankings: dict[str, QualityPart] = {"towerline": report, **report.baselines}
    rows = [
        [name.replace("_", " "), *(_share(quality, part, k) for part, k in cuts)] for name, quality in rankings.items()
    ]
    counts = report.counts
    summary = f"{counts.users_evaluated:,} users with held-out events, {counts.items:,} items, no sampling"
    return [*table_lines(header, rows), summary]


def _share(quality: QualityPart, part: str, k: str) -> str:
    """One cell: recall at k, or nothing where it was not measured."""
    value = quality.recall.get(part, {}).get(k)
    return "" if value is None else f"{value:.4f}"
