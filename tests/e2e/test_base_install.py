"""An ad server's environment: the base package alone, without TensorFlow and Beam, opens a published bundle."""

from __future__ import annotations

import ast
import configparser
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.e2e.conftest import Towerline

ROOT = Path(__file__).parents[2]
PROGRAM = """
import importlib.util, json, sys
import towerline
retriever = towerline.Retriever.open(sys.argv[1])
found = retriever.retrieve_by_id("u3", 10)
heavy = [name for name in ("tensorflow", "apache_beam", "pandas") if importlib.util.find_spec(name)]
print(json.dumps({"item_ids": found.item_ids.tolist(), "version": found.version, "heavy": heavy}))
"""


def test_the_base_package_retrieves_what_the_whole_one_does(
    marketplace: Path, towerline: Towerline, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    for name in ("pipelines", "towers", "index", "towerline"):
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
    version = [str(tmp_path / "venv" / "bin" / "towerline"), "--version"]
    said = subprocess.run(version, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert said == f"towerline {importlib.metadata.version('towerline')}\n"
    found = json.loads(done.stdout)
    assert found["heavy"] == []
    whole = json.loads(towerline("retrieve", marketplace, "--user", "u3", "--k", "10", "--json").stdout)
    assert found["version"] == whole["version"]
    assert found["item_ids"] == [one["item_id"] for one in whole["candidates"]]


def test_the_extra_towers_names_all_that_the_package_imports() -> None:
    """Training ran in the developers' environment and failed in one of the extras that `make demo` installs."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    asked = setup["options"]["install_requires"] + setup["options.extras_require"]["towers"]
    named = {_normal(re.split(r"[\[<>=; ]", line.strip())[0]) for line in asked.splitlines() if line.strip()}
    of_module = importlib.metadata.packages_distributions()
    imported = set()
    for file in (ROOT / "towers").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported |= {name.split(".")[0] for name in names}
    ours = {"pipelines", "towers", "index"}
    outside = {name for name in imported if name and name not in ours and name not in sys.stdlib_module_names}
    # Searching for settings is an extra of its own, and is imported where it is asked for.
    missing = {name for name in outside - {"optuna"} if not {_normal(one) for one in of_module[name]} & named}
    assert missing == set()


def _normal(name: str) -> str:
    return name.lower().replace("_", "-")
