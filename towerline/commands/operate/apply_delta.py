"""``towerline apply-delta``."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline apply-delta --config ads.toml changed_ads.parquet",
    "towerline apply-delta --config ads.toml 'changes/*.csv.gz'",
)


def verb(
    call: Call,
    items: Annotated[
        str,
        typer.Argument(
            help="ads as in the items table: file, folder, glob or URL of Parquet, CSV, TSV or JSONL; a column "
            "`change` may say remove, pause or resume"
        ),
    ],
) -> Answer:
    """New, changed, removed and paused ads into the live version, between two nights."""
    applied = call.project.apply_delta(items)
    counted = ("upserted", "removed", "paused", "resumed")
    counts = ", ".join(f"{getattr(applied, name)} {name}" for name in counted)
    lines = [f"version {applied.version}, delta {applied.sequence}: {counts} in {applied.seconds:.1f} s"]
    if applied.rebuild is not None:
        lines.append(f"the index should be rebuilt ({applied.rebuild}): run `towerline compact`")
    return Answer(lines=lines, facts=dataclasses.asdict(applied))
