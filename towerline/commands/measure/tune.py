"""``towerline tune``."""

from __future__ import annotations

from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline tune --config ads.toml --trials 40",)


def verb(
    call: Call,
    trials: Annotated[int, typer.Option(help="settings to try in total, those of an earlier run included")] = 20,
) -> Answer:
    """Searches the ranges of [towers.tune] on validation recall (Optuna); resumable; writes the best as a TOML."""
    out = call.project.tune(trials=trials)
    return Answer(lines=[out.read_text().rstrip()], facts={"stage": "tune"}, written=out)
