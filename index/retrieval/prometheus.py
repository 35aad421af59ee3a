"""The retriever's metrics, for Prometheus: latency by plan, fill, errors, version, age, swaps.

Each retriever has its own Prometheus registry unless it is given one, so that two in one process do not collide.
"""

from __future__ import annotations

import threading
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from index.retrieval.candidates import Candidates

# Seconds: from an unfiltered search of a small catalogue to a call during a failed swap.
_LATENCY_BUCKETS = (5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 6e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.5)
_METHODS = ("search", "fetch", "leaves", "exact", "popularity", "empty")


class RetrieverMetrics:
    """Counts what a retriever does. Safe to use from many threads."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = CollectorRegistry() if registry is None else registry
        self._seconds = Histogram(
            "towerline_retrieve_seconds",
            "Time of one call, by the plan that answered it",
            ("plan",),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self._latency = {method: self._seconds.labels(method) for method in _METHODS}
        self._short = Counter(
            "towerline_retrieve_short_total", "Calls that found fewer candidates than asked for", registry=self.registry
        )
        self._missing = Counter(
            "towerline_retrieve_missing_total", "Candidates asked for and not found", registry=self.registry
        )
        self._cold = Counter(
            "towerline_retrieve_cold_total",
            "Calls for cold users",
            ("kind",),
            registry=self.registry,
        )
        self._errors = Counter("towerline_retrieve_errors_total", "Calls refused with an error", registry=self.registry)
        self._version = Gauge("towerline_version_info", "The live version", ("version",), registry=self.registry)
        self._opened = Gauge(
            "towerline_version_opened_timestamp_seconds", "When the live version went live here", registry=self.registry
        )
        self._swaps = Counter("towerline_swaps_total", "Moves to another version", registry=self.registry)
        self._failed_swaps = Counter(
            "towerline_failed_swaps_total", "Versions that could not be opened", registry=self.registry
        )

    def after_fork(self) -> None:
        """In a forked process: renews the locks, which another thread may have held. Counts go on from the parent's.

        ``prometheus_client`` has no way to do that: its locks are found by their name.
        """
        families = (self._short, self._missing, self._cold, self._errors, self._version, self._opened)
        metrics: list[Any] = [*families, self._swaps, self._failed_swaps, self._seconds]
        metrics += [child for metric in metrics for child in getattr(metric, "_metrics", {}).values()]
        values = [value for metric in metrics for value in vars(metric).values()]
        parts = [part for value in values for part in (value if isinstance(value, list) else [value])]
        for holder in [self.registry, *metrics, *parts]:
            if hasattr(holder, "_lock"):
                holder._lock = threading.RLock()

    def answered(self, candidates: Candidates, seconds: float) -> None:
        """Counts one answer."""
        self._latency[candidates.plan.method].observe(seconds)
        missing = candidates.k - len(candidates.rows)
        if missing > 0:
            self._short.inc()
            self._missing.inc(missing)
        if candidates.cold_start is not None:
            self._cold.labels(candidates.cold_start).inc()

    def refused(self) -> None:
        """Counts one call that ended with an error."""
        self._errors.inc()

    def went_live(self, version: str, now: float, *, swapped: bool) -> None:
        """Records the live version. ``now``: seconds since the epoch."""
        self._version.clear()
        self._version.labels(version).set(1)
        self._opened.set(now)
        if swapped:
            self._swaps.inc()

    def failed_swap(self) -> None:
        """Counts a version that could not be opened."""
        self._failed_swaps.inc()
