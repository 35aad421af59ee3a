"""A server as gunicorn --preload starts it, run as its own process: opens a registry, watches, forks two workers.

    python -m tests.index.retrieval.live.prefork_driver REGISTRY ROUNDS

While workers are forked, threads call and watch all the time, so that some fork meets each lock held. A worker must
move to the version that the parent publishes next and count its calls. Prints the number of workers that did.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
import threading
import time

from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from tests.forks import exit_code, forked

RECORD = {"history": [1000, 1003], "country": "US"}
WORKERS, SECONDS = 2, 60


def work(retriever: Retriever, published: str, says: int) -> None:
    """A worker's life: calls of every kind until the version moves."""
    signal.alarm(SECONDS)
    counted = retriever.metrics.registry.get_sample_value("towerline_retrieve_seconds_count", {"plan": "search"})
    calls = 0
    os.write(says, b".")
    while retriever.version != published:
        retriever.retrieve(RECORD, 10)
        retriever.retrieve(RECORD, 10, where="price < 10")
        retriever.retrieve_batch([RECORD] * 300, 10)
        calls += 1
        time.sleep(0.001)
    now = retriever.metrics.registry.get_sample_value("towerline_retrieve_seconds_count", {"plan": "search"})
    assert counted is not None
    assert now is not None
    assert now >= counted + calls
    assert retriever.retrieve(RECORD, 10).version == published
    assert retriever.watch() is retriever._watcher
    retriever.close()
    retriever.watch(0.01)
    retriever.close()


def main(registry: str, rounds: int) -> None:
    """Forks, publishes, waits; several times, each with another pair of workers."""
    retriever = Retriever.open(registry)
    retriever.watch(0.01)
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            retriever.retrieve(RECORD, 10)
            retriever.retrieve(RECORD, 10, where=f"price < {time.monotonic() % 7:.3f}")

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    moved = 0
    for number in range(rounds):
        hears, says = os.pipe()
        names = Registry(registry).version_names()
        aim = names[(number + 1) % 2]
        workers = [forked(functools.partial(work, retriever, aim, says)) for _ in range(WORKERS)]
        os.read(hears, 1)
        Registry(registry).rollback(aim)
        moved += sum(exit_code(worker) == 0 for worker in workers)
        until = time.monotonic() + SECONDS
        while retriever.version != aim and time.monotonic() < until:
            time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join()
    retriever.close()
    sys.stdout.write(f"{moved}\n")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
