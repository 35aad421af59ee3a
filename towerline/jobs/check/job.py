"""The check: everything a night would refuse, in seconds and without writing anything.

In this order: the machine, the heads of the tables, the rows (a sample of many), what the index and the report need
of them, memory and disk, and which stages would run. What the heads show ends the check: rows that cannot be read
right say nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipelines.contracts.errors import TowerlineError
from pipelines.features.planning import Inputs
from pipelines.features.reporting.data_summary import DataSummary
from pipelines.progress import SILENT, Progress
from towerline.config import Config
from towerline.jobs.check import preflight, row_checks
from towerline.jobs.check.finding import Finding
from towerline.jobs.check.heads import TABLES, Heads
from towerline.jobs.check.machine import needs_of, of_machine
from towerline.jobs.check.rows import Rows, read_rows
from towerline.jobs.check.stage_plan import StageState, plan_night
from towerline.jobs.check.summary import summary_of
from towerline.jobs.stages import FEATURES


@dataclass(frozen=True)
class CheckResult:
    """What a check found.

    findings: errors, warnings and what is well, in the order of the check. summary: of the data; None where the tables
    cannot be read. stages: what a refresh would do.
    """

    findings: tuple[Finding, ...]
    summary: DataSummary | None = None
    stages: tuple[StageState, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What a night would refuse."""
        return tuple(finding for finding in self.findings if finding.verdict == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What a person should look at."""
        return tuple(finding for finding in self.findings if finding.verdict == "warning")

    @property
    def ok(self) -> bool:
        """Whether nothing would be refused."""
        return not self.errors

    def as_facts(self) -> dict[str, Any]:
        """The same for JSON."""
        return {
            "ok": self.ok,
            "errors": len(self.errors),
            "warnings": len(self.warnings),
            "findings": [dataclasses.asdict(finding) for finding in self.findings],
            "summary": None if self.summary is None else self.summary.as_facts(),
            "stages": [dataclasses.asdict(state) for state in self.stages],
        }


def run(config: Config, *, sample: int | None = None, progress: Progress = SILENT) -> CheckResult:
    """Checks a configuration, its tables and this machine. Writes nothing.

    Args:
        config: the whole configuration.
        sample: events to read at most; None reads all of up to 5 M events, and 2 M of more.
        progress: shows that rows are being read.
    """
    needs = preflight.needs_of_night(config)
    findings = [Finding("config", "ok", f"{config.dataset.name}: the TOML can be read")]
    findings += preflight.of_installation(config, needs)
    heads = Heads.read(config, most=None)
    findings += heads.wrong
    findings += preflight.of_heads(config, heads)
    if heads.wrong or any(finding.verdict == "error" and finding.kind == "SchemaError" for finding in findings):
        return CheckResult(tuple(findings))
    findings += _files(heads)
    inputs = Inputs(heads.files["events"], heads.files.get("items"), heads.files.get("users"))
    try:
        with progress.waiting("reading rows"):
            rows = read_rows(config, inputs, sample)
    except TowerlineError as err:
        return CheckResult((*findings, Finding.of("tables", err)))
    findings += _of_rows(rows, config)
    with progress.waiting("comparing with the last run"):
        stages = _stages(config, inputs)
    return CheckResult(tuple(findings), summary_of(rows), stages)


def _files(heads: Heads) -> Iterator[Finding]:
    for table in TABLES:
        if table in heads.files:
            number, size = len(heads.files[table]), sum(file.bytes for file in heads.files[table])
            found = f"{number:,} file{'' if number == 1 else 's'}, {size / 1e6:,.1f} MB"
            yield Finding(f"tables.{table}", "ok", f"{found}, {len(heads.columns[table])} columns")


def _of_rows(rows: Rows, config: Config) -> Iterator[Finding]:
    yield from row_checks.of_rows(rows, config)
    yield from row_checks.of_catalogue(rows, config)
    events, items = round(rows.counts["events"].rows * rows.scale), len(rows.items.table)
    users = len(rows.grouped.user_ids)
    yield from of_machine(config, needs_of(config, events, items, users, rows.items.table.nbytes), items)


def _stages(config: Config, inputs: Inputs) -> tuple[StageState, ...]:
    """What a refresh would do. Files are hashed only where there is a last run to compare with."""
    features = config.work / FEATURES
    if features.is_dir():
        inputs = Inputs.find(config.schema_only(), features)
    return plan_night(config, inputs)
