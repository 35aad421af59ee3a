"""A server under load, run as its own process: threads call, forked workers call, the registry changes meanwhile.

    python -m tests.index.retrieval.live.load_driver REGISTRY FLAGS CALLS

FLAGS is a file of 64-bit numbers that the writer of changes shares: the first is the phase (``PHASES``), then one per
item, odd from after its pause was written until before its resume is. An answer is wrong if it has an item whose flag
was odd before the call and is the same after it. Prints what each process saw, as JSON lines.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import SchemaError
from tests.forks import exit_code, forked

THREADS, WORKERS, KEPT = 4, 2, 100
# The writer's phases: everything was exercised once; all changes and swaps are done.
WARM, DONE = 1, 2
SECONDS = 3000


class Load:
    """The calls of one process."""

    def __init__(self, retriever: Retriever, flags: np.ndarray, calls: int) -> None:
        self.retriever, self.flags, self.quota = retriever, flags, calls
        self.calls = 0
        self.wrong: list[str] = []
        self.versions: set[str] = set()
        self.kept: list[Exception] = []
        self.mib: list[float] = []

    def serve(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        made = 0
        try:
            while made < self.quota or self.flags[0] < DONE:
                before = self.flags[1:].copy()
                answers = self.answers(int(rng.integers(0, 20)), rng)
                after = self.flags[1:]
                same = (before == after) & (before % 2 == 1)
                for answer in answers:
                    made += 1
                    self.versions.add(answer.version)
                    ids = answer.item_ids
                    known = ids[(ids >= 1000) & ((ids - 1000) % 3 == 0) & (ids < 1000 + 3 * len(before))]
                    bad = known[same[(known - 1000) // 3]]
                    if len(bad):
                        self.wrong.append(f"{answer.version} served {bad.tolist()} by {answer.plan}")
        except Exception:
            self.wrong.append(traceback.format_exc())
        self.calls += made

    def answers(self, kind: int, rng: np.random.Generator) -> list[Any]:
        history = (1000 + 3 * rng.integers(0, len(self.flags) - 1, 5)).tolist()
        record: dict[str, Any] = {"history": history, "country": "US"}
        retriever = self.retriever
        if kind == 0:
            return [retriever.retrieve(record, 20, where=f"price < {rng.integers(1, 9)}")]
        if kind == 1:
            return [retriever.retrieve(record, 20, max_per={"category": 3}, exclude=history[:2])]
        if kind == 2:
            return [retriever.retrieve({}, 20)]
        if kind == 3:
            return retriever.retrieve_batch([record] * 4, 20)
        if kind == 4:
            try:
                retriever.retrieve({**record, "country": [1]})
            except SchemaError as err:
                self.kept = [*self.kept[-KEPT:], err]
        return [retriever.retrieve(record, 20)]

    def run(self, threads: int, seed: int) -> None:
        """Calls from several threads; measures memory at both ends of the writer's work."""
        running = [threading.Thread(target=self.serve, args=(seed + number,)) for number in range(threads)]
        for thread in running:
            thread.start()
        self.until(lambda: self.flags[0] >= WARM)
        self.measure()
        for thread in running:
            thread.join(SECONDS)
        self.measure()

    def until(self, done: Any) -> None:
        end = time.monotonic() + SECONDS
        while not done() and time.monotonic() < end:
            time.sleep(0.05)

    def measure(self) -> None:
        """Memory of this process once everything is laid out and old versions are freed."""
        time.sleep(3.0)
        follower = self.retriever._follower
        assert isinstance(follower, DeltaFollower)
        follower.wait()
        gc.collect()
        # What is free belongs to nobody: the allocator gives it back when asked.
        ctypes.CDLL(None).malloc_trim(0)
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        self.mib.append(int(fields["RssAnon"].split()[0]) / 1024)

    def report(self) -> str:
        seen = {"calls": self.calls, "wrong": self.wrong[:5], "versions": len(self.versions), "mib": self.mib}
        return json.dumps({**seen, "sequence": self.retriever.delta_sequence, "version": self.retriever.version})


def work(load: Load, first: int) -> None:
    """A worker's life."""
    load.run(1, first)
    load.retriever.close()
    sys.stdout.write(load.report() + "\n")
    sys.stdout.flush()


def main(registry: str, flags: np.ndarray, calls: int) -> None:
    """Forks the workers, then calls itself."""
    share = calls // (THREADS + WORKERS)
    retriever = Retriever.open(registry)
    retriever.watch(0.05)
    load = Load(retriever, flags, share)
    workers = [forked(functools.partial(work, load, 100 * (number + 1))) for number in range(WORKERS)]
    load.run(THREADS, 0)
    retriever.close()
    codes = [exit_code(worker, SECONDS) for worker in workers]
    sys.stdout.write(load.report() + "\n")
    assert codes == [0] * WORKERS, codes


if __name__ == "__main__":
    main(sys.argv[1], np.memmap(sys.argv[2], np.int64, "r"), int(sys.argv[3]))
