"""Progress: what is written on a terminal, elsewhere, and when silenced."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.progress import SILENT, Progress, files_in


class Clock:
    """Seconds that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True

    def drawn(self) -> list[str]:
        """Everything that was drawn, without the control codes."""
        text = re.sub(r"\x1b\[[A-Z]", "", self.getvalue())
        return [part.strip() for part in re.split(r"[\r\n]", text) if part.strip()]


class Log:
    """A ``Progress`` on a plain stream, whose time a test sets."""

    def __init__(self) -> None:
        self.stream, self.clock = io.StringIO(), Clock()
        self.progress = Progress(self.stream, clock=self.clock)

    def after(self, seconds: float) -> list[str]:
        """Lets time pass; returns all lines so far."""
        self.clock.now += seconds
        self.progress.look()
        return self.lines

    @property
    def lines(self) -> list[str]:
        """All lines so far."""
        return self.stream.getvalue().splitlines()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_a_line_and_a_stage_are_written_at_once() -> None:
    log = Log()
    log.progress.line("publish: v1 is live")
    log.progress.stage(2, 5, "train")
    assert log.lines == ["publish: v1 is live", "stage 2 of 5: train"]


def test_the_silent_one_writes_nothing_and_starts_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    threads = threading.active_count()
    with SILENT.waiting("build"), SILENT.bar(10, "rank", "users", count=lambda: 1 // 0) as bar:
        SILENT.line("a line")
        SILENT.stage(1, 5, "features")
        bar.advance(3, loss=0.5)
        SILENT.look()
        assert threading.active_count() == threads
    assert capsys.readouterr() == ("", "")


def test_without_a_terminal_a_bar_writes_a_line_whenever_five_seconds_were_silent() -> None:
    log = Log()
    with log.progress.bar(2000, "rank", "users") as bar:
        assert log.after(4.9) == []
        bar.advance(512)
        assert log.after(0.1) == ["rank: 512 of 2,000 users (25 %), 5 s"]
        bar.advance(512)
        assert len(log.after(4.9)) == 1
        assert log.after(0.1)[1:] == ["rank: 1,024 of 2,000 users (51 %), 10 s"]
        # Even where nothing moves.
        assert log.after(5)[2:] == ["rank: 1,024 of 2,000 users (51 %), 15 s"]
        bar.advance(976)
        log.clock.now += 1
    assert log.lines[3:] == ["rank: 2,000 of 2,000 users (100 %), 16 s"]


def test_what_is_over_within_five_seconds_writes_nothing() -> None:
    log = Log()
    with log.progress.bar(10, "rank", "users") as bar:
        bar.advance(10)
        log.after(4)
    with log.progress.waiting("build"):
        pass
    assert log.lines == []


def test_short_pieces_one_after_the_other_are_not_silent_together() -> None:
    log = Log()
    for name in "abc":
        with log.progress.waiting(name):
            for _ in range(4):
                log.after(1)
    assert log.lines == ["b: 1 s", "c: 2 s"]


def test_a_line_of_the_job_itself_counts_as_a_sign_of_life() -> None:
    log = Log()
    with log.progress.waiting("tree"):
        log.after(4)
        log.progress.line("a result")
        assert log.after(4) == ["a result"]
        assert log.after(1) == ["a result", "tree: 9 s"]


def test_figures_are_written_next_to_the_count() -> None:
    log = Log()
    with log.progress.bar(4, "search", "steps") as bar:
        bar.advance(loss=0.71234, examples_s=12345)
        assert log.after(5) == ["search: 1 of 4 steps (25 %), loss 0.7123, examples_s 12,345, 5 s"]


def test_a_bar_may_begin_part_way_and_may_have_nothing_to_do() -> None:
    log = Log()
    with log.progress.bar(20, "tune", "trials", done=15):
        assert log.after(5) == ["tune: 15 of 20 trials (75 %), 5 s"]
    with log.progress.bar(0, "encoding", "parts"):
        assert log.after(5)[1:] == ["encoding: 0 of 0 parts, 5 s"]


def test_a_bar_can_count_files(tmp_path: Path) -> None:
    log, folder = Log(), tmp_path / "parts"
    with log.progress.bar(3, "reading", "parts", count=files_in(folder)):
        assert log.after(5) == ["reading: 0 of 3 parts (0 %), 5 s"]
        folder.mkdir()
        (folder / "00001.arrow").touch()
        (folder / ".00002.arrow.half").touch()
        assert log.after(5)[1:] == ["reading: 1 of 3 parts (33 %), 10 s"]
        (folder / "00002.arrow").touch()
        (folder / "00003.arrow").touch()
    assert log.lines[2:] == ["reading: 3 of 3 parts (100 %), 10 s"]


def test_of_several_bars_those_that_moved_are_written_else_the_innermost() -> None:
    log = Log()
    with (
        log.progress.waiting("features"),
        log.progress.bar(4, "reading", "parts") as reading,
        log.progress.bar(8, "building", "parts"),
    ):
        reading.advance(4)
        assert log.after(5) == ["reading: 4 of 4 parts (100 %), 5 s"]
        assert log.after(5)[1:] == ["building: 0 of 8 parts (0 %), 10 s"]


def test_a_heartbeat_says_for_how_long() -> None:
    log = Log()
    with log.progress.waiting("closed-form start"):
        assert log.after(5) == ["closed-form start: 5 s"]
        assert log.after(5) == ["closed-form start: 5 s", "closed-form start: 10 s"]
        assert log.after(190)[2:] == ["closed-form start: 3 min 20 s"]
    assert len(log.after(60)) == 3


def test_the_innermost_heartbeat_is_the_one_that_is_written() -> None:
    log = Log()
    with log.progress.waiting("build"):
        with log.progress.waiting("a tree of 500 leaves"):
            log.after(5)
        log.after(5)
    assert log.lines == ["a tree of 500 leaves: 5 s", "build: 10 s"]


def test_the_thread_writes_while_the_job_is_in_one_long_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.progress._SILENCE", 0.05)
    monkeypatch.setattr("pipelines.progress._YOUNGEST", 0.0)
    monkeypatch.setattr("pipelines.progress._REDRAW", 0.01)
    stream, called = io.StringIO(), threading.Event()
    write = stream.write

    def counted(text: str) -> int:
        if stream.getvalue().count("\n") == 2:
            called.set()
        return write(text)

    stream.write = counted  # type: ignore[method-assign]
    with Progress(stream).waiting("native call"):
        assert called.wait(30)
    assert set(stream.getvalue().splitlines()) == {"native call: 0 s"}


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_exceptions_pass_through_and_nothing_stays_open(stream: type[io.StringIO]) -> None:
    progress = Progress(stream())
    with pytest.raises(KeyError, match="mine"), progress.waiting("build"), progress.bar(10, "rank", "users") as bar:
        bar.advance(3)
        raise KeyError("mine")
    with progress.bar(1, "again", "users") as bar:
        bar.advance()


def test_a_bar_that_failed_does_not_say_how_it_ended() -> None:
    log = Log()
    with pytest.raises(ValueError, match="broken"), log.progress.bar(10, "rank", "users") as bar:
        log.after(5)
        bar.advance(3)
        raise ValueError("broken")
    assert log.lines == ["rank: 0 of 10 users (0 %), 5 s"]


def test_on_a_terminal_a_bar_is_drawn_in_place() -> None:
    stream = Terminal()
    progress = Progress(stream)
    with progress.bar(8, "rank", "users") as bar:
        bar.advance(2, recall=0.25)
        progress.look()
        progress.line("a line above")
        bar.advance(6)
    drawn = stream.drawn()
    assert drawn[0].startswith("rank:   0%|")
    assert any(part.startswith("rank:  25%|") and "2/8" in part and part.endswith("recall=0.25]") for part in drawn)
    assert "a line above" in drawn
    assert drawn[-1].startswith("rank: 100%|")
    assert stream.getvalue().endswith("\n")


def test_on_a_terminal_a_heartbeat_is_rewritten_and_leaves_nothing() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress(stream, clock=clock)
    with progress.waiting("build"):
        with progress.waiting("a tree"):
            clock.now += 2
            progress.look()
        clock.now += 1
        progress.look()
    assert list(dict.fromkeys(stream.drawn())) == ["a tree: 2 s", "build: 3 s"]
    assert "\n" not in stream.getvalue()
    assert not stream.getvalue().rsplit("\r", 2)[-2].strip()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(stream).bar(1, "rank", "users") as bar:
        bar.advance()
    assert stream.getvalue() == ""


def test_a_terminal_without_width_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terminal, "fileno", lambda self: 2)
    monkeypatch.setattr("os.get_terminal_size", lambda fd: os.terminal_size((0, 0)))
    stream = Terminal()
    with Progress(stream).bar(1, "rank", "users") as bar:
        bar.advance()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_a_stream_that_nobody_reads_silences_it_and_the_job_goes_on(kind: type[io.StringIO]) -> None:
    stream = kind()
    progress = Progress(stream)
    with progress.bar(2, "rank", "users") as bar:
        stream.close()
        progress.line("unheard")
        progress.look()
        bar.advance(2)
    progress.line("unheard")


def test_in_another_process_it_is_silent() -> None:
    log = Log()
    with log.progress.waiting("embed"):
        copy = pickle.loads(pickle.dumps(log.progress))
        copy.line("from a worker")
    assert log.lines == []


def test_it_needs_neither_beam_nor_tensorflow_and_a_log_not_even_tqdm() -> None:
    code = (
        "import sys; from pipelines.progress import Progress; Progress(sys.stderr).line('x');"
        "print([name for name in ('apache_beam', 'tensorflow', 'numpy', 'tqdm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "x\n")
