"""Progress of a job on any runner: bars that count the files its tasks have written."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

_LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Step:
    """One bar: ``total`` files are expected in ``folder``."""

    label: str
    total: int
    folder: Path


@contextlib.contextmanager
def watched(steps: Sequence[Step], *, shown: bool) -> Iterator[None]:
    """Shows a bar on standard error for each step while the block runs."""
    if not shown:
        yield
        return
    stop = threading.Event()
    bars = [tqdm(total=step.total, desc=step.label, unit="parts", leave=True) for step in steps]

    def look() -> None:
        for bar, step in zip(bars, steps, strict=True):
            bar.n = sum(1 for _ in step.folder.glob("[!.]*")) if step.folder.exists() else 0
            bar.refresh()

    def watch() -> None:
        while not stop.wait(_LOOK_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
        for bar in bars:
            bar.close()
