"""Moves to a new version while requests continue: open in the background, verify, warm, swap one reference.

Reads a registry. Calls never wait for a swap: a running call keeps the version it began with. The watcher's thread
frees the old version once no call uses it, so that no request pays for that.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from index.inference.records import Clock
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.retrieval.live.version import ServingVersion
from index.retrieval.prometheus import RetrieverMetrics
from index.settings import RetrieverSettings
from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.manifest import MANIFEST_FILE

_LOG = logging.getLogger("towerline.retriever")
# How often opening is retried when the version being read is removed meanwhile.
_OPEN_ATTEMPTS = 5
# How long an old version may still be in use before the watcher drops its reference anyway.
_RETIRE_SECONDS = 5.0
# References to a version that no call uses: the two functions that free it, and the count itself.
_OWN_REFERENCES = 3


class Source:
    """Where versions come from: a registry, or one bundle's directory."""

    def __init__(
        self, path: str | Path, clock: Clock, settings: RetrieverSettings | None, *, verify: bool = True
    ) -> None:
        self._path = path
        self._clock = clock
        self._settings = settings
        self._verify = verify
        self.registry = None if (Path(path) / MANIFEST_FILE).is_file() else Registry(path)

    def open(self, version: str | None = None) -> ServingVersion:
        """Opens a version (None is CURRENT), or the bundle.

        Raises:
            ArtifactError: there is none, or it is damaged.
        """
        if self.registry is None:
            return self._open_bundle(version)
        for attempt in range(_OPEN_ATTEMPTS):
            opened = self.registry.open(version, verify=self._verify)
            try:
                return ServingVersion.open(opened.bundle, opened.version, self._clock, self._settings)
            except (ArtifactError, OSError):
                # Retention may remove a version while it is being read; then there is a newer one.
                moved = version is None and self.registry.current() != opened.version
                if not moved or attempt == _OPEN_ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _open_bundle(self, version: str | None) -> ServingVersion:
        if version is not None:
            raise ArtifactError(
                f"{self._path}: a bundle, not a registry: it has no version {version!r}. Leave version out."
            )
        bundle = Bundle.open(Path(self._path), verify=self._verify)
        return ServingVersion.open(bundle, bundle.manifest.fingerprint, self._clock, self._settings)


class Watcher:
    """A thread that follows CURRENT."""

    def __init__(
        self,
        source: Source,
        move: Callable[[ServingVersion], ServingVersion],
        live_version: Callable[[], str],
        look: Callable[[], None],
        metrics: RetrieverMetrics,
        interval_seconds: float,
    ) -> None:
        """``move`` makes a version live and returns the previous one; ``look`` reads the live one's new deltas."""
        if source.registry is None:
            raise ArtifactError("watch: opened on a bundle, which has no CURRENT. Open the registry instead.")
        self._registry = source.registry
        self._source = source
        self._move = move
        self._live_version = live_version
        self._look = look
        self._metrics = metrics
        self._interval = interval_seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="towerline-watch", daemon=True)
        self._failed_version: str | None = None
        self.last_error: Exception | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stops the thread and waits for it."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval):
            self.check()

    def check(self) -> bool:
        """Moves to CURRENT if that is not the live version, else looks for deltas. Returns whether it moved.

        A version that failed is not retried until CURRENT names another one.
        """
        try:
            current = self._registry.current()
            if current in (self._live_version(), self._failed_version):
                self._look()
                return False
        except (TowerlineError, OSError) as err:
            self._failed(None, err)
            return False
        try:
            fresh = self._source.open(current)
        except Exception as err:
            self._failed(current, err)
            return False
        self.last_error = None
        old = self._move(fresh)
        _LOG.info("version %s is live", current)
        self._retire(old)
        return True

    def _failed(self, version: str | None, err: Exception) -> None:
        self._failed_version = version
        self.last_error = err
        self._metrics.failed_swap()
        _LOG.error("version %s cannot be opened, the live one stays: %s", version, err)

    def _retire(self, old: ServingVersion) -> None:
        """Waits until no call uses the old version, then frees it here.

        Once it is not live, no call can begin to use it: references only disappear. If some stay (for example a kept
        explanation), it is freed with the last of them.
        """
        until = time.monotonic() + _RETIRE_SECONDS
        while sys.getrefcount(old) > _OWN_REFERENCES and time.monotonic() < until:
            time.sleep(0.01)
        if sys.getrefcount(old) <= _OWN_REFERENCES:
            old.release()
