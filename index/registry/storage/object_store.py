"""A registry in an object store: conditional puts are its transactions, and a manifest is written last.

Versions that this machine reads are copied to the user's cache folder, once for all processes. A copy is compared with
its manifest when it arrives. Whoever uses one holds a lock on it, so that another process does not remove it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import xxhash

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import MANIFEST_FILE, check_files, read_manifest
from pipelines.drafts import draft_of, replace_directory, sweep_all
from pipelines.locks import Hold, file_lock, hold
from pipelines.user_folders import cache_folder, make_cache_folder

LOCK_FILE = ".lock"
_USED = ".used"
_BLOCK_BYTES = 1 << 20
# S3 answers 409 when two conditional puts meet, and asks to try again.
_PUT_ATTEMPTS = 5


class ObjectStore:
    """An object store, such as S3 or GCS. See ``index.registry.storage.store.Store``."""

    def __init__(self, fs: Any, root: str, url: str, cache: Path | None = None) -> None:
        """Takes an fsspec file system and the root on it.

        Args:
            fs: the file system.
            root: the registry's path on it.
            url: for messages.
            cache: where versions are downloaded to; None is the user's cache folder (``pipelines.user_folders``).
        """
        self._opened, self._opened_by = fs, os.getpid()
        self._root = root.rstrip("/")
        self._url = url
        self._given_cache = cache

    @property
    def _fs(self) -> Any:
        """The file system. A forked child opens its own: connections and threads stay with the parent.

        It remembers nothing: s3fs takes an object that a remembered listing lacks for missing, and reads no more of
        another than the size it remembers.
        """
        if self._opened_by != os.getpid():
            self._opened = type(self._opened)(*self._opened.storage_args, **self._opened.storage_options)
            self._opened_by = os.getpid()
        self._opened.invalidate_cache()
        return self._opened

    @functools.cached_property
    def _cache(self) -> Path:
        """The folder of this store's copies. Looked for when it is first needed: reading small files needs none."""
        folder = cache_folder() if self._given_cache is None else self._given_cache
        return folder / hashlib.sha256(self._url.encode()).hexdigest()[:16]

    @property
    def url(self) -> str:
        """The URL."""
        return self._url

    @property
    def locks_all_machines(self) -> bool:
        """False: the lock file is in this machine's cache."""
        return False

    @property
    def cache(self) -> Path:
        """This machine's folder of downloaded versions; it may not be there."""
        return self._cache

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read_bytes(self, name: str) -> bytes | None:
        """See ``Store.read_bytes``."""
        try:
            content: bytes = self._fs.cat_file(self._place(name))
        except FileNotFoundError:
            return None
        return content

    def create(self, name: str, content: bytes) -> bool:
        """See ``Store.create``: one conditional put."""
        return self._put_if(name, content, None)

    def swap(self, name: str, before: bytes | None, content: bytes) -> bool:
        """See ``Store.swap``: a put on condition of the tag read, on S3; elsewhere compared just before."""
        return self._put_if(name, content, before)

    def _put_if(self, name: str, content: bytes, before: bytes | None) -> bool:
        """Writes an object if its content is still ``before`` (None: there is none); returns whether it did.

        After an error it is read what is there: the answer to a put that succeeded may be lost, and then the library
        repeats the put, which is refused.
        """
        for attempt in range(_PUT_ATTEMPTS):
            try:
                condition = {"mode": "create"} if before is None else self._if_unchanged(name, before)
                if condition is None:
                    return False
                self._fs.pipe_file(self._place(name), content, **condition)
            except OSError:
                found = self.read_bytes(name)
                if found == content:
                    return True
                if found != before:
                    return False
                if attempt == _PUT_ATTEMPTS - 1:
                    raise
            else:
                return True
        raise AssertionError

    def _if_unchanged(self, name: str, content: bytes) -> dict[str, Any] | None:
        """The condition that an object still has this content; None if it has another."""
        tag = self._fs.info(self._place(name)).get("ETag")  # Before reading: a change in between fails the put.
        if self.read_bytes(name) != content:
            return None
        return {} if tag is None else {"IfMatch": tag}

    def names(self, name: str) -> list[str]:
        """See ``Store.names``."""
        return sorted(self._types(name))

    def files(self, name: str) -> list[str]:
        """See ``Store.files``."""
        return sorted(entry for entry, kind in self._types(name).items() if kind == "file")

    def _types(self, name: str) -> dict[str, str]:
        """``file`` or ``directory`` of each entry that is not hidden."""
        try:
            found = self._fs.ls(self._place(name), detail=True)
        except FileNotFoundError:
            return {}
        types = {entry["name"].rstrip("/").rsplit("/", 1)[-1]: str(entry["type"]) for entry in found}
        return {entry: kind for entry, kind in types.items() if entry and not entry.startswith(".")}

    def remove_file(self, name: str) -> None:
        """See ``Store.remove_file``."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._place(name))

    def has_file(self, name: str) -> bool | None:  # noqa: ARG002
        """See ``Store.has_file``: None, an object store is polled in the background."""
        return None

    def has_artifact(self, name: str) -> bool:
        """See ``Store.has_artifact``."""
        return bool(self._fs.exists(self._place(f"{name}/{MANIFEST_FILE}")))

    def artifacts(self, name: str) -> list[str]:
        """See ``Store.artifacts``."""
        return [entry for entry in self.names(name) if self.has_artifact(f"{name}/{entry}")]

    def put(self, source: Path, name: str) -> None:
        """See ``Store.put``: writes the files, reads each back and compares it, then writes the manifest.

        Raises:
            ArtifactError: a file read back differs from what was written.
        """
        manifest = read_manifest(source)
        for file, entry in manifest.files.items():
            target = self._place(f"{name}/{file}")
            self._fs.put_file(str(source / file), target)
            if self._checksum(target) != entry.xxh128:
                raise ArtifactError(f"{target}: read back, it differs from what was written. Publish again.")
        self._fs.pipe_file(self._place(f"{name}/{MANIFEST_FILE}"), (source / MANIFEST_FILE).read_bytes())

    def _checksum(self, place: str) -> str:
        digest = xxhash.xxh3_128()
        with self._fs.open(place, "rb") as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
        return digest.hexdigest()

    def hold(self, name: str) -> Hold | None:
        """See ``Store.hold``: a lock that all processes with the copy open share."""
        target = self._cache / name
        make_cache_folder(target.parent)
        while True:
            held = hold(_lock_of(target), shared=True)
            if held is not None:  # Else a process is removing the copy just now.
                return held

    def fetch(self, name: str, *, again: bool = False) -> Path:
        """See ``Store.fetch``: downloads into the cache, once, and compares what arrived with its manifest."""
        target = self._cache / name
        if (target / MANIFEST_FILE).is_file() and not again:
            return target
        manifest = self.read_bytes(f"{name}/{MANIFEST_FILE}")
        if manifest is None:
            return target
        make_cache_folder(target.parent)
        with draft_of(target) as aside:
            (aside / MANIFEST_FILE).write_bytes(manifest)
            expected = read_manifest(aside)  # Refuses names that lead out of the folder.
            for file in expected.files:
                (aside / file).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._place(f"{name}/{file}"), str(aside / file))
            check_files(aside, expected, verify=True)
            replace_directory(aside, target)
        return target

    def copies(self, name: str) -> list[str]:
        """See ``Store.copies``."""
        folder = self._cache / name
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_dir())

    def trim_copies(self, name: str, keep: Collection[str]) -> None:
        """See ``Store.trim_copies``."""
        folder = self._cache / name
        if not folder.is_dir():
            return
        sweep_all(folder)
        used = {file.name.removeprefix(".").removesuffix(_USED) for file in folder.glob(f".*{_USED}")}
        for entry in {*self.copies(name), *used} - set(keep):
            self._drop(folder / entry)

    def _drop(self, copy: Path) -> None:
        held = hold(_lock_of(copy))
        if held is None:
            return
        if copy.exists():
            with draft_of(copy) as aside:  # Renamed first: it is gone for others in one step.
                os.rename(copy, aside)
        _lock_of(copy).unlink(missing_ok=True)
        held.release()

    def manifest_bytes(self, name: str) -> bytes:
        """See ``Store.manifest_bytes``."""
        content: bytes = self._fs.cat_file(self._place(f"{name}/{MANIFEST_FILE}"))
        return content

    def remove(self, name: str) -> None:
        """See ``Store.remove``: the manifest first. This machine's copy goes when no process holds it."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._place(f"{name}/{MANIFEST_FILE}"))
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._place(name), recursive=True)

    def changed_at(self, name: str) -> int | None:  # noqa: ARG002
        """See ``Store.changed_at``: None, an object store is polled in the background."""
        return None

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 600.0) -> Iterator[None]:
        """See ``Store.lock``: between processes on this machine. Writers on several machines are kept apart by
        conditional puts."""
        make_cache_folder(self._cache)
        with file_lock(self._cache / LOCK_FILE, wait_seconds):
            yield


def _lock_of(target: Path) -> Path:
    """The file that is locked by whoever uses a copy."""
    return target.with_name(f".{target.name}{_USED}")
