"""``towerline config --explain``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from towerline.commands.cli import main


def test_the_command_explains_without_a_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOWERLINE_CONFIG", raising=False)
    assert main(["config", "--explain", "index.shards"]) == 0
    assert capsys.readouterr().out.startswith("index.shards: whole number, at least 1\ndefault: 1\n")
    assert main(["config", "--explain", "index.shards", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] == "1"
    assert main(["config", "--explain", "index.shrads"]) == 2
