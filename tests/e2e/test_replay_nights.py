"""``towerline replay-nights`` by its real command: killed in the middle, it goes on; the page is there at the end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.e2e.conftest import SETTINGS
from tests.worlds import write_marketplace

NIGHTS = 3
# The conftest's towers, trained for a moment only.
MORE = ("towers.epochs=1", "split={valid_days = 5, test_days = 5}", "refresh.warm_nights=9", "gates.panel=50")


def command(config: Path, *words: str) -> list[str]:
    settings = [part for setting in (*SETTINGS, *MORE, "index.engine=exact") for part in ("--set", setting)]
    work = ("--work", str(config.parent / "run"))
    executable = str(Path(sys.executable).parent / "towerline")
    return [executable, "replay-nights", "--config", str(config), *work, *settings, *words]


@pytest.mark.slow
def test_a_replay_that_is_killed_goes_on_and_ends_with_its_page(tmp_path: Path) -> None:
    config = write_marketplace(tmp_path)
    words = command(config, "--from", "2025-02-20", "--nights", str(NIGHTS))
    folder = tmp_path / "run" / "replay"
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as killed:
        deadline = time.monotonic() + 600
        while begun(folder) < 1 and killed.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        killed.send_signal(signal.SIGKILL)
        assert killed.stderr is not None
        said = killed.stderr.read()
    assert begun(folder) == 1, said
    done = subprocess.run([*words, "--json"], capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    replay = json.loads(done.stdout)
    assert [row["outcome"] for row in replay["nights"]] == ["published"] * NIGHTS
    assert [row["night"] for row in replay["nights"] if row["resumed"]] == [1]
    assert {"fresh", "frozen", "weekly", "backtest"} == replay["recall"].keys()
    # 100 of 400 items by chance would find a quarter.
    assert replay["recall"]["fresh"]["all"]["recall"] > 0.4
    assert all(row["stages"]["night/model"] > 0 for row in replay["nights"])
    assert (folder / "replay.html").stat().st_size > 50_000
    assert not (tmp_path / "run" / "registry").exists()


def begun(folder: Path) -> int:
    """The night that was begun last; -1 before the first one."""
    file = folder / "state.json"
    return -1 if not file.is_file() else int(json.loads(file.read_text())["begun"])
