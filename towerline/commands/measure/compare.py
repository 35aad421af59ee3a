"""``towerline compare``."""

from __future__ import annotations

from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline compare --config ads.toml 20261127T020000Z-1b2c3d4e 20261128T020000Z-05ad3137",)


def verb(
    call: Call,
    first: Annotated[str, typer.Argument(help="the version before")],
    second: Annotated[str, typer.Argument(help="the version after")],
) -> Answer:
    """Two versions side by side: recall by slice, churn, exposure, latency; compare.json and compare.html."""
    comparison = call.project.compare(first, second)
    from index.evaluation.pages.release_notes import headline

    return Answer(
        lines=[*comparison.verdict_lines, headline(comparison)],
        facts=comparison.as_json(),
        written=call.project.work / "compare.html",
    )
