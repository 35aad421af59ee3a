"""Folders of the user that runs this process: the cache, and temporary folders.

A container may run under any user id, without a home, without an entry in /etc/passwd, or with a home that cannot be
written. Then the cache is below the temporary folder. Where nothing can be written, the error names the variable.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipelines.contracts.errors import TowerlineError

CACHE_VARIABLE = "TOWERLINE_CACHE"
_TEMPORARY_VARIABLE = "TMPDIR"


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where copies are kept that can be fetched again. It need not exist yet, and is not made here.

    ``TOWERLINE_CACHE``, else ``.cache/towerline`` in the home, else ``towerline-UID`` in the temporary folder.

    Raises:
        TowerlineError: neither the home nor a temporary folder can be written.
    """
    given = environment.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    home = os.path.expanduser("~")  # Without a home it stays "~".
    if os.path.isabs(home) and can_be_written(Path(home) / ".cache" / "towerline"):
        return Path(home) / ".cache" / "towerline"
    return Path(_temporary(CACHE_VARIABLE)) / f"towerline-{os.getuid()}"


def make_cache_folder(folder: Path) -> None:
    """Makes a folder below the cache.

    Raises:
        TowerlineError: it cannot be made or written, or another user made it.
    """
    try:
        _make(folder)
        _refuse_foreign(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder} cannot be written")
    except OSError as err:
        raise TowerlineError(
            f"{folder}: the cache cannot be written: {err}. Set {CACHE_VARIABLE} to a folder that this user can write."
        ) from err


def _make(folder: Path) -> None:
    """Makes a folder and its parents, each for this user alone."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True, mode=0o700)


def _refuse_foreign(folder: Path) -> None:
    """A folder in the temporary folder, which everybody can write, must be this user's own."""
    for place in (folder, *folder.parents):
        if place.name == f"towerline-{os.getuid()}" and place.stat().st_uid != os.getuid():
            raise PermissionError(f"{place} belongs to another user")


@contextlib.contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """A folder that is removed at the end.

    Raises:
        TowerlineError: there is no place for one.
    """
    with tempfile.TemporaryDirectory(prefix=prefix, dir=_temporary(_TEMPORARY_VARIABLE)) as folder:
        yield Path(folder)


def _temporary(variable: str) -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError as err:
        raise TowerlineError(
            f"no temporary folder can be written ({err}). Set {variable} to a folder that this user can write."
        ) from err


def can_be_written(folder: Path) -> bool:
    """Whether the folder can be written, or made: what is there of its path decides. Writes nothing."""
    place = nearest(folder)
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)


def nearest(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    place = path.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place
