"""``towerline erasure-report``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline erasure-report --config ads.toml forget.txt",)


def verb(
    call: Call,
    forget: Annotated[Path, typer.Argument(help="file of user ids to erase, one per line")],
) -> Answer:
    """Which artifacts and published versions still hold a trace of users to erase."""
    report = call.project.erasure_report(forget)
    rows = [(str(one.artifact), one.file, ", ".join(one.users)) for one in report.traces]
    lines = (
        list(table_lines(("artifact", "file", "users"), rows)) if rows else [f"none of {report.users} users is left"]
    )
    return Answer(
        lines=lines,
        facts={"users": report.users, "traces": [dataclasses.asdict(one) for one in report.traces]},
        exit_code=1 if rows else 0,
    )
