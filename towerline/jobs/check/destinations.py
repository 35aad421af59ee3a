"""Destinations of a night: the run's folder and the registry. Nothing is written to find out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from index.registry.registry import Registry
from pipelines.contracts.errors import TowerlineError
from pipelines.user_folders import can_be_written, nearest
from towerline.config import Config
from towerline.jobs.check.finding import Finding


def unwritable(config: Config, *, registry: bool) -> Iterator[Finding]:
    """An error for each place that cannot be written.

    Args:
        config: the whole configuration.
        registry: whether the registry will be written too.
    """
    found = [_folder("paths.work", config.work)]
    if registry:
        found.append(_registry(config.registry))
    yield from (finding for finding in found if finding is not None)


def _registry(url: str) -> Finding | None:
    """A folder must be writable; of an object store, CURRENT must be readable: a write is not tried."""
    if "://" not in url or url.startswith("file://"):
        return _folder("paths.registry", Path(url.removeprefix("file://")))
    try:
        Registry(url).current_or_none()
    except TowerlineError as err:
        return Finding.of("paths.registry", err)
    except Exception as err:  # Every store's library has errors of its own.
        text = " ".join(str(err).split()) or type(err).__name__
        found = f"{url} cannot be reached: {text:.300}."
        return Finding("paths.registry", "error", found, "Correct the URL or the credentials.", "TowerlineError")
    return None


def _folder(key: str, folder: Path) -> Finding | None:
    """An error unless the folder is writable or can be made."""
    existing = nearest(folder)
    if not existing.is_dir():
        return Finding(key, "error", f"expected a folder, {existing} is a file.", "Give another path.")
    if not can_be_written(folder):
        found = f"{existing} cannot be written by this user" + (
            f", so {folder} cannot be made." if existing != folder else "."
        )
        return Finding(key, "error", found, f"Give another path with {key}, or change the permissions.")
    return None
