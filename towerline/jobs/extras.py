"""Libraries that an extra of the package brings: what is missing is named by its extra, not by its module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pipelines.contracts.errors import ConfigError

# Top-level modules to the extra that brings them.
_EXTRAS = {
    "apache_beam": "pipelines",
    "tensorflow": "towers",
    "tf_keras": "towers",
    "tensorflow_recommenders": "towers",
    "implicit": "towers",
    "sklearn": "towers",
    "scipy": "evaluation",
    "threadpoolctl": "evaluation",
    "matplotlib": "evaluation",
    "jinja2": "evaluation",
    "optuna": "tune",
    "s3fs": "s3",
}


@contextlib.contextmanager
def extras_named() -> Iterator[None]:
    """Within it, a library that is missing is refused by its extra.

    Raises:
        ConfigError: a library of an extra is not installed; the message has the command that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as err:
        module = (err.name or "").partition(".")[0]
        if module not in _EXTRAS:
            raise
        raise ConfigError(
            f"this needs {module}, which is not installed. Install it with: pip install 'towerline[{_EXTRAS[module]}]'"
        ) from err
