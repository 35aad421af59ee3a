"""Kept versions: those that later nights are compared with, kept apart from the registry's retention.

Hard links to the registry's files, so that they take no room while the registry has them.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from index.registry.registry import Registry
from pipelines.contracts.files import link


@dataclass(frozen=True)
class KeptVersions:
    """Versions by name below ``folder``."""

    folder: Path

    def path(self, version: str) -> Path:
        """The bundle's directory of a kept version."""
        return self.folder / version

    def keep(self, version: str, registry: str) -> Path:
        """Keeps a version of the registry and returns its bundle's directory.

        Raises:
            ArtifactError: the registry has no such version.
        """
        target = self.path(version)
        if not target.is_dir():
            source = Registry(registry).open(version, verify=False).bundle.dir
            draft = self.folder / f".{version}"
            shutil.rmtree(draft, ignore_errors=True)
            shutil.copytree(source, draft, copy_function=_link)
            draft.rename(target)
        return target

    def drop_others(self, wanted: Collection[str]) -> None:
        """Removes all versions but those ``wanted``."""
        for found in self.folder.glob("*"):
            if found.name not in wanted:
                shutil.rmtree(found)


def _link(source: str, target: str) -> None:
    link(Path(source), Path(target))
