"""``towerline versions``."""

from __future__ import annotations

import dataclasses

from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline versions --config ads.toml", "towerline versions --registry s3://bucket/registry --json")


def verb(call: Call) -> Answer:
    """The registry's versions, the live one marked."""
    versions = call.project.versions()
    rows = [("live" if one.live else "", one.name, one.created_at, f"{one.items:,}") for one in versions]
    return Answer(
        lines=list(table_lines(("", "version", "created", "items"), rows)) if rows else ["no version is published yet"],
        facts={"versions": [dataclasses.asdict(one) for one in versions]},
    )
