"""``towerline build``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline build --config ads.toml",
    "towerline build --config ads.toml --dry-run --items 10000000 --dim 64",
)


def verb(
    call: Call,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="predict memory, disk and time, and build nothing")
    ] = False,
    items: Annotated[
        int | None, typer.Option(metavar="N", help="number of items to plan for (default: as in the embeddings)")
    ] = None,
    dim: Annotated[
        int | None, typer.Option(metavar="N", help="length of a vector to plan for (default: as in the embeddings)")
    ] = None,
) -> Answer:
    """Item vectors to a bundle, its search tuned to the recall target (ScaNN)."""
    if not dry_run:
        return Answer(facts={"stage": "bundle"}, written=call.project.build())
    forecast = call.project.forecast(items=items, dim=dim)
    return Answer(lines=[forecast.line, "dry run: nothing was built"], facts=dataclasses.asdict(forecast))
