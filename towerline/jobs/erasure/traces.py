"""Traces: which files still hold users who asked to be forgotten. Everything below some folders is looked at.

Reads artifacts of any kind (features, models, bundles, reports, candidates), registries with their versions and deltas,
logs, and what killed jobs left behind; writes nothing. New artifacts are made without these users by
``features.run(forget=...)``; this report names what is retained and still has a trace.
"""

from __future__ import annotations

import functools
import lzma
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import fsspec
import pyarrow as pa

from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import MANIFEST_FILE
from towerline.jobs.erasure.file_scanner import FileScanner
from towerline.jobs.erasure.id_columns import IdColumns, id_columns_at
from towerline.jobs.erasure.id_matcher import IdMatcher, Matches

# A lock holds the number of a process.
_LOCK_SUFFIX = ".lock"
_UNREADABLE = (OSError, ValueError, EOFError, pa.ArrowException, lzma.LZMAError, ArtifactError, MemoryError)


@dataclass(frozen=True)
class Trace:
    """One file that holds one or more of the users.

    ``users`` are those found for certain, as text, ascending; ``possible`` are numbers and short texts in places that
    are not a user's, which may be something else.
    """

    artifact: str
    file: str
    users: tuple[str, ...]
    possible: tuple[str, ...] = ()


@dataclass(frozen=True)
class Unread:
    """A file that could not be searched, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Search:
    """What a search found.

    ``files``: number of files searched. ``unread`` ones were not: no trace in them can be ruled out.
    """

    files: int
    traces: tuple[Trace, ...]
    unread: tuple[Unread, ...]


def search(
    folders: Sequence[Path | str],
    users: Sequence[int | str],
    columns: IdColumns = IdColumns(),  # noqa: B008
) -> Search:
    """Looks through every file below folders or URLs; what cannot be read is in the report.

    Args:
        folders: folders, or fsspec URLs of object stores.
        users: the ids.
        columns: names of columns of users' and items' ids, next to those that the artifacts' own schemas give.

    Raises:
        SchemaError: a folder does not exist.
    """
    matcher = IdMatcher(users)
    traces, unread, files = [], [], 0
    for folder in folders:
        for file in _files(folder, columns):
            files += 1
            try:
                with file.open() as opened:
                    found = FileScanner(matcher, file.columns, file.name).read(opened)
            except _UNREADABLE as err:
                if file.is_there():
                    unread.append(Unread(f"{file.artifact}/{file.name}", f"{type(err).__name__}: {err}"[:200]))
                continue
            if found:
                traces.append(_trace(file, found))
    return Search(files - len(unread), tuple(traces), tuple(unread))


def _trace(file: _File, found: Matches) -> Trace:
    return Trace(file.artifact, file.name, tuple(sorted(found.certain)), tuple(sorted(found.possible)))


@dataclass(frozen=True)
class _File:
    """A file to look at: ``name`` below ``artifact``."""

    artifact: str
    name: str
    columns: IdColumns
    open: Callable[[], IO[bytes]]
    is_there: Callable[[], bool]


def _files(folder: Path | str, given: IdColumns) -> Iterator[_File]:
    if isinstance(folder, str) and "://" in folder:
        yield from _files_of_store(folder, given)
        return
    root = Path(folder)
    if not root.is_dir():
        raise SchemaError(f"{root}: expected a directory of artifacts, found none. Correct the path.")
    folder_to_columns: dict[Path, IdColumns] = {}
    for path in sorted(root.rglob("*")):
        if path.is_dir() or path.suffix == _LOCK_SUFFIX:
            continue
        artifact = _artifact_of(path, root)
        if artifact not in folder_to_columns:
            folder_to_columns[artifact] = id_columns_at(artifact, root).joined(given)
        name = str(path.relative_to(artifact))
        opener = functools.partial(_open, path)
        yield _File(str(artifact), name, folder_to_columns[artifact], opener, path.exists)


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _artifact_of(path: Path, root: Path) -> Path:
    """The nearest folder with a manifest; else the file's own."""
    for one in path.parents:
        if (one / MANIFEST_FILE).is_file():
            return one
        if one == root:
            break
    return path.parent


def _files_of_store(url: str, given: IdColumns) -> Iterator[_File]:
    """All files of an object store's registry; its columns are those of the configuration."""
    try:
        fs, root = fsspec.core.url_to_fs(url)
        names: list[Any] = sorted(fs.find(root))
    except (OSError, ValueError, ImportError) as err:
        raise SchemaError(f"{url}: cannot be reached: {err}. Correct the URL or the credentials.") from err
    for name in names:
        below = name.removeprefix(root).lstrip("/")
        opener, is_there = functools.partial(fs.open, name, "rb"), functools.partial(fs.exists, name)
        yield _File(url, below, given, opener, is_there)
