"""One night of a replay: ``refresh`` on the tables as they were, and what became of it."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from index.registry.bundle import Bundle
from index.registry.registry import Registry
from pipelines.contracts.errors import ArtifactError, GateError
from pipelines.progress import Bar, Progress
from towerline.config import Config
from towerline.jobs import refresh
from towerline.jobs.replay.rows import Outcome
from towerline.jobs.stages import BUNDLE, published_chain


@dataclass(frozen=True)
class NightRun:
    """What became of a night. version: live after it. refused: the bundle that a gate refused. Rest as in the row."""

    outcome: Outcome
    seconds: float
    version: str | None
    stages: dict[str, float] = field(default_factory=dict)
    verdicts: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    refused: Path | None = None


def run_night(
    config: Config, as_of: datetime.datetime, before: str | None, *, keep_going: bool, progress: Progress
) -> NightRun:
    """Runs the nightly job.

    Args:
        config: of the nights.
        as_of: where the windows of this one end.
        before: the version that was live before it.
        keep_going: a failed night is an outcome too; else its error is raised. A refused night always is one.
        progress: shows what is at work.

    Raises:
        Exception: the night failed, and ``keep_going`` is not set.
    """
    begun = time.perf_counter()
    try:
        done = refresh.run(config, progress=progress, as_of=as_of)
    except GateError as err:
        return NightRun(
            "refused",
            time.perf_counter() - begun,
            Registry(config.registry).current_or_none(),
            verdicts=tuple(map(dict, err.verdicts)),
            error=str(err),
            refused=config.work / published_chain(config).folder(BUNDLE),
        )
    except Exception as err:
        if not keep_going:
            raise
        live = Registry(config.registry).current_or_none()
        return NightRun("failed", time.perf_counter() - begun, live, error=f"{type(err).__name__}: {err}")
    seconds = time.perf_counter() - begun
    stages = {stage.name: round(stage.seconds, 2) for stage in done.stages}
    stages["publish"] = round(max(seconds - sum(stages.values()), 0.0), 2)
    # A run that was stopped after it had published finds everything up to date: the version says what the gates said.
    is_new = done.version != before
    verdicts = tuple(verdict.as_fact() for verdict in done.verdicts)
    if is_new and not verdicts:
        verdicts = _verdicts_of(config, done.version)
    return NightRun("published" if is_new else "unchanged", seconds, done.version, stages, verdicts)


def _verdicts_of(config: Config, version: str | None) -> tuple[dict[str, Any], ...]:
    found = [one for one in Registry(config.registry).versions() if one.name == version]
    return tuple(found[0].facts.get("gates", ())) if found else ()


def backtest_of(bundle: Path) -> Path | None:
    """The bundle of the towers that a version was measured with; None if it is measured itself, or cannot be read."""
    try:
        measured = Bundle.open(bundle, verify=False).backtest
    except ArtifactError:
        return None
    return None if measured is None else measured.dir


class Inside(Progress):
    """The progress of a night within that of the replay: what is at work is shown, its lines are not."""

    def __init__(self, outer: Progress) -> None:
        super().__init__()
        self._outer = outer

    def line(self, text: str) -> None:
        """Shows nothing."""

    @contextmanager
    def bar(self, total: int, label: str, unit: str, **options: Any) -> Iterator[Bar]:
        """A bar of the replay."""
        with self._outer.bar(total, label, unit, **options) as bar:
            yield bar

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """A wait of the replay."""
        with self._outer.waiting(label):
            yield
