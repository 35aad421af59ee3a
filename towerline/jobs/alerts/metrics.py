"""The metrics textfile of a night, for the textfile collector of Prometheus' node exporter.

Reads the registry; writes one file, to a temporary name that is renamed. A figure that cannot be read is left out.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from index.registry.delta_log import DeltaLog
from index.registry.registry import Registry, Version
from towerline.jobs.alerts.night import OUTCOMES, Night

_LOG = logging.getLogger("towerline.alerts")


def write_metrics(night: Night, file: Path) -> None:
    """Writes all figures of a night.

    Raises:
        OSError: the file cannot be written.
    """
    figures = _Figures(night.dataset)
    for outcome in OUTCOMES:
        figures.add("night", "1 for the outcome of the last night", night.outcome == outcome, outcome=outcome)
    figures.add("night_seconds", "How long the last night took", night.seconds)
    figures.add("night_end_timestamp_seconds", "When the last night ended", _end_of(night))
    if (last := _last_success(night)) is not None:
        figures.add("night_success_timestamp_seconds", "When the last successful night ended", last)
    for verdict in night.verdicts:
        gate = str(verdict["gate"])
        figures.add("gate_failed", "1 if the gate failed in the last night", verdict["outcome"] == "failed", gate=gate)
        if verdict["measured"] is not None:
            figures.add("gate_measured", "The gate's figure in the last night", verdict["measured"], gate=gate)
        if verdict.get("recall") is not None:
            text = "recall@100 on held-out events of the last night's bundle"
            figures.add("night_recall_at_100", text, verdict["recall"])
    _readable("the live version", lambda: _live(figures, night))
    _readable("the log of changes", lambda: _log_entries(figures, night))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_to_textfile(str(file), figures.registry)


class _Figures:
    """Gauges of one data set, made on first use."""

    def __init__(self, dataset: str) -> None:
        self.registry = CollectorRegistry()
        self._dataset = dataset
        self._gauges: dict[str, Gauge] = {}

    def add(self, name: str, text: str, value: float, **labels: str) -> None:
        """Adds one figure, with the data set as a label."""
        if name not in self._gauges:
            names = ("dataset", *labels)
            self._gauges[name] = Gauge(f"towerline_{name}", text, names, registry=self.registry)
        self._gauges[name].labels(dataset=self._dataset, **labels).set(float(value))


def _end_of(night: Night) -> float:
    return night.started_at + night.seconds


def _last_success(night: Night) -> float | None:
    return _end_of(night) if night.outcome in ("success", "late") else night.last_success_at


def _live(figures: _Figures, night: Night) -> None:
    live = [version for version in Registry(night.registry).versions() if version.live]
    for version in live:
        since = _published_at(version)
        figures.add("live_version_info", "The live version", 1, version=version.name)
        figures.add("live_version_timestamp_seconds", "When the live version was built", since)
        figures.add("live_version_age_seconds", "Age of the live version when the night ended", _end_of(night) - since)
        figures.add("items", "Items of the live version", version.items)


def _published_at(version: Version) -> float:
    return datetime.datetime.fromisoformat(version.created_at).timestamp()


def _log_entries(figures: _Figures, night: Night) -> None:
    log = DeltaLog(Registry(night.registry).store)
    figures.add("log_last_sequence", "Number of the last entry in the log of changes", log.last())
    figures.add("log_entries", "Entries kept in the log of changes", len(log.after(0)))


def _readable(what: str, read: Callable[[], None]) -> None:
    try:
        read()
    except Exception as err:  # Whatever is wrong with the registry, the other figures are written.
        _LOG.error("alerts.metrics_file: %s cannot be read: %s. Its figures are left out.", what, err)
