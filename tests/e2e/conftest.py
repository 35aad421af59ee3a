"""One whole run of the real commands on the small marketplace, shared by the end-to-end tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.worlds import write_marketplace

Towerline = Callable[..., "subprocess.CompletedProcess[str]"]
# Small towers: the data has eight categories.
SETTINGS = ("towers.epochs=6", "towers.embedding_dim=32", "towers.uniform_negatives=128", "index.tuning_seconds=5")


@pytest.fixture(scope="session")
def towerline() -> Towerline:
    """Runs the installed command; returns what it said."""
    command = Path(sys.executable).parent / "towerline"

    def run(verb: str, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        settings = [part for setting in SETTINGS for part in ("--set", setting)]
        work = ("--work", str(config.parent / "run"))
        words = [str(command), verb, "--config", str(config), *work, *settings, *arguments]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    return run


@pytest.fixture(scope="session")
def marketplace(tmp_path_factory: pytest.TempPathFactory, towerline: Towerline) -> Path:
    """A marketplace after one `towerline refresh`: the TOML's path; next to it the run's folder and refresh.log."""
    config = write_marketplace(tmp_path_factory.mktemp("marketplace"))
    done = towerline("refresh", config)
    assert done.returncode == 0, done.stderr
    (config.parent / "refresh.log").write_text(done.stderr)
    return config
