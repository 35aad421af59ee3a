"""kill -9 in the middle of a rolling night: the next refresh finishes, CURRENT is whole, no change of an ad is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.towerline.jobs.refresh_kills import NIGHTS
from tests.towerline.jobs.rolling_nights import write_nights

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    write_nights(root, NIGHTS)
    return root


def run(stored: Path, work: Path, kills: int, warm_nights: int, minutes: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.towerline.jobs.refresh_kills", str(stored), str(work)]
    done = subprocess.run(
        [*command, str(kills), "11", str(warm_nights)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60 * minutes,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize("warm_nights", [0, 3])
def test_kills_of_a_night_lose_nothing(stored: Path, tmp_path: Path, warm_nights: int) -> None:
    result = run(stored, tmp_path / "work", 3, warm_nights, minutes=10.0)
    assert result["wrong"] == [], "\n".join(result["wrong"])
    assert result["kills"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("warm_nights", [0, 3])
def test_two_hundred_kills_of_nights_lose_nothing(stored: Path, tmp_path: Path, warm_nights: int) -> None:
    result = run(stored, tmp_path / "work", 200, warm_nights, minutes=60.0)
    assert result["wrong"] == [], "\n".join(result["wrong"])
    assert result["kills"] >= 200
    assert result["changes"] >= 400
    assert result["nights"]["published"] > 20
