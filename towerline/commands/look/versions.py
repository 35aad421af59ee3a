"""``towerline versions``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from index.registry.bundle import EXACT_WHY_FACT, TOWERS_FACT, TOWERS_WHY_FACT
from index.registry.registry import Version
from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline versions --config ads.toml", "towerline versions --registry s3://bucket/registry --json")


def verb(call: Call) -> Answer:
    """The registry's versions, the live one marked."""
    versions = call.project.versions()
    rows = [
        ("live" if one.live else "", one.name, one.created_at, f"{one.items:,}", one.facts.get(TOWERS_FACT, ""))
        for one in versions
    ]
    titles = ("", "version", "created", "items", "towers")
    return Answer(
        lines=[*table_lines(titles, rows), *_why(versions)] if rows else ["no version is published yet"],
        facts={"versions": [dataclasses.asdict(one) for one in versions]},
    )


def _why(versions: Sequence[Version]) -> list[str]:
    """Why the live version has the towers and the search that it has; nothing where it does not say."""
    lines = []
    for one in versions:
        if one.live and TOWERS_WHY_FACT in one.facts:
            lines.append(f"towers of {one.name}: {one.facts[TOWERS_FACT]}, {one.facts[TOWERS_WHY_FACT]}")
        if one.live and EXACT_WHY_FACT in one.facts:
            lines.append(f"search of {one.name}: {one.facts[EXACT_WHY_FACT]}")
    return lines
