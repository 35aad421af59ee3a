"""Locks on files. The kernel frees them when their holder ends, however it ends, in whichever container it runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from pipelines.contracts.errors import TowerlineError

# How often a waiting writer checks whether the lock is free.
_POLL_SECONDS = 0.1


class Hold:
    """A lock that is held until ``release``, or until nobody refers to it any more. A forked child holds it too."""

    def __init__(self, descriptor: int) -> None:
        """Takes the open, locked file."""
        self._descriptor = descriptor

    def release(self) -> None:
        """Frees the lock; once is enough."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()


def hold(file: Path, *, shared: bool = False) -> Hold | None:
    """Locks a file without waiting; None if others hold it.

    Args:
        file: made if it is missing. Whoever holds it alone may remove it.
        shared: with others who share it; else alone.

    Raises:
        OSError: the file cannot be made, or the file system has no locks.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _locked(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            # Between opening and locking, its holder may have removed it: then others would lock another file.
            still = locked and _is_at(descriptor, file)
        except BaseException:
            os.close(descriptor)
            raise
        if still:
            return Hold(descriptor)
        os.close(descriptor)
        if not locked:
            return None


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as err:
        if err.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


@contextlib.contextmanager
def file_lock(file: Path, wait_seconds: float) -> Iterator[None]:
    """Holds a lock file alone.

    Args:
        file: created if missing, and never removed.
        wait_seconds: how long to wait for another holder; 0 does not wait.

    Raises:
        TowerlineError: another process held it for the whole wait; the message has its id.
    """
    deadline = time.monotonic() + wait_seconds
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        while not _locked(descriptor, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                holder = os.read(descriptor, 64).decode(errors="replace").strip() or "unknown"
                raise TowerlineError(
                    f"{file}: held by process {holder} (waited {wait_seconds:.0f} s). "
                    "Let it finish, or set refresh.lock_wait_minutes to wait for it."
                )
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(OSError):  # The process id is for people; a full disk must not stop a writer here.
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
