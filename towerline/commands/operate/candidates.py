"""``towerline candidates``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline candidates --config ads.toml --k 200",
    "towerline candidates --config ads.toml --users users.parquet -- --direct_num_workers=4",
)


def verb(
    call: Call,
    k: Annotated[int, typer.Option(help="candidates per user")] = 100,
    users: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Parquet of raw records (default: all users)")
    ] = None,
) -> Answer:
    """Candidates for all users, or for a file of them, as Parquet (Beam)."""
    return Answer(facts={"stage": "candidates"}, written=call.project.candidates(k=k, users=users))
