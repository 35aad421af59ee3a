"""Threads: how many a job on this machine has. Imports no engine."""

from __future__ import annotations

import os

# Each thread of the features job holds a partition, about 200 MB.
_MAX_THREADS = 8


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def local_threads(tasks: int) -> int:
    """Threads for a number of tasks: one per core, at most eight."""
    return max(min(tasks, cores(), _MAX_THREADS), 1)
