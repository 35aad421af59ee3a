"""A bundle's vectors with room after them, so that fresh rows are appended without copying all the others.

Reads the file behind a memory map. On Linux the file is mapped a second time, privately, at the beginning of a larger
range of memory: the catalogue's pages stay shared with the page cache, and fresh rows fill the rest. Elsewhere, and for
vectors that are in no file, one copy is made, which then grows.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading

import numpy as np

from index.forking import renew_after_fork
from index.search.searcher import Vectors

# Initial room in rows; memory is only taken once it is written to.
_ROOM = 1 << 16


class GrowingVectors:
    """Vectors to which fresh rows are appended. Arrays returned earlier stay valid. Safe to use from many threads."""

    def __init__(self, base: Vectors, room: int = _ROOM) -> None:
        """Takes ``[items, dim] float32``; nothing is mapped or copied before the first fresh row."""
        self._base = base
        self._room = room
        self._wide: Vectors | None = None
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: another thread may have held the lock. The memory is this process's own copy."""
        self._lock = threading.Lock()

    def with_fresh(self, fresh: Vectors) -> Vectors:
        """``[items + fresh, dim] float32``, the fresh rows after the others.

        Args:
            fresh: ``[fresh, dim] float32``; begins with the rows of all earlier calls.
        """
        if len(fresh) == 0:
            return self._base
        items = len(self._base)
        with self._lock:
            if self._wide is None or items + len(fresh) > len(self._wide):
                while len(fresh) > self._room:
                    self._room *= 2
                self._wide = _with_room(self._base, self._room)
            self._wide[items : items + len(fresh)] = fresh
            return self._wide[: items + len(fresh)]


def _with_room(base: Vectors, room: int) -> Vectors:
    mapped = _mapped(base, room)
    if mapped is not None:
        return mapped
    wide = np.empty((len(base) + room, base.shape[1]), np.float32)
    wide[: len(base)] = base
    return wide


def _mapped(base: Vectors, room: int) -> Vectors | None:
    """The file behind the vectors, mapped with room after it; None if that is impossible."""
    file = base.base if isinstance(base.base, np.memmap) else None
    if sys.platform != "linux" or file is None or file.filename is None or file.offset % 4:
        return None
    rows, dim = base.shape
    held = file.offset + base.nbytes
    memory = mmap.mmap(-1, held + 4 * room * dim, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        with open(file.filename, "rb") as source:
            if not _map_over(memory, source.fileno(), held):
                return None
    except OSError:
        # Retention removed the version: its pages can still be copied through the base.
        return None
    return np.frombuffer(memory, np.float32, (rows + room) * dim, file.offset).reshape(rows + room, dim)


def _map_over(memory: mmap.mmap, descriptor: int, length: int) -> bool:
    """Maps the beginning of a file, privately and writable, over that of ``memory``; returns whether it worked.

    mmap(2): MAP_FIXED replaces the pages it covers. Python's own mmap takes no address.
    """
    mapping = ctypes.CDLL(None, use_errno=True).mmap
    mapping.restype = ctypes.c_void_p
    mapping.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *([ctypes.c_int] * 3), ctypes.c_long]
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    fixed = 0x10
    flags = mmap.MAP_PRIVATE | fixed
    return bool(mapping(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, descriptor, 0) == address)
