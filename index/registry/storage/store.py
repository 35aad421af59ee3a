"""Where a registry is stored: what it needs of a local folder, or of an object store behind an fsspec URL.

Both write a directory completely or not at all, create and replace a small file in one step, and return local
directories. An artifact directory exists once its ``manifest.json`` does, which is renamed with it (folder) or written
last (object store). Names come from the registry, which checks what it reads from outside.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import fsspec

from index.registry.storage.folder_store import FolderStore
from index.registry.storage.object_store import ObjectStore
from pipelines.contracts.errors import TowerlineError
from pipelines.locks import Hold


class Store(Protocol):
    """What a registry needs from its storage. Names are relative, with ``/``."""

    @property
    def url(self) -> str:
        """The location, for messages."""
        ...

    @property
    def locks_all_machines(self) -> bool:
        """Whether ``lock`` keeps out every writer, or only those of this machine."""
        ...

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file if there is none of that name; returns whether it did. Of several writers one succeeds,
        on every machine. ``content`` is this writer's alone: a file that has it already was written by this call."""
        ...

    def swap(self, name: str, before: bytes | None, content: bytes) -> bool:
        """Replaces a small file if its content is still ``before`` (None: there is none); returns whether it did. Call
        it with the lock held."""
        ...

    def names(self, name: str) -> list[str]:
        """Names of the files and folders in the folder ``name``, sorted, without hidden ones."""
        ...

    def files(self, name: str) -> list[str]:
        """Names of the files in the folder ``name``, sorted, without hidden ones."""
        ...

    def remove_file(self, name: str) -> None:
        """Removes a file; nothing happens if there is none."""
        ...

    def has_file(self, name: str) -> bool | None:
        """Whether there is a file of this name; None where finding out costs a request."""
        ...

    def has_artifact(self, name: str) -> bool:
        """Whether ``name`` is a complete artifact directory."""
        ...

    def artifacts(self, name: str) -> list[str]:
        """Names of the complete artifact directories below ``name``, sorted."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Copies a local artifact directory to ``name``, which must not exist yet: completely or not at all. Call it
        with the lock held."""
        ...

    def hold(self, name: str) -> Hold | None:
        """Keeps this machine's copy of an artifact for as long as the result lives; None where there are no copies."""
        ...

    def fetch(self, name: str, *, again: bool = False) -> Path:
        """Returns a local directory with the artifact.

        Args:
            name: the artifact; if there is none, the directory does not exist.
            again: also if there is a copy already: it is damaged.

        Raises:
            ArtifactError: what arrived is damaged.
        """
        ...

    def copies(self, name: str) -> list[str]:
        """Names of the artifacts below ``name`` of which this machine has copies; none where no copies are needed."""
        ...

    def trim_copies(self, name: str, keep: Collection[str]) -> None:
        """Removes this machine's copies of the artifacts below ``name``, but those to keep and those that a process
        holds."""
        ...

    def manifest_bytes(self, name: str) -> bytes:
        """An artifact's manifest.

        Raises:
            FileNotFoundError: there is none.
        """
        ...

    def remove(self, name: str) -> None:
        """Removes an artifact directory: first its manifest, so that it no longer counts, then the rest."""
        ...

    def changed_at(self, name: str) -> int | None:
        """A number that changes when an artifact is put below ``name``; None where finding out costs a request."""
        ...

    def lock(self, wait_seconds: float = ...) -> contextlib.AbstractContextManager[None]:
        """Keeps out other writers on this machine; a killed writer's lock is free at once."""
        ...


def open_store(url: str | Path) -> Store:
    """The store at a path or an fsspec URL.

    Raises:
        TowerlineError: the URL's protocol is unknown, or its package is not installed.
    """
    text = str(url)
    if "://" not in text:
        return FolderStore(Path(text))
    try:
        fs, root = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as err:
        raise TowerlineError(
            f"{text}: cannot be opened ({err}). Install the package for it, or correct the URL."
        ) from err
    return FolderStore(Path(root)) if text.startswith("file://") else ObjectStore(fs, root, text)
