"""Calls per second in one thread, two threads, and two processes with one memory-mapped bundle; batches too.

Reads a bundle. ScaNN and LiteRT release the interpreter's lock while they work; the rest of a call holds it, and two
threads cannot run that part at the same time. Two processes can.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from index.retrieval.retriever import Retriever

K = 100
_CALLS = 4000
_TURNS = 5


def throughput(retriever: Retriever, bundle: Path, records: list[Any]) -> dict[str, Any]:
    """All figures, each the median of several turns."""
    return {
        **_threads(retriever, records),
        "lock_held_share": _lock_held_share(retriever, records),
        **_processes(bundle, records),
        **_batches(retriever, records),
    }


def _asking(retriever: Retriever, records: list[Any]) -> Callable[[int], None]:
    def ask(calls: int) -> None:
        for place in range(calls):
            retriever.retrieve(records[place % len(records)], K)

    return ask


def _threads(retriever: Retriever, records: list[Any]) -> dict[str, Any]:
    ask = _asking(retriever, records)
    ones, twos = [], []
    for _ in range(_TURNS):
        started = time.perf_counter()
        ask(_CALLS)
        ones.append(_CALLS / (time.perf_counter() - started))
        threads = [threading.Thread(target=ask, args=(_CALLS,)) for _ in range(2)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        twos.append(2 * _CALLS / (time.perf_counter() - started))
    return {
        "one_thread_qps": round(float(np.median(ones))),
        "two_threads_qps": round(float(np.median(twos))),
        "two_threads_over_one": round(float(np.median(np.array(twos) / np.array(ones))), 3),
    }


def _lock_held_share(retriever: Retriever, records: list[Any]) -> float:
    """Share of a call outside its search, which runs without the interpreter's lock; medians."""
    live = retriever._serving()
    vectors = [retriever.embed(record) for record in records]
    whole, search = [], []
    for record, vector in zip(records, vectors, strict=True):
        started = time.perf_counter()
        retriever.retrieve(record, K)
        between = time.perf_counter()
        live.searcher.search(vector, K)
        whole.append(between - started)
        search.append(time.perf_counter() - between)
    return round(1 - float(np.median(search) / np.median(whole)), 3)


def _processes(bundle: Path, records: list[Any]) -> dict[str, Any]:
    """Two processes at once, each with its own open bundle: calls per second relative to one process, and users per
    second in batches, as the workers of a batch job answer them.
    """
    context = multiprocessing.get_context("spawn")
    ratios, batches = [], []
    with context.Pool(2, _open, (bundle, records, context.Barrier(2))) as pool:
        for _ in range(_TURNS):
            alone = pool.apply(_rate, ("calls", False))
            together = [pool.apply_async(_rate, ("calls", True)) for _ in range(2)]
            ratios.append(sum(rate.get() for rate in together) / alone)
            together = [pool.apply_async(_rate, ("batches", True)) for _ in range(2)]
            batches.append(sum(rate.get() for rate in together))
    return {
        "two_processes_over_one": round(float(np.median(ratios)), 3),
        "two_processes_batch_qps": round(float(np.median(batches))),
    }


_IN_PROCESS: dict[str, Any] = {}


def _open(bundle: Path, records: list[Any], barrier: Any) -> None:
    retriever = Retriever.open(bundle, verify=False)

    def in_batches(users: int) -> None:
        retriever.retrieve_batch([records[place % len(records)] for place in range(users)], K)

    _IN_PROCESS.update(calls=_asking(retriever, records), batches=in_batches, barrier=barrier)


def _rate(what: str, together: bool) -> float:
    """Users per second of this process; ``together``: started at the same moment as the other one."""
    ask = _IN_PROCESS[what]
    ask(500)
    if together:
        _IN_PROCESS["barrier"].wait()
    started = time.perf_counter()
    ask(_CALLS)
    return _CALLS / (time.perf_counter() - started)


def _batches(retriever: Retriever, records: list[Any]) -> dict[str, Any]:
    rates = []
    for _ in range(_TURNS):
        started = time.perf_counter()
        retriever.retrieve_batch(records, K)
        rates.append(len(records) / (time.perf_counter() - started))
    return {"batch_qps": round(float(np.median(rates))), "batch_runs": [round(rate) for rate in rates]}
