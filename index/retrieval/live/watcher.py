"""Moves to a new version while requests continue: open in the background, verify, warm, swap one reference.

Reads a registry. Calls never wait for a swap: a running call keeps the version it began with, and the last reference
frees it. The watcher keeps the old version a little longer than calls take, so that its own thread and not a request
pays for that. A version that cannot be opened is tried again, after longer and longer waits.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from index.retrieval.live.source import Source
from index.retrieval.live.version import ServingVersion
from index.retrieval.prometheus import RetrieverMetrics
from pipelines.contracts.errors import ArtifactError, TowerlineError

_LOG = logging.getLogger("towerline.retriever")
# How long the watcher keeps an old version: longer than any call.
_GRACE_SECONDS = 1.0
# The longest wait before a version that could not be opened is tried again.
_LONGEST_WAIT_SECONDS = 600.0


@dataclass(frozen=True)
class _Failure:
    """A version that could not be opened, how often, and when to try again."""

    version: str
    attempts: int
    again_at: float


class Watcher:
    """A thread that follows CURRENT."""

    def __init__(
        self,
        source: Source,
        move: Callable[[ServingVersion], object],
        live_version: Callable[[], str],
        look: Callable[[], None],
        metrics: RetrieverMetrics,
        interval_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what a retriever does about it; nothing starts before ``start``.

        Args:
            source: where versions are opened.
            move: makes a version live and returns all that the previous one consists of.
            live_version: the live version's name.
            look: reads the log of changes.
            metrics: counts failures.
            interval_seconds: between two checks.
            clock: seconds, only ever growing.

        Raises:
            ArtifactError: the source is a bundle.
        """
        if source.registry is None:
            raise ArtifactError("watch: opened on a bundle, which has no CURRENT. Open the registry instead.")
        self._source = source
        self._move = move
        self._live_version = live_version
        self._look = look
        self._metrics = metrics
        self._interval = interval_seconds
        self._clock = clock
        self._failure: _Failure | None = None
        self._old: object = None
        self.last_error: Exception | None = None
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="towerline-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._old = None

    def after_fork(self) -> None:
        """In a forked process, which has no other threads than the one that forked: starts the thread again."""
        running = self._thread is not None and not self._stopped.is_set()
        self._stopped = threading.Event()
        self._old = None
        if running:
            self.start()

    def _run(self) -> None:
        wait = self._interval
        while not self._stopped.wait(wait):
            wait = self._interval
            if self.check():
                grace = min(_GRACE_SECONDS, wait)
                self._stopped.wait(grace)
                self._old = None
                wait -= grace

    def check(self) -> bool:
        """Moves to CURRENT if that is not the live version, else looks for changes. Returns whether it moved.

        A version that failed is tried again when its wait is over.
        """
        self._old = None
        current = self._wanted()
        if current is None:
            self._look()
            return False
        try:
            fresh = self._source.open(current)
            self._old = self._move(fresh)
        except Exception as err:
            self._failed(current, err)
            self._look()
            return False
        self._failure = self.last_error = None
        _LOG.info("version %s is live", current)
        return True

    def _wanted(self) -> str | None:
        """The version to move to now; None to stay."""
        assert self._source.registry is not None
        try:
            current = self._source.registry.current()
        except (TowerlineError, OSError) as err:
            self._report("CURRENT cannot be read", err)
            return None
        if current == self._live_version():
            self._failure = self.last_error = None
            return None
        failure = self._failure
        waits = failure is not None and failure.version == current and self._clock() < failure.again_at
        return None if waits else current

    def _failed(self, version: str, err: Exception) -> None:
        before = self._failure
        attempts = 1 + (before.attempts if before is not None and before.version == version else 0)
        wait = min(self._interval * 2**attempts, max(_LONGEST_WAIT_SECONDS, self._interval))
        self._failure = _Failure(version, attempts, self._clock() + wait)
        self._report(f"version {version} cannot be opened (attempt {attempts}, again in {wait:.0f} s)", err)

    def _report(self, what: str, err: Exception) -> None:
        self.last_error = err
        self._metrics.failed_swap()
        _LOG.error("%s, the live one stays: %s", what, err)
