"""A registry in a folder: renames and links are its transactions, a lock file keeps its writers apart."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

from pipelines.contracts.manifest import MANIFEST_FILE, write_durably
from pipelines.drafts import sync
from pipelines.locks import Hold, file_lock, hold

LOCK_FILE = ".lock"
_DRAFT = ".draft"


class FolderStore:
    """A folder. See ``index.registry.storage.store.Store``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The folder."""
        return str(self._root)

    @property
    def locks_all_machines(self) -> bool:
        """True: the lock file is in the folder."""
        return True

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
        while True:
            aside = _aside(file)
            held = hold(aside)
            if held is None:  # Just made, it was taken for a killed writer's.
                continue
            try:
                _write(aside, content)
                os.link(aside, file)
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
                held.release()
            sync(file.parent)
            return True

    def swap(self, name: str, before: bytes | None, content: bytes) -> bool:
        """See ``Store.swap``. Writers hold the lock, so that comparing and writing is one step."""
        if self.read_bytes(name) != before:
            return False
        file = self._root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        write_durably(file, content)
        return True

    def names(self, name: str) -> list[str]:
        """See ``Store.names``."""
        return sorted(entry.name for entry in self._entries(name))

    def files(self, name: str) -> list[str]:
        """See ``Store.files``."""
        return sorted(entry.name for entry in self._entries(name) if entry.is_file())

    def _entries(self, name: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self._root / name) as found:
                return [entry for entry in found if not entry.name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def remove_file(self, name: str) -> None:
        """See ``Store.remove_file``."""
        (self._root / name).unlink(missing_ok=True)

    def has_file(self, name: str) -> bool | None:
        """See ``Store.has_file``: about a microsecond."""
        return os.access(f"{self._root}/{name}", os.F_OK)

    def has_artifact(self, name: str) -> bool:
        """See ``Store.has_artifact``."""
        return (self._root / name / MANIFEST_FILE).is_file()

    def artifacts(self, name: str) -> list[str]:
        """See ``Store.artifacts``."""
        return [entry for entry in self.names(name) if self.has_artifact(f"{name}/{entry}")]

    def put(self, source: Path, name: str) -> None:
        """See ``Store.put``: written under another name, then renamed."""
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = _aside(target)
        try:
            shutil.copytree(source, aside)
            for file in [*aside.rglob("*"), aside]:
                sync(file)
            os.rename(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        sync(target.parent)

    def hold(self, name: str) -> Hold | None:  # noqa: ARG002
        """See ``Store.hold``: None, the artifacts are here."""
        return None

    def fetch(self, name: str, *, again: bool = False) -> Path:  # noqa: ARG002
        """See ``Store.fetch``: the directory itself."""
        return self._root / name

    def copies(self, name: str) -> list[str]:  # noqa: ARG002
        """See ``Store.copies``: none."""
        return []

    def trim_copies(self, name: str, keep: Collection[str]) -> None:
        """See ``Store.trim_copies``: there are none."""

    def manifest_bytes(self, name: str) -> bytes:
        """See ``Store.manifest_bytes``."""
        return (self._root / name / MANIFEST_FILE).read_bytes()

    def remove(self, name: str) -> None:
        """See ``Store.remove``: renamed, which is one step, then removed."""
        target = self._root / name
        doomed = _aside(target)
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
        """See ``Store.lock``. What killed writers left is removed: with the lock held no other writer has a draft.

        Raises:
            TowerlineError: another writer held it for the whole wait.
        """
        self._root.mkdir(parents=True, exist_ok=True)
        with file_lock(self._root / LOCK_FILE, wait_seconds):
            self._sweep()
            yield

    def _sweep(self) -> None:
        for draft in [*self._root.glob(f".*{_DRAFT}"), *self._root.glob(f"*/.*{_DRAFT}")]:
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
                continue
            with contextlib.suppress(OSError):  # Others append to the log without the lock: they hold what they write.
                held = hold(draft)
                if held is not None:
                    draft.unlink(missing_ok=True)
                    held.release()


def _aside(target: Path) -> Path:
    """A hidden name next to a target, never used before."""
    return target.parent / f".{target.name}.{uuid.uuid4().hex}{_DRAFT}"


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
