"""``towerline erasure-report``."""

from __future__ import annotations

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
    """Which files of the run's folder and the registry still hold a trace of users to erase.

    Exit code 0: every file was searched, and none holds a trace.
    """
    report = call.project.erasure_report(forget)
    rows = [(one.artifact, one.file, ", ".join(one.users), ", ".join(one.possible)) for one in report.traces]
    table = table_lines(("artifact", "file", "users", "possible"), rows) if rows else ()
    return Answer(lines=[*table, *report.lines], facts=report.as_fact(), exit_code=0 if report.is_clean else 1)
