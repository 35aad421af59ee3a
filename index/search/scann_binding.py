"""ScaNN's C++ searcher and its configuration builder, loaded without the rest of the scann package.

``import scann`` imports TensorFlow wherever it is installed, which takes seconds and is forbidden in the retriever.
The compiled module and the builder do not need it, so they are loaded from their own files. If ``scann`` is imported
too, it finds the same compiled module, because both use one name.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from pipelines.contracts.errors import ConfigError

_COMPILED = "scann_pybind"


def scann_available() -> bool:
    """Whether ScaNN is installed: it has wheels for Linux only."""
    return importlib.util.find_spec("scann") is not None


@functools.cache
def compiled() -> ModuleType:
    """The compiled module, which contains ``ScannNumpy``.

    Raises:
        ConfigError: ScaNN is not installed.
    """
    return _load(_COMPILED, _package() / "scann_ops" / "cc" / "python" / f"{_COMPILED}.so")


@functools.cache
def builder() -> ModuleType:
    """The module with ``ScannBuilder`` and ``ReorderType``, which writes ScaNN's configuration as text.

    Raises:
        ConfigError: ScaNN is not installed.
    """
    return _load("scann_builder", _package() / "scann_ops" / "py" / "scann_builder.py")


def _package() -> Path:
    found = importlib.util.find_spec("scann")
    if found is None or not found.submodule_search_locations:
        raise ConfigError(
            "the bundle is searched by ScaNN, which is not installed here (it has wheels for Linux only). "
            'Install scann, or build with engine = "exact".'
        )
    return Path(found.submodule_search_locations[0])


def _load(name: str, file: Path) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    found = importlib.util.spec_from_file_location(name, file)
    if found is None or found.loader is None or not file.exists():
        raise ConfigError(f"{file}: missing: the installed scann is not version 1.4.2. Install the pinned version.")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module
