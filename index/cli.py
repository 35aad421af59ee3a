"""The command ``towerline``: one verb a stage, and the verbs that look at what was published.

Each verb reads the TOML, calls the one function that does its work, and prints. The last line is the path of the
manifest or report that was written; ``--json`` prints one JSON object instead. Exit code 0: done; 1: failed; 2: misuse.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.config import Config, load_config
from pipelines.errors import ConfigError, TowerlineError
from pipelines.manifest import MANIFEST_FILE

DESCRIPTION = """\
Two-tower retrieval for shopping ads: raw tables to features, towers, a published index, and candidates.

A night's run, stage by stage (refresh does them all, and skips what is up to date):

  tables - features - train - embed - build - publish - retrieve / candidates - evaluate
"""
EPILOG = """\
What follows a bare -- goes to Apache Beam unchanged:

  towerline features --config ads.toml -- --runner=FlinkRunner --flink_master=host:8081
"""


@dataclass(frozen=True)
class Call:
    """One call of the command: its arguments, the configuration, and what goes to Beam."""

    arguments: argparse.Namespace
    config: Config
    beam_args: tuple[str, ...]

    @property
    def progress(self) -> bool:
        """Whether progress may be shown."""
        return not (self.arguments.quiet or self.arguments.json)

    def artifact(self, name: str) -> Path:
        """Path of a stage's artifact below the run's folder."""
        return self.config.work / name


@dataclass(frozen=True)
class Answer:
    """What a verb has to say: lines for a person, one object for a machine, and the path it wrote."""

    lines: tuple[str, ...] = ()
    facts: dict[str, Any] | None = None
    written: Path | None = None
    exit_code: int = 0
