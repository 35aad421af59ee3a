"""Forked processes: gunicorn --preload opens a retriever, watches, and forks its workers.

A fork copies the memory but only the thread that forks. A lock that another thread held stays locked for ever, threads
in the background are gone, and a C++ object that had threads waits for them when it is freed. So in the child, what has
locks and threads renews them, what must not be freed never is, and the garbage of the parent is never collected: there
may be such an object of anybody's in a cycle of references.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import sys
import threading
import weakref
from typing import Any, Protocol

import fsspec.asyn  # noqa: F401  Hooks run in the order of their registration: connections are reset before ours.

_PACKAGES = ("index.", "pipelines.", "towerline.")


class Forked(Protocol):
    """What is renewed."""

    def after_fork(self) -> None:
        """Renews locks and threads; called in the child, by its only thread."""


_WITH_LOCKS: weakref.WeakSet[Forked] = weakref.WeakSet()
_WITH_THREADS: weakref.WeakSet[Forked] = weakref.WeakSet()


def renew_after_fork(forked: Forked, *, threads: bool = False) -> None:
    """Calls ``forked.after_fork()`` in every process forked from this one, as long as the object lives.

    Those with threads come last: their threads find all locks renewed.
    """
    (_WITH_THREADS if threads else _WITH_LOCKS).add(forked)


def never_free(inherited: Any) -> None:
    """Keeps an object to the very end of the process, beyond all references. Its pages stay shared with the parent."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(inherited))


_was_collecting: list[bool] = []


def _stop_collecting() -> None:
    _was_collecting.append(gc.isenabled())
    gc.disable()


def _go_on_collecting() -> None:
    if _was_collecting.pop():
        gc.enable()


def _renew() -> None:
    gc.freeze()
    if any(_was_collecting):  # Several threads of the parent may have been about to fork.
        gc.enable()
    _was_collecting.clear()
    _renew_properties()
    for forked in [*_WITH_LOCKS, *_WITH_THREADS]:
        forked.after_fork()


def _renew_properties() -> None:
    """Up to Python 3.11 a cached property has a lock, held while a value is computed."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_PACKAGES)]
    for owner in {kind for module in modules for kind in vars(module).values() if isinstance(kind, type)}:
        for member in vars(owner).values():
            if isinstance(member, functools.cached_property) and hasattr(member, "lock"):
                member.lock = threading.RLock()


# What is registered last runs first before a fork: nothing is collected from here to the child's first step.
os.register_at_fork(before=_stop_collecting, after_in_parent=_go_on_collecting, after_in_child=_renew)
