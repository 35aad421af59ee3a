"""How a job shows its progress: lines, stages, bars and heartbeats on standard error.

On a terminal, bars and heartbeats are drawn in place. Elsewhere (a log, a pipe, CI) plain lines are written, the first
after five seconds, so that nothing is silent for longer. Libraries are silent by default (``SILENT``); the command line
makes the one ``Progress`` that writes and hands it down.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

Figure = str | int | float

# Seconds without a line after which one is due.
_SILENCE = 5.0
# A bar or a heartbeat younger than this is not shown yet: it may be over at once.
_YOUNGEST = 1.0
# Seconds between two drawings on a terminal.
_REDRAW = 0.5


class Bar:
    """How far one piece of work is. One thread advances it; another one reads it."""

    def __init__(
        self, label: str, total: int | None, unit: str, done: int, count: Callable[[], int] | None, started: float
    ) -> None:
        self.label, self.total, self.unit, self.done, self.started = label, total, unit, done, started
        self.figures: dict[str, Figure] = {}
        self._count = count

    def advance(self, n: int = 1, /, **figures: Figure) -> None:
        """Adds ``n`` to what is done.

        Args:
            n: in the bar's unit.
            figures: shown next to the count until the next call gives others: ``loss=0.71``.
        """
        self.done += n
        self.figures = figures

    def look(self) -> None:
        """Asks the bar's ``count``, if it has one, how much is done."""
        if self._count is not None:
            self.done = self._count()

    def text(self, now: float) -> str:
        """The bar as one plain line: "rank: 512 of 2,000 users (25 %), 10 s"."""
        elapsed = _duration(now - self.started)
        if self.total is None:
            return f"{self.label}: {elapsed}"
        share = f" ({100 * self.done // self.total} %)" if self.total else ""
        figures = [f"{name} {_figure(value)}" for name, value in self.figures.items()]
        return ", ".join([f"{self.label}: {self.done:,} of {self.total:,} {self.unit}{share}", *figures, elapsed])


class _View(Protocol):
    """Where progress is shown: a terminal or a plain stream."""

    def line(self, text: str, now: float) -> None: ...

    def begin(self, bars: Sequence[Bar]) -> None: ...

    def look(self, bars: Sequence[Bar], now: float) -> None: ...

    def end(self, bar: Bar, now: float, *, whole: bool) -> None: ...

    def wait(self, now: float) -> float: ...


class Progress:
    """What a job is doing, for the person who waits for it.

    Not for other processes: a pickled copy is silent there. It also becomes silent when its stream is closed; the job
    continues.
    """

    def __init__(self, stream: TextIO | None = None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Starts with nothing open.

        Args:
            stream: where it writes, as a rule ``sys.stderr``; None is silent.
            clock: seconds.
        """
        self._clock = clock
        self._view: _View | None = None
        if stream is not None:
            self._view = _Terminal(stream) if _is_terminal(stream) else _Lines(stream, clock())
        self._lock = threading.RLock()
        self._open: list[Bar] = []
        self._stop = threading.Event()
        self._watcher: threading.Thread | None = None

    def __reduce__(self) -> tuple[type[Progress], tuple[()]]:
        return Progress, ()

    def line(self, text: str) -> None:
        """Writes one line at once."""
        self._show(lambda view: view.line(text, self._clock()))

    def stage(self, number: int, of: int, name: str) -> None:
        """Says which of a run's stages begins: "stage 2 of 5: train"."""
        self.line(f"stage {number} of {of}: {name}")

    @contextlib.contextmanager
    def bar(
        self, total: int, label: str, unit: str, *, done: int = 0, count: Callable[[], int] | None = None
    ) -> Iterator[Bar]:
        """Shows how far the block is.

        Args:
            total: how much there is to do.
            label: what is done.
            unit: of the total, in the plural: "users".
            done: how much was done before the block.
            count: says how much is done, instead of ``advance``. It is called in another thread.
        """
        with self._shown(Bar(label, total, unit, done, count, self._clock())) as bar:
            yield bar

    @contextlib.contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Shows that the block is still at work, and for how long: for calls that cannot say how far they are.

        Within another ``waiting`` the inner one is shown.
        """
        with self._shown(Bar(label, None, "", 0, None, self._clock())):
            yield

    def look(self) -> None:
        """Shows what is due now. While anything is open, a thread calls this."""
        self._show(self._look)

    @contextlib.contextmanager
    def _shown(self, bar: Bar) -> Iterator[Bar]:
        if self._view is None:
            yield bar
            return
        with self._lock:
            self._show(lambda view: view.begin([*self._open, bar]))
            self._open.append(bar)
            if self._watcher is None:
                self._stop = threading.Event()
                self._watcher = threading.Thread(target=self._watch, args=(self._stop,), name="progress", daemon=True)
                self._watcher.start()
        whole = False
        try:
            yield bar
            whole = True
        finally:
            self._close(bar, whole=whole)

    def _close(self, bar: Bar, *, whole: bool) -> None:
        with self._lock:
            self._open.remove(bar)
            bar.look()
            self._show(lambda view: view.end(bar, self._clock(), whole=whole))
            watcher = None if self._open else self._watcher
            if watcher is not None:
                self._stop.set()
                self._watcher = None
        if watcher is not None:
            watcher.join()

    def _watch(self, stop: threading.Event) -> None:
        while not stop.wait(self._pause()):
            self.look()

    def _pause(self) -> float:
        view = self._view
        return _SILENCE if view is None else view.wait(self._clock())

    def _look(self, view: _View) -> None:
        for bar in self._open:
            bar.look()
        view.look(self._open, self._clock())

    def _show(self, act: Callable[[_View], None]) -> None:
        with self._lock:
            if self._view is None:
                return
            try:
                act(self._view)
            except (OSError, ValueError):
                # The stream is broken or closed, which is no reason to end the job.
                self._view = None


class _Lines:
    """Plain lines: one when nothing was written for five seconds."""

    def __init__(self, stream: TextIO, now: float) -> None:
        self._stream, self._last = stream, now
        self._bar_to_written: dict[Bar, int] = {}

    def line(self, text: str, now: float) -> None:
        """Writes it."""
        self._stream.write(text + "\n")
        self._stream.flush()
        self._last = now

    def begin(self, bars: Sequence[Bar]) -> None:
        """Writes nothing yet."""

    def look(self, bars: Sequence[Bar], now: float) -> None:
        """Writes the bars that have moved since they were last written; where none has, the innermost."""
        if now < self._last + _SILENCE:
            return
        due = [bar for bar in bars if now >= bar.started + _YOUNGEST]
        moved = [bar for bar in due if bar.total is not None and bar.done != self._bar_to_written.get(bar, 0)]
        for bar in moved or due[-1:]:
            self._bar_to_written[bar] = bar.done
            self.line(bar.text(now), now)

    def end(self, bar: Bar, now: float, *, whole: bool) -> None:
        """Writes how a bar ended, if it has been written before."""
        written = self._bar_to_written.pop(bar, None)
        if whole and written is not None and written != bar.done:
            self.line(bar.text(now), now)

    def wait(self, now: float) -> float:
        """Seconds until a line is due."""
        return min(max(self._last + _SILENCE - now, _REDRAW), _SILENCE)


class _Terminal:
    """Bars drawn in place by tqdm; of the heartbeats only the innermost, which leaves nothing behind."""

    def __init__(self, stream: TextIO) -> None:
        from tqdm import tqdm

        class Drawn(tqdm):  # type: ignore[misc]
            """Without tqdm's own thread, which would never end."""

            monitor_interval = 0

        self._stream, self._tqdm = stream, Drawn
        self._bar_to_drawn: dict[Bar, Any] = {}

    def line(self, text: str, now: float) -> None:  # noqa: ARG002
        """Writes it above the bars."""
        self._tqdm.write(text, file=self._stream)
        self._stream.flush()

    def begin(self, bars: Sequence[Bar]) -> None:
        """Draws the last of ``bars``; hides the heartbeats around it."""
        for outer in bars[:-1]:
            if outer.total is None:
                self._hide(outer)
        new = bars[-1]
        if new.total is not None:
            self._bar_to_drawn[new] = self._tqdm(
                total=new.total,
                initial=new.done,
                desc=new.label,
                unit=f" {new.unit}",
                file=self._stream,
                dynamic_ncols=True,
            )

    def look(self, bars: Sequence[Bar], now: float) -> None:
        """Draws all bars as they are now, and the heartbeat where it is innermost."""
        for bar in bars:
            if bar.total is not None:
                self._draw(bar)
            elif bar is bars[-1]:
                self._beat(bar, now)

    def end(self, bar: Bar, now: float, *, whole: bool) -> None:  # noqa: ARG002
        """Leaves a bar as it ended, and nothing of a heartbeat."""
        if bar.total is not None:
            self._draw(bar)
        self._hide(bar)

    def wait(self, now: float) -> float:  # noqa: ARG002
        """Seconds until the next drawing."""
        return _REDRAW

    def _draw(self, bar: Bar) -> None:
        drawn = self._bar_to_drawn[bar]
        drawn.n = bar.done
        drawn.set_postfix_str(", ".join(f"{name}={_figure(value)}" for name, value in bar.figures.items()), False)
        drawn.refresh()

    def _beat(self, bar: Bar, now: float) -> None:
        if bar not in self._bar_to_drawn:
            self._bar_to_drawn[bar] = self._tqdm(
                bar_format="{desc}", file=self._stream, dynamic_ncols=True, leave=False, desc=bar.text(now)
            )
        self._bar_to_drawn[bar].set_description_str(bar.text(now))

    def _hide(self, bar: Bar) -> None:
        drawn = self._bar_to_drawn.pop(bar, None)
        if drawn is not None:
            drawn.close()


def files_in(folder: Path) -> Callable[[], int]:
    """A bar's ``count``: the files in ``folder`` that are whole (those being written begin with a dot)."""

    def count() -> int:
        try:
            return sum(not name.startswith(".") for name in os.listdir(folder))
        except OSError:
            # Not there yet, or no longer.
            return 0

    return count


def _is_terminal(stream: TextIO) -> bool:
    """Whether bars can be drawn: not where the terminal has no width, as one that a container makes may have."""
    if not stream.isatty() or os.environ.get("TERM") == "dumb":
        return False
    try:
        return os.get_terminal_size(stream.fileno()).columns > 0
    except (OSError, ValueError):
        return True


def _figure(value: Figure) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value


def _duration(seconds: float) -> str:
    """ "10 s"; from two minutes on "3 min 20 s"."""
    whole = int(seconds)
    return f"{whole} s" if whole < 120 else f"{whole // 60} min {whole % 60} s"


SILENT = Progress()
