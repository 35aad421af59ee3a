"""The notebooks run from a clean kernel, quickly, without a warning, and define nothing."""

from __future__ import annotations

import ast
import os
import time
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from index.registry.registry import Registry
from tests.index.evaluation.conftest import Written
from tests.index.evaluation.worlds import SCHEMA_TOML, make_world, write_bundle, write_features

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"
NAMES = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
LIMIT_SECONDS = 180


def execute(name: str, config: Path, work: Path) -> nbformat.NotebookNode:
    """Runs a notebook in its folder and returns it; what it writes to stderr fails the test."""
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    environment = {"TOWERLINE_CONFIG": str(config), "TOWERLINE_WORK": str(work), "PYTHONWARNINGS": "always"}
    old = {key: os.environ.get(key) for key in environment}
    os.environ.update(environment)
    started = time.perf_counter()
    try:
        NotebookClient(book, timeout=LIMIT_SECONDS, resources={"metadata": {"path": str(NOTEBOOKS)}}).execute()
    finally:
        for key, value in old.items():
            os.environ.pop(key) if value is None else os.environ.update({key: value})
    assert time.perf_counter() - started < LIMIT_SECONDS
    return book


def shown(book: nbformat.NotebookNode) -> str:
    """Everything the reader sees but pictures."""
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/html", "")) for output in outputs
    )


def check(book: nbformat.NotebookNode) -> None:
    seen = shown(book)
    assert "Warning" not in seen
    assert "Traceback" not in seen
    pictures = [
        output
        for cell in book.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures


@pytest.fixture(scope="module")
def published(written: Written, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run's folder with features and two published versions, and the TOML that describes it."""
    work = tmp_path_factory.mktemp("work")
    world = make_world()
    write_features(work / "features", world)
    registry = Registry(work / "registry")
    for number, items in enumerate((1800, None)):
        registry.publish(write_bundle(work / f"bundle{number}", world, items=items))
    config = work / "world.toml"
    config.write_text(SCHEMA_TOML)
    return config, work


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run(published, name):
    book = execute(name, *published)
    check(book)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_clean_and_define_nothing(name):
    book = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbformat.validate(book)
    for cell in book.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            for node in ast.walk(ast.parse(cell.source)):
                assert not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda)


DEMO = NOTEBOOKS.parent / "runs" / "demo"


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "registry" / "CURRENT").is_file(), reason="needs the demo's registry: run `make demo`")
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run_on_the_demo(name, tmp_path):
    """In a copy of the demo's folder: a notebook writes its reports next to the registry it reads."""
    for part in ("registry", "features", "model"):
        (tmp_path / part).symlink_to(DEMO / part)
    check(execute(name, NOTEBOOKS.parent / "configs" / "complete_journey.toml", tmp_path))
