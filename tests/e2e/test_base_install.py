"""An ad server's environment: the base package alone, without TensorFlow and Beam, opens a published bundle."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Towerline

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.util, json, sys
from index import Retriever
retriever = Retriever.open(sys.argv[1])
found = retriever.retrieve_by_id("u3", 10)
heavy = [name for name in ("tensorflow", "apache_beam", "pandas") if importlib.util.find_spec(name)]
print(json.dumps({"item_ids": found.item_ids.tolist(), "version": found.version, "heavy": heavy}))
"""


def test_the_base_package_retrieves_what_the_whole_one_does(
    marketplace: Path, towerline: Towerline, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for name in ("pipelines", "towers", "index"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "-c", str(ROOT / "requirements.lock"), str(source)]
    subprocess.run(install, check=True, timeout=300)
    command = [python, "-c", PROGRAM, str(marketplace.parent / "run" / "registry")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["heavy"] == []
    whole = json.loads(towerline("retrieve", marketplace, "--user", "u3", "--k", "10", "--json").stdout)
    assert told["version"] == whole["version"]
    assert told["item_ids"] == [one["item_id"] for one in whole["candidates"]]
