"""Loads and frees ScaNN's assets without stopping the process's other threads.

Reads what ``ScannSearcher.save`` wrote. ScaNN's Python constructor holds the interpreter's lock while it reads its
assets: for 1.4 seconds with a million items of 64 numbers, during which no request is answered. Freeing them takes
another 20 milliseconds. The compiled module exports the C++ function below the constructor,
``ScannInterface::Initialize(config, assets)``. It is called directly through ctypes, which releases the lock: as
measured, no other thread waits longer than 5 ms.

This depends on that one binary. It is used only with scann 1.4.2 on Linux x86-64 and CPython, where it was tested.
Anywhere else, or if anything is not as expected, the ordinary constructor is used.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.metadata
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.forking import never_free, renew_after_fork
from index.search.scann_binding import builder, compiled
from pipelines.contracts.files import file_name
from pipelines.user_folders import temporary_folder

CONFIG_FILE = "config.pbtxt"
ASSETS_FILE = "scann_assets.pbtxt"
_TESTED = "1.4.2"
# research_scann::ScannInterface::Initialize(std::string const& config, std::string const& assets) -> absl::Status
_INITIALIZE = (
    "_ZN14research_scann14ScannInterface10InitializeERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES8_"
)
# absl::Status is one pointer-sized number; 1 is "ok".
_OK = 1
_ASSET_PATH = re.compile(r'asset_path: "([^"]+)"')


class _StdString(ctypes.Structure):
    """libstdc++'s std::string as the callee reads it: a pointer to the characters, and their number."""

    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t), ("local", ctypes.c_char * 16))


@dataclass(frozen=True)
class _Assets:
    """ScaNN's configuration and list of files, as text; the files' paths are absolute."""

    config: bytes
    files: bytes


def load(directory: Path) -> Any:
    """Returns a ``ScannNumpy`` with the assets in ``directory``.

    Raises:
        OSError: a file is missing.
        ValueError, RuntimeError: ScaNN cannot read its assets.
    """
    place = directory.absolute()
    assets = _read(place)
    if assets is not None and _initialize() is not None:
        searcher = _tiny()
        if _fill(searcher, assets):
            return searcher
    return compiled().ScannNumpy(str(place), (place / ASSETS_FILE).read_text())


class Tree:
    """The one owner of a ``ScannNumpy``: the last reference to it frees the assets, without stopping other threads.

    Whoever uses ``searcher`` holds this object meanwhile. A forked process uses the parent's trees but never frees
    them: ScaNN would wait for the parent's threads.
    """

    def __init__(self, searcher: Any) -> None:
        self.searcher = searcher
        self._process = os.getpid()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: keeps the tree to the end."""
        never_free(self.searcher)

    def __del__(self) -> None:
        # Where this does not work, the interpreter frees the assets a moment later, with its lock held.
        with contextlib.suppress(Exception):
            if self._process == os.getpid() and not sys.is_finalizing() and _initialize() is not None:
                _fill(self.searcher, _tiny_assets(self._process))


def _read(directory: Path) -> _Assets | None:
    """The assets of a directory; None if it has no configuration as text, or a file is missing."""
    config = directory / CONFIG_FILE
    listed = (directory / ASSETS_FILE).read_text()
    paths = [directory / file_name(name) for name in _ASSET_PATH.findall(listed)]
    if not config.is_file() or not all(path.is_file() for path in paths):
        return None
    absolute = _ASSET_PATH.sub(lambda match: f'asset_path: "{directory / match[1]}"', listed)
    return _Assets(config.read_bytes(), absolute.encode())


@functools.cache
def _initialize() -> Any:
    """The C++ function; None if it is not the one that was tested."""
    tested = (
        sys.platform == "linux"
        and platform.machine() == "x86_64"
        and sys.implementation.name == "cpython"
        and importlib.metadata.version("scann") == _TESTED
    )
    file = compiled().__file__
    if not tested or file is None:
        return None
    function = getattr(ctypes.CDLL(file), _INITIALIZE, None)
    if function is not None:
        # The status is returned through the first argument, then come the object and the two strings.
        function.argtypes = [ctypes.c_void_p] * 4
        function.restype = ctypes.c_void_p
    return function


def _fill(searcher: Any, assets: _Assets) -> bool:
    """Replaces what a searcher holds and returns whether that worked. The interpreter's lock is released meanwhile."""
    # A pybind11 object with one C++ base: the pointer to the C++ object follows the Python header.
    held = ctypes.c_void_p.from_address(id(searcher) + object.__basicsize__).value
    if not held:
        return False
    config = _StdString(assets.config, len(assets.config))
    files = _StdString(assets.files, len(assets.files))
    status = ctypes.c_uint64(0)
    _initialize()(ctypes.addressof(status), held, ctypes.addressof(config), ctypes.addressof(files))
    return status.value == _OK


def _tiny() -> Any:
    """A searcher of one item, made by the ordinary constructor in a millisecond."""
    vectors = np.ones((1, 1), np.float32)
    config = str(builder().ScannBuilder(vectors, 1, "dot_product").score_brute_force().create_config())
    return compiled().ScannNumpy(vectors, config, 1)


@functools.cache
def _tiny_assets(process: int) -> _Assets:
    """Assets of one item. Each process has its own: a forked one that ends removes those it made."""
    searcher = _tiny()
    # ScaNN reads the files at each use: they stay until the process ends.
    opened = contextlib.ExitStack()
    folder = opened.enter_context(temporary_folder("towerline-"))
    atexit.register(lambda: opened.close() if os.getpid() == process else None)
    searcher.serialize(str(folder), True)
    (folder / CONFIG_FILE).write_text(config_of(searcher))
    found = _read(folder)
    assert found is not None
    return found


def config_of(searcher: Any) -> str:
    """ScaNN's configuration of a searcher, as text."""
    config = searcher.config()
    return config.decode() if isinstance(config, bytes) else str(config)
