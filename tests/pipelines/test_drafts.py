"""Folders being written: kept while their writer lives, removed by the next writer after it was killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipelines import drafts
from pipelines.drafts import draft_of, replace_directory, sweep

# In a pid namespace of its own, as in a container: process ids there say nothing here.
IN_A_CONTAINER = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
WRITER = """
import sys
from pathlib import Path
from pipelines.drafts import draft_of
with draft_of(Path(sys.argv[1])) as folder:
    (folder / "half").write_text("half")
    print("writing", flush=True)
    sys.stdin.read()
"""


def put(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "a").write_text(text)
    return folder


@pytest.mark.parametrize("container", [False, True])
def test_the_draft_of_a_living_writer_is_kept_and_that_of_a_killed_one_removed(tmp_path: Path, container: bool) -> None:
    probe = subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True, check=False) if container else None
    if probe is not None and probe.returncode:
        pytest.skip(f"a pid namespace cannot be made here: {probe.stderr.decode().strip()}")
    command = [*(IN_A_CONTAINER if container else []), sys.executable, "-c", WRITER, str(tmp_path / "bundle")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        for _ in range(3):
            with draft_of(tmp_path / "bundle") as own:
                assert own.is_dir()
        (half,) = tmp_path.glob(".bundle.*.draft/half")
        assert half.read_text() == "half"
        writer.kill()
    until = time.monotonic() + 20.0  # The container's own process ends a moment after the one that made it.
    while os.listdir(tmp_path) and time.monotonic() < until:
        sweep(tmp_path / "bundle")
    assert os.listdir(tmp_path) == []


def test_leftovers_of_earlier_releases_have_no_writer(tmp_path: Path) -> None:
    put(tmp_path / ".bundle.1.0123abcd.old", "old")
    put(tmp_path / ".bundle.1.0123abcd.draft", "half")
    put(tmp_path / ".bundle.publish.0123abcd.draft", "of something else")
    sweep(tmp_path / "bundle")
    assert sorted(os.listdir(tmp_path)) == [".bundle.publish.0123abcd.draft", "bundle"]
    assert (tmp_path / "bundle" / "a").read_text() == "old"


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_by_another(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(drafts, "_exchange", lambda *_: False)
    for text in ("one", "two", "three"):
        with draft_of(tmp_path / "x") as folder:
            (folder / "a").write_text(text)
            replace_directory(folder, tmp_path / "x")
        assert (tmp_path / "x" / "a").read_text() == text
        assert os.listdir(tmp_path) == ["x"]


def test_a_reader_always_finds_a_whole_folder_while_it_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "x", "0")
    if not drafts._exchange(put(tmp_path / "y", "1"), tmp_path / "x"):
        pytest.skip("this file system cannot exchange two folders")
    ended = threading.Event()

    def write() -> None:
        for number in range(300):
            with draft_of(tmp_path / "x") as folder:
                (folder / "a").write_text(str(number))
                replace_directory(folder, tmp_path / "x")
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not ended.is_set():
        assert (tmp_path / "x").is_dir()
    writer.join()
