"""``towerline doctor``."""

from __future__ import annotations

import dataclasses

from towerline.commands.look.machine import examine
from towerline.commands.terminal import table_lines
from towerline.commands.verb import Answer, Call

EXAMPLES = ("towerline doctor",)


def verb(call: Call) -> Answer:
    """Looks at this machine: versions, CPU, switches; says what to do."""
    del call
    findings = examine()
    rows = [(finding.verdict, finding.check, finding.found, finding.remedy) for finding in findings]
    problems = sum(finding.verdict == "problem" for finding in findings)
    return Answer(
        lines=list(table_lines(("", "check", "found", "what to do"), rows)),
        facts={"findings": [dataclasses.asdict(finding) for finding in findings], "problems": problems},
        exit_code=1 if problems else 0,
    )
