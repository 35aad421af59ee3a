"""Prepares the next batches during the current training step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")


def prefetched(source: Iterator[T], ahead: int = 2) -> Iterator[T]:
    """Yields the items of ``source``, produced in a thread that is at most ``ahead`` batches ahead.

    An error of the source is raised here. A consumer that stops early ends the thread.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(ahead)
    stopped = threading.Event()

    def put(entry: tuple[T | None, BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def produce() -> None:
        try:
            for batch in source:
                put((batch, None))
                if stopped.is_set():
                    return
            put((None, None))
        except BaseException as err:  # handed to the consumer, whatever it is
            put((None, err))

    thread = threading.Thread(target=produce, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            if batch is None:
                return
            yield batch
    finally:
        stopped.set()
        thread.join()
