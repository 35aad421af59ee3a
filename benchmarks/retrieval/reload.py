"""Calls during swaps of the version: errors, the longest call, answers by version, memory before and after.

Reads two bundles; writes a registry. Runs in a process of its own, so that its memory is that of one version. The
longest call with swaps is reported next to the longest of as many calls without, which is what the machine itself adds.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from index.registry.registry import Registry
from index.retrieval.retriever import Retriever

K = 100
SWAPS = 20
LEAST_CALLS = 10_000


def in_own_process(bundles: list[Path], folder: Path, records: list[Any]) -> dict[str, Any]:
    """``reload`` in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(reload, bundles, folder, records).result()


def reload(bundles: list[Path], folder: Path, records: list[Any]) -> dict[str, Any]:
    """Publishes two bundles, and moves between them while a thread sends requests."""
    registry = Registry(folder / "registry")
    names = [registry.publish(bundle) for bundle in bundles]
    retriever = Retriever.open(folder / "registry", names[0], verify=True)
    watcher = retriever.watch(3600.0)

    def move(name: str) -> bool:
        registry.store.swap("CURRENT", registry.store.read_bytes("CURRENT"), f"{name}\n".encode())
        return watcher.check()

    # Both once before memory is measured: what is loaded at first use stays in memory.
    for name in (names[1], names[0]):
        move(name)
    _Asking(retriever, records).ask(500)
    asking = _Asking(retriever, records)
    before = _resident_mb()
    thread = threading.Thread(target=asking.until_done)
    thread.start()
    failed = [str(retriever.last_error) for swap in range(SWAPS) if not move(names[(swap + 1) % 2])]
    asking.done.set()
    thread.join()
    after = _resident_mb()
    retriever.close()
    taken = np.array(asking.taken) * 1e3
    without = _Asking(retriever, records)
    without.ask(len(taken))
    return {
        "items": retriever.num_items,
        "calls": len(taken),
        "swaps": SWAPS,
        "errors": len(asking.errors) + len(failed),
        "first_errors": [*failed, *asking.errors][:3],
        "versions_answered": len(asking.versions),
        "p50_us": round(float(np.percentile(taken, 50)) * 1e3, 1),
        "p99_us": round(float(np.percentile(taken, 99)) * 1e3, 1),
        "p999_us": round(float(np.percentile(taken, 99.9)) * 1e3, 1),
        "max_ms": round(float(taken.max()), 2),
        "max_without_swaps_ms": round(max(without.taken) * 1e3, 2),
        "calls_over_20_ms": int((taken > 20).sum()),
        "rss_before_mb": round(before, 1),
        "rss_after_mb": round(after, 1),
        "rss_change": round(after / before - 1, 4),
    }


class _Asking:
    """Sends one record after the other and records how long each took, in seconds."""

    def __init__(self, retriever: Retriever, records: list[Any]) -> None:
        self._retriever = retriever
        self._records = records
        self.taken: list[float] = []
        self.errors: list[str] = []
        self.versions: set[str] = set()
        self.done = threading.Event()

    def until_done(self) -> None:
        while not self.done.is_set() or len(self.taken) < LEAST_CALLS:
            self.ask(100)

    def ask(self, calls: int) -> None:
        for place in range(len(self.taken), len(self.taken) + calls):
            started = time.perf_counter()
            try:
                self.versions.add(self._retriever.retrieve(self._records[place % len(self._records)], K).version)
            except Exception as err:
                self.errors.append(repr(err))
            self.taken.append(time.perf_counter() - started)


def _resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
