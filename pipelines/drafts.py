"""Folders being written, next to the place that they will have: hidden, and held by their writer.

    .bundle.<id>.draft      what is being written for ``bundle``
    .bundle.<id>.old        what was there before, where a file system cannot exchange two folders in one step
    .bundle.<id>.lock       held by the writer for as long as it lives

Whether a writer lives is asked of its lock, never of a process id: another container has other ids. Only writers
remove what killed ones left; a reader changes nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipelines.locks import Hold, hold

# Of linux/fcntl.h and linux/fs.h.
_FROM_HERE, _RENAME_EXCHANGE = -100, 2
_LOCK, _DRAFT, _OLD = ".lock", ".draft", ".old"


@contextlib.contextmanager
def draft_of(target: Path) -> Iterator[Path]:
    """An empty folder next to ``target``; at the end it is removed, unless it was renamed.

    Leftovers of killed writers of the same target are removed first.
    """
    sweep(target)
    stem, held = _held_name(target)
    folder = _at(stem, _DRAFT)
    try:
        folder.mkdir()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _at(stem, _LOCK).unlink(missing_ok=True)
        if held is not None:
            held.release()


def _held_name(target: Path) -> tuple[Path, Hold | None]:
    """The stem of a draft's names, and its lock; no lock where the file system has none: nobody sweeps there."""
    while True:
        stem = target.parent / f".{target.name}.{uuid.uuid4().hex}"
        try:
            held = hold(_at(stem, _LOCK))
        except OSError:
            if not _at(stem, _LOCK).exists():
                raise
            return stem, None
        if held is not None:  # Else another writer took the file, just made, for a killed one's.
            return stem, held


def replace_directory(source: Path, target: Path) -> None:
    """Puts ``source`` where ``target`` is, or was, and removes what was there; both are on one file system.

    In one step where the system can exchange two folders; else there is a moment without ``target``, and the next
    writer restores it if this one is killed then.
    """
    old = source.with_suffix(_OLD)
    while not _exchange(source, target):
        try:
            if target.exists():
                shutil.rmtree(old, ignore_errors=True)
                os.rename(target, old)
            os.rename(source, target)
            break
        except OSError as err:  # Another writer was faster: its folder is replaced.
            if err.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT) or not source.exists():
                raise
    sync(target.parent)
    for replaced in (source, old):
        shutil.rmtree(replaced, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Lets two folders change places by renameat2(2), which Python lacks; whether it did."""
    call = getattr(ctypes.CDLL(None), "renameat2", None)
    if call is None or not other.exists():
        return False
    done: int = call(_FROM_HERE, os.fsencode(one), _FROM_HERE, os.fsencode(other), _RENAME_EXCHANGE)
    return done == 0


def sync(path: Path) -> None:
    """Makes a file's content, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(target: Path) -> None:
    """Removes what killed writers of ``target`` left; after a kill between two renames, restores the old folder.

    For writers of the target only.
    """
    for stem in _stems(target):
        with contextlib.suppress(OSError):  # No locks here, or another writer is faster.
            held = hold(_at(stem, _LOCK))  # None: its writer lives.
            if held is not None:
                _clear(stem, target)
                held.release()


def sweep_all(folder: Path) -> None:
    """``sweep`` for every target in a folder."""
    name = re.compile(rf"\.(.+?)(?:\.\d+)?\.[0-9a-f]+(?:{_LOCK}|{_DRAFT}|{_OLD})")
    found = [name.fullmatch(entry) for entry in os.listdir(folder)]
    for target in sorted({match[1] for match in found if match}):
        sweep(folder / target)


def _stems(target: Path) -> list[Path]:
    """Stems of the drafts of a target. Those of earlier releases have a process id, and no lock."""
    name = re.compile(rf"(\.{re.escape(target.name)}(?:\.\d+)?\.[0-9a-f]+)(?:{_LOCK}|{_DRAFT}|{_OLD})")
    try:
        found = [name.fullmatch(entry) for entry in os.listdir(target.parent)]
    except FileNotFoundError:
        return []
    return [target.parent / stem for stem in sorted({match[1] for match in found if match})]


def _clear(stem: Path, target: Path) -> None:
    old = _at(stem, _OLD)
    if old.exists() and not target.exists():
        os.rename(old, target)
    for folder in (old, _at(stem, _DRAFT)):
        shutil.rmtree(folder, ignore_errors=True)
    _at(stem, _LOCK).unlink(missing_ok=True)


def _at(stem: Path, ending: str) -> Path:
    return stem.with_name(stem.name + ending)
