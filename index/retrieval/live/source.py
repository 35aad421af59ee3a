"""Where versions come from: a registry, or one bundle's directory."""

from __future__ import annotations

from pathlib import Path

from index.inference.records import Clock
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.retrieval.live.version import ServingVersion
from index.settings import RetrieverSettings
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import MANIFEST_FILE

# How often opening is retried when the version being read is removed meanwhile.
_OPEN_ATTEMPTS = 5


class Source:
    """Opens versions."""

    def __init__(
        self, path: str | Path, clock: Clock, settings: RetrieverSettings | None, *, verify: bool = True
    ) -> None:
        self._path = path
        self._clock = clock
        self._settings = settings
        self._verify = verify
        self.registry = None if (Path(path) / MANIFEST_FILE).is_file() else Registry(path)

    def after_fork(self) -> None:
        """In a forked process: connects again. A connection to an object store does not outlive a fork."""
        if self.registry is not None:
            self.registry = Registry(self._path)

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
