"""``towerline rollback``."""

from __future__ import annotations

from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline rollback --config ads.toml",
    "towerline rollback --config ads.toml 20261128T110800Z-05ad3137",
)


def verb(
    call: Call,
    version: Annotated[str | None, typer.Argument(help="default: the newest version older than the live one")] = None,
) -> Answer:
    """Makes an older version live again."""
    live = call.project.rollback(version)
    return Answer(lines=[f"live: {live}"], facts={"version": live})
