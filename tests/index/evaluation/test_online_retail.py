"""Online Retail II from its tables to the notebook, where the data is at hand."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import nbformat
import pytest

from tests.index.evaluation.test_notebooks import NAMES, check, execute, shown
from towerline.config import load_config

CONFIG = Path(__file__).parents[3] / "configs" / "online_retail_ii.toml"
DATA = os.environ.get("TOWERLINE_DATA")
FOLDER = None if DATA is None else Path(DATA).resolve() / "online_retail_ii"

needs_data = pytest.mark.skipif(
    FOLDER is None or not FOLDER.is_dir(),
    reason="needs the folder online_retail_ii below TOWERLINE_DATA (set it to the folder of the benchmark data)",
)


def test_the_config_is_whole():
    config = load_config(CONFIG)
    assert config.dataset.name == "online-retail-ii"
    assert config.split.test_from is not None
    columns = {feature["name"] for feature in tomllib.loads(CONFIG.read_text())["features"]["item"]}
    # Counted over the test weeks too: no features.
    assert not columns & {"n_lines", "last_seen"}


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from towerline.jobs import refresh

    assert FOLDER is not None
    work = tmp_path_factory.mktemp("online_retail_ii")
    text = CONFIG.read_text().replace("../runs/online_retail_ii/tables", str(FOLDER))
    config = work / "online_retail_ii.toml"
    config.write_text(text + "\n[towers]\nepochs = 2\nembedding_dim = 32\nrefit = false\n[refresh]\nevaluate = false\n")
    refresh.run(load_config(config, work=work))
    return config, work


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_notebooks_run(published, name):
    book: nbformat.NotebookNode = execute(name, *published)
    check(book)
    assert "Traceback" not in shown(book)
