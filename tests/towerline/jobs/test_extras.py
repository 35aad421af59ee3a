"""A library that is not installed is named by its extra, whichever verb needs it."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.contracts.errors import ConfigError
from tests.worlds import write_marketplace
from towerline.jobs.extras import _EXTRAS, extras_named

# Runs a verb where some libraries cannot be found.
PROGRAM = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from towerline.commands.cli import main
sys.exit(main(sys.argv[2:]))
"""
TOWERS = "tensorflow,tf_keras,tensorflow_recommenders"


@pytest.mark.parametrize(
    ("missing", "verb", "extra"),
    [
        ("apache_beam", "features", "pipelines"),
        ("apache_beam", "refresh", "pipelines"),
        ("apache_beam", "candidates", "pipelines"),
        ("apache_beam", "embed", "pipelines"),
        (TOWERS, "train", "towers"),
        ("optuna", "tune", "tune"),
    ],
)
def test_a_missing_library_is_named_by_its_extra(tmp_path: Path, missing: str, verb: str, extra: str) -> None:
    config = write_marketplace(tmp_path)
    command = [sys.executable, "-c", PROGRAM, missing, verb, "--config", str(config), "--work", str(tmp_path / "run")]
    if verb == "tune":
        config.write_text(config.read_text() + "[towers.tune]\nepochs = { choices = [1, 2] }\n")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"pip install 'towerline[{extra}]'" in done.stderr


def test_a_module_of_no_extra_is_our_own_mistake() -> None:
    with pytest.raises(ModuleNotFoundError), extras_named():
        raise ModuleNotFoundError("No module named 'pipelines.nowhere'", name="pipelines.nowhere")
    with pytest.raises(ConfigError, match=r"needs jinja2.*towerline\[evaluation\]"), extras_named():
        raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")


def test_each_extra_exists() -> None:
    provided = importlib.metadata.metadata("towerline").get_all("Provides-Extra")
    assert provided is not None
    assert set(_EXTRAS.values()) <= set(provided)
