"""The watch over a night: runs it, writes the metrics, and sends a notice if it was refused, late or failed.

Reads and writes ``last_success.json`` below the run's folder: when the last night succeeded. An error of the night is
raised as it is, whatever becomes of the notice. A night that is killed sends nothing: alert on the age of
``towerline_night_success``.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from index.registry.registry import Registry
from pipelines.contracts.errors import GateError
from pipelines.contracts.manifest import write_durably
from towerline.config import Config
from towerline.jobs.alerts.metrics import write_metrics
from towerline.jobs.alerts.night import Night, NightOutcome, why_late
from towerline.jobs.alerts.notices import send
from towerline.settings import AlertsSettings

_LOG = logging.getLogger("towerline.alerts")
LAST_SUCCESS = "last_success.json"


class _Verdict(Protocol):
    def as_fact(self) -> dict[str, Any]: ...


class Done(Protocol):
    """What a night returns: the version that is live, whether the night published it, the gates' verdicts."""

    @property
    def version(self) -> str | None: ...
    @property
    def published(self) -> bool: ...
    @property
    def verdicts(self) -> Sequence[_Verdict]: ...


Result = TypeVar("Result", bound=Done)


def watched(config: Config, night: Callable[[], Result], *, clock: Callable[[], float] = time.time) -> Result:
    """Runs a night and returns what it returned.

    Args:
        config: with ``[alerts]``.
        night: the whole night, with what is checked before its first stage.
        clock: seconds since the epoch.

    Raises:
        BaseException: whatever the night raised.
    """
    if config.alerts == AlertsSettings():
        return night()
    last, started = _last_success(config.work), clock()
    try:
        done = night()
    except BaseException as err:
        outcome: NightOutcome = "refused" if isinstance(err, GateError) else "failed"
        verdicts = err.verdicts if isinstance(err, GateError) else ()
        _report(config, _night(config, outcome, _reason(err), (started, clock(), last), verdicts=verdicts))
        raise
    ended = clock()
    late = why_late(ended - started, None if last is None else ended - last, config.alerts.late_minutes)
    made = _night(
        config,
        "success" if late is None else "late",
        late,
        (started, ended, last),
        version=done.version,
        published=done.published,
        verdicts=[verdict.as_fact() for verdict in done.verdicts],
    )
    _note_success(config.work, ended)
    _report(config, made)
    return done


def _last_success(work: Path) -> float | None:
    """Seconds since the epoch; None if no night has succeeded, or nobody can say."""
    try:
        return float(json.loads((work / LAST_SUCCESS).read_text())["ended_at"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _note_success(work: Path, ended: float) -> None:
    try:
        write_durably(work / LAST_SUCCESS, json.dumps({"ended_at": ended}).encode())
    except OSError as err:
        _LOG.error("%s was not written: %s. The next night may count as late.", work / LAST_SUCCESS, err)


def _reason(err: BaseException) -> str:
    return f"{type(err).__name__}: {err}" if str(err) else type(err).__name__


def _night(
    config: Config,
    outcome: NightOutcome,
    reason: str | None,
    times: tuple[float, float, float | None],
    *,
    version: str | None = None,
    published: bool = False,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> Night:
    started, ended, last = times
    return Night(
        dataset=config.dataset.name,
        outcome=outcome,
        reason=reason,
        started_at=started,
        seconds=max(ended - started, 0.0),
        work=str(config.work),
        registry=config.registry,
        version=_live(config) if version is None else version,
        published=published,
        verdicts=verdicts,
        last_success_at=last,
    )


def _live(config: Config) -> str | None:
    try:
        return Registry(config.registry).current_or_none()
    except Exception:  # The night's own error is the one to show.
        return None


def _report(config: Config, night: Night) -> None:
    """Never raises: it runs while the night's own error is on its way."""
    settings = config.alerts
    try:
        if settings.metrics_file is not None:
            write_metrics(night, settings.metrics_file)
    except Exception as err:
        _LOG.error("alerts.metrics_file: %s was not written: %s. Check the folder.", settings.metrics_file, err)
    if night.outcome != "success":
        send(night.as_json(), settings)
