"""``towerline candidates``."""

from __future__ import annotations

from typing import Annotated

import typer

from pipelines.contracts.manifest import read_manifest
from towerline.commands.verb import Answer, Call

EXAMPLES = (
    "towerline candidates --config ads.toml --k 200",
    "towerline candidates --config ads.toml --users users.csv -- --direct_num_workers=4",
)


def verb(
    call: Call,
    k: Annotated[int, typer.Option(help="candidates per user")] = 100,
    users: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="ids or raw records: Parquet, CSV, TSV or JSONL (default: all users)"),
    ] = None,
) -> Answer:
    """Candidates for all users, or for a file of them, as Parquet (Beam)."""
    written = call.project.candidates(k=k, users=users)
    facts = read_manifest(written.parent).facts
    counts = {name: facts[name] for name in ("users", "known", "unknown", "cold")}
    line = "{users} users: {known} known, {unknown} in no table (answered as new users); {cold} cold starts"
    return Answer(lines=[line.format(**counts)], facts={"stage": "candidates", **counts}, written=written)
