"""Where a registry is stored: a local folder, or an object store behind an fsspec URL.

Both write a directory completely or not at all, replace a small file atomically, and return local directories. An
artifact directory exists once its ``manifest.json`` does, which is renamed with it (folder) or written last (object
store).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import fsspec
import xxhash

from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.manifest import MANIFEST_FILE, read_manifest, write_durably
from pipelines.user_folders import cache_folder, make_cache_folder

_LOCK_FILE = ".lock"
_BLOCK_BYTES = 1 << 20
# How often a waiting writer checks whether the lock is free.
_LOCK_POLL_SECONDS = 0.1


class Store(Protocol):
    """What a registry needs from its storage. Names are relative, with ``/``."""

    @property
    def url(self) -> str:
        """The location, for messages."""
        ...

    def read_text(self, name: str) -> str | None:
        """The content of a small file; None if there is none."""
        ...

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file atomically."""
        ...

    def read_bytes(self, name: str) -> bytes | None:
        """The content of a small file; None if there is none."""
        ...

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file if there is none of that name; returns whether it did. Of several writers one succeeds,
        on every machine."""
        ...

    def swap_text(self, name: str, before: str | None, text: str) -> bool:
        """Replaces a small file if its text is still ``before`` (None: there is none); returns whether it did."""
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

    def artifacts(self, name: str) -> list[str]:
        """Names of the complete artifact directories below ``name``, sorted."""
        ...

    def put(self, source: Path, name: str) -> None:
        """Copies a local artifact directory to ``name``, which must not exist yet: completely or not at all."""
        ...

    def fetch(self, name: str) -> Path:
        """Returns a local directory with the artifact."""
        ...

    def manifest_text(self, name: str) -> str:
        """The text of an artifact's manifest."""
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


class FolderStore:
    """A folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._root)

    def read_text(self, name: str) -> str | None:
        """See ``Store.read_text``."""
        try:
            return (self._root / name).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_text(self, name: str, text: str) -> None:
        """See ``Store.write_text``."""
        file = self._root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, text.encode())

    def read_bytes(self, name: str) -> bytes | None:
        """See ``Store.read_bytes``."""
        try:
            return (self._root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def create(self, name: str, content: bytes) -> bool:
        """See ``Store.create``: written under another name, then linked, which fails if the name is taken."""
        file = self._root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.parent / f".{file.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.draft"
        try:
            write_durably(aside, content)
            os.link(aside, file)
        except FileExistsError:
            return False
        finally:
            aside.unlink(missing_ok=True)
        _sync(file.parent)
        return True

    def swap_text(self, name: str, before: str | None, text: str) -> bool:
        """See ``Store.swap_text``. Writers hold the lock, so that comparing and writing is one step."""
        if self.read_text(name) != before:
            return False
        self.write_text(name, text)
        return True

    def files(self, name: str) -> list[str]:
        """See ``Store.files``."""
        try:
            found = list(os.scandir(self._root / name))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(entry.name for entry in found if not entry.name.startswith(".") and entry.is_file())

    def remove_file(self, name: str) -> None:
        """See ``Store.remove_file``."""
        (self._root / name).unlink(missing_ok=True)

    def has_file(self, name: str) -> bool | None:
        """See ``Store.has_file``: about a microsecond."""
        return os.access(f"{self._root}/{name}", os.F_OK)

    def artifacts(self, name: str) -> list[str]:
        """See ``Store.artifacts``."""
        try:
            found = list((self._root / name).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(
            entry.name for entry in found if not entry.name.startswith(".") and (entry / MANIFEST_FILE).is_file()
        )

    def put(self, source: Path, name: str) -> None:
        """See ``Store.put``. Call it with the lock held: leftovers of killed writers are removed."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        for abandoned in target.parent.glob(".*.draft"):
            shutil.rmtree(abandoned, ignore_errors=True)
        aside = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.draft"
        try:
            shutil.copytree(source, aside)
            for file in [*aside.rglob("*"), aside]:
                _sync(file)
            os.rename(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync(target.parent)

    def fetch(self, name: str) -> Path:
        """See ``Store.fetch``: the directory itself."""
        return self._root / name

    def manifest_text(self, name: str) -> str:
        """See ``Store.manifest_text``."""
        return (self._root / name / MANIFEST_FILE).read_text(encoding="utf-8")

    def remove(self, name: str) -> None:
        """See ``Store.remove``."""
        target = self._root / name
        doomed = target.parent / f".{target.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.draft"
        with contextlib.suppress(FileNotFoundError):
            os.rename(target, doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def changed_at(self, name: str) -> int | None:
        """See ``Store.changed_at``: one stat, about a microsecond."""
        try:
            return os.stat(self._root / name).st_mtime_ns
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 600.0) -> Iterator[None]:
        """See ``Store.lock``.

        Raises:
            TowerlineError: another writer held it for the whole wait.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with file_lock(self._root / _LOCK_FILE, wait_seconds):
            yield


@contextlib.contextmanager
def file_lock(file: Path, wait_seconds: float) -> Iterator[None]:
    """Holds a lock file of this machine; the kernel frees it when the process ends, however it ends.

    Args:
        file: created if missing, and never removed.
        wait_seconds: how long to wait for another holder; 0 does not wait.

    Raises:
        TowerlineError: another process held it for the whole wait; the message has its id.
    """
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _try_lock(descriptor):
            if time.monotonic() >= deadline:
                holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
                raise TowerlineError(
                    f"{file}: held by process {holder} (waited {wait_seconds:.0f} s). "
                    "Let it finish, or set refresh.lock_wait_minutes to wait for it."
                )
            time.sleep(_LOCK_POLL_SECONDS)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


class ObjectStore:
    """An object store, such as S3 or GCS. One put is atomic; a directory is complete once its manifest is there."""

    def __init__(self, fs: Any, root: str, url: str, cache: Path | None = None) -> None:
        """Takes an fsspec file system and the root on it.

        Args:
            fs: the file system.
            root: the registry's path on it.
            url: for messages.
            cache: where versions are downloaded to; None is the user's cache folder (``pipelines.user_folders``).
        """
        self._fs = fs
        self._root = root.rstrip("/")
        self._url = url
        self._given_cache = cache

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
    def cache(self) -> Path:
        """This machine's folder of downloaded versions; it may not be there."""
        return self._cache

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}"

    def read_text(self, name: str) -> str | None:
        """See ``Store.read_text``."""
        try:
            content: bytes = self._fs.cat_file(self._place(name))
        except FileNotFoundError:
            return None
        return content.decode()

    def write_text(self, name: str, text: str) -> None:
        """See ``Store.write_text``: one put."""
        self._fs.pipe_file(self._place(name), text.encode())

    def read_bytes(self, name: str) -> bytes | None:
        """See ``Store.read_bytes``."""
        try:
            content: bytes = self._fs.cat_file(self._place(name))
        except FileNotFoundError:
            return None
        return content

    def create(self, name: str, content: bytes) -> bool:
        """See ``Store.create``: one conditional put."""
        try:
            self._fs.pipe_file(self._place(name), content, mode="create")
        except FileExistsError:
            return False
        return True

    def swap_text(self, name: str, before: str | None, text: str) -> bool:
        """See ``Store.swap_text``: a put on condition of the tag read, on S3; elsewhere compared just before."""
        if before is None:
            return self.create(name, text.encode())
        self._fs.invalidate_cache()
        place = self._place(name)
        try:
            tag = self._fs.info(place).get("ETag")
        except FileNotFoundError:
            return False
        if self.read_text(name) != before:
            return False
        try:
            self._fs.pipe_file(place, text.encode(), **({} if tag is None else {"IfMatch": tag}))
        except OSError:
            if self.read_text(name) == before:
                raise
            return False
        return True

    def files(self, name: str) -> list[str]:
        """See ``Store.files``."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._place(name), detail=True)
        except FileNotFoundError:
            return []
        names = [entry["name"].rsplit("/", 1)[-1] for entry in found if entry["type"] == "file"]
        return sorted(one for one in names if one and not one.startswith("."))

    def remove_file(self, name: str) -> None:
        """See ``Store.remove_file``."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._place(name))

    def has_file(self, name: str) -> bool | None:  # noqa: ARG002
        """See ``Store.has_file``: None, an object store is polled in the background."""
        return None

    def artifacts(self, name: str) -> list[str]:
        """See ``Store.artifacts``."""
        self._fs.invalidate_cache()
        try:
            found = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in self._fs.ls(self._place(name), detail=False)]
        except FileNotFoundError:
            return []
        return sorted(entry for entry in found if self._fs.exists(self._place(f"{name}/{entry}/{MANIFEST_FILE}")))

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

    def fetch(self, name: str) -> Path:
        """See ``Store.fetch``: downloads into the cache, once."""
        target = self._cache / name
        if (target / MANIFEST_FILE).is_file():
            return target
        if self.read_text(f"{name}/{MANIFEST_FILE}") is None:
            return target
        make_cache_folder(target.parent)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            aside = Path(folder) / "artifact"
            aside.mkdir()
            (aside / MANIFEST_FILE).write_bytes(self._fs.cat_file(self._place(f"{name}/{MANIFEST_FILE}")))
            for file in read_manifest(aside).files:
                (aside / file).parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(self._place(f"{name}/{file}"), str(aside / file))
            with contextlib.suppress(OSError):  # another reader was faster: its directory will do
                os.rename(aside, target)
        return target

    def manifest_text(self, name: str) -> str:
        """See ``Store.manifest_text``."""
        content: bytes = self._fs.cat_file(self._place(f"{name}/{MANIFEST_FILE}"))
        return content.decode()

    def remove(self, name: str) -> None:
        """See ``Store.remove``: the manifest first."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._place(f"{name}/{MANIFEST_FILE}"))
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._place(name), recursive=True)
        self._fs.invalidate_cache()
        shutil.rmtree(self._cache / name, ignore_errors=True)

    def changed_at(self, name: str) -> int | None:  # noqa: ARG002
        """See ``Store.changed_at``: None, an object store is polled in the background."""
        return None

    @contextlib.contextmanager
    def lock(self, wait_seconds: float = 600.0) -> Iterator[None]:
        """See ``Store.lock``: between processes on this machine. Writers on several machines are not kept
        apart; each version is complete all the same, and the last one written to CURRENT is live."""
        make_cache_folder(self._cache)
        with file_lock(self._cache / _LOCK_FILE, wait_seconds):
            yield


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
