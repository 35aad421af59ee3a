"""The error classes of the project: every failure that the user can fix is one of these.

A message says what was expected, what was found, where, and what to do. The command line prints the
message alone (a traceback only with ``--debug``) and exits with the class's ``exit_code``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class TowerlineError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class ConfigError(TowerlineError):
    """The TOML or the command line asks for something impossible: a misuse, exit code 2."""

    exit_code = 2


class SchemaError(TowerlineError):
    """A table, a record or a vector does not fit the schema."""


class ArtifactError(TowerlineError):
    """A directory written by a stage is missing, damaged, of another kind or another format version."""


class GateError(TowerlineError):
    """A bundle was built, but a gate forbids publishing it. verdicts: of all gates, as in a version's manifest."""

    def __init__(self, message: str, verdicts: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.verdicts = tuple(verdicts)
