"""``towerline init``: what it writes, what it asks, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.towerline.jobs.init.worlds import make_world, write
from towerline.commands.cli import main
from towerline.config import load_config

Output = pytest.CaptureFixture[str]


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a shop whose items have two columns that could be the id."""
    world = make_world(1, "small", "letters", "")
    world.items = {"left": world.items.pop("what"), **world.items}
    world.items["right"] = world.items["left"][::-1]
    for name, rows in world.tables.items():
        write(rows, tmp_path / "data", name, "parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WORDS = ["init", "--events", "data/events.parquet", "--items", "data/items.parquet", "--users", "data/users.parquet"]


def test_the_toml_is_written_with_paths_from_its_own_folder(shop: Path, capsys: Output) -> None:
    assert main([*WORDS, "--out", "conf/shop.toml"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "conf/shop.toml"
    config = load_config(shop / "conf" / "shop.toml")
    assert config.dataset.name == "data"
    assert Path(str(config.tables.events.path)) == shop / "data" / "events.parquet"
    assert '"../data/events.parquet"' in (shop / "conf" / "shop.toml").read_text()


def test_a_file_that_is_there_is_kept_unless_forced(shop: Path, capsys: Output) -> None:
    (shop / "towerline.toml").write_text("mine")
    assert main(WORDS) == 2
    assert "--force" in capsys.readouterr().err
    assert (shop / "towerline.toml").read_text() == "mine"
    assert main([*WORDS, "--force", "--name", "shop"]) == 0
    assert load_config(shop / "towerline.toml").dataset.name == "shop"


def test_what_is_unsure_is_a_comment_where_nobody_can_answer(shop: Path, capsys: Output) -> None:
    assert main([*WORDS, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [check["key"] for check in facts["checks"]] == ["tables.events.item_id"]
    assert "# check: Which column" in (shop / "towerline.toml").read_text()


@pytest.mark.parametrize("yes", [False, True])
def test_what_is_unsure_is_a_question_in_a_terminal(shop: Path, monkeypatch, capsys: Output, *, yes: bool) -> None:
    asked: list[str] = []

    def prompt(text: str, **_: object) -> int:
        asked.append(text)
        return 2

    monkeypatch.setattr("typer.prompt", prompt)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert main([*WORDS, *(["--yes"] if yes else [])]) == 0
    assert len(asked) == (0 if yes else 1)
    items = load_config(shop / "towerline.toml").tables.items
    assert items is not None
    assert items.item_id == ("left" if yes else "right")
    assert ("# check:" in (shop / "towerline.toml").read_text()) == yes
    capsys.readouterr()


def test_a_table_that_is_not_there_is_refused(shop: Path, capsys: Output) -> None:
    assert main(["init", "--events", "nowhere.csv", "--items", "data/items.parquet"]) == 1
    assert "nowhere.csv" in capsys.readouterr().err
    assert not (shop / "towerline.toml").exists()
