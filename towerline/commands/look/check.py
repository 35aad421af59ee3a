"""``towerline check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.contracts.errors import ConfigError
from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

if TYPE_CHECKING:
    from towerline.jobs.check.job import CheckResult

EXAMPLES = (
    "towerline check --config ads.toml",
    "towerline check --config ads.toml --sample 500000",
    "towerline check --config ads.toml --json",
)


def verb(
    call: Call,
    sample: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="events to read at most; default: all up to 5 M, 2 M of more"),
    ] = None,
) -> Answer:
    """Everything a night would refuse, in seconds and without writing anything."""
    from towerline.jobs.check.finding import Finding
    from towerline.jobs.check.job import CheckResult

    try:
        result = call.project.check(sample=sample)
    except ConfigError as err:
        result = CheckResult((Finding.of("config", err),))
    return Answer(lines=_lines(result), facts=result.as_facts(), exit_code=0 if result.ok else 1)


def _lines(result: CheckResult) -> list[str]:
    from pipelines.features.reporting import data_summary

    lines: list[str] = []
    if result.summary is not None:
        lines += [*data_summary.lines(result.summary), ""]
    if result.stages:
        rows = [(state.stage, state.state, state.reason) for state in result.stages]
        lines += [*table_lines(("stage", "tonight", "because"), rows), ""]
    for finding in sorted(result.findings, key=lambda one: ("error", "warning", "ok").index(one.verdict)):
        first, *more = str(finding).splitlines()
        lines += [f"{finding.verdict:<7}  {first}", *(f"         {line}" for line in more)]
    errors, warnings = len(result.errors), len(result.warnings)
    lines.append(f"{errors} error{'' if errors == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}")
    return lines
