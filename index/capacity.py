"""What a build will need, before it starts: memory, disk and time, from the size of the catalogue.

Reads and writes nothing. The formulas count what is held (each term says what it is); only the rates of time are
measured, and scaled by a probe of this machine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from index.settings import IndexSettings, ReorderType
from index.tuning import Report
from pipelines.errors import ConfigError

GIB = 1 << 30
_BYTES_A_NUMBER: dict[ReorderType, int] = {"float32": 4, "bf16": 2, "int8": 1}
# What a Python process with NumPy, Arrow and ScaNN holds before any data.
_PROCESS_BYTES = 250 << 20


@dataclass(frozen=True)
class Forecast:
    """What a build is predicted to need. Bytes and seconds."""

    memory_bytes: int
    disk_bytes: int
    build_seconds: float
    tune_seconds: float


def forecast(items: int, dim: int, settings: IndexSettings) -> Forecast:
    """Predicts the peak memory, the bundle's size on disk, and the time, for the most demanding tree tried.

    Args:
        items: rows.
        dim: numbers a vector.
        settings: which storages of vectors may be tried, shards, the tuning's time.
    """
    widest = max(_BYTES_A_NUMBER[storage] for storage in settings.reorder_types)
    vectors = 4 * items * dim
    stored = widest * items * dim
    # 4 bits for each two dimensions, twice with SOAR; a leaf number an item, twice with SOAR.
    codes = 2 * items * -(-dim // 4) + 2 * 4 * items
    # The climb holds the best tree and the one being tried.
    trees = 2 * (stored + codes)
    queries = 2 * settings.tuning_queries * (4 * dim + 4 * 100) + (64 << 20)
    memory = _PROCESS_BYTES + vectors + trees + queries
    disk = vectors + stored + codes
    build = _build_seconds(items, dim, settings)
    return Forecast(memory, disk, build, max(0.0, settings.tuning_seconds - build))


def _build_seconds(items: int, dim: int, settings: IndexSettings) -> float:
    """Assigning each vector to its leaf costs items · √items · dim multiplications, which a probe times here."""
    threads = settings.threads or os.cpu_count() or 1
    return float(items * float(items) ** 0.5 * dim / (_multiplications_a_second() * threads))


def _multiplications_a_second() -> float:
    """Of one thread, by a small matrix product: about a hundredth of a second."""
    left = np.ones((256, 256), np.float32)
    start = time.perf_counter()
    for _ in range(20):
        left @ left
    return float(20 * 256**3 / (time.perf_counter() - start))


def check_budget(items: int, dim: int, settings: IndexSettings, report: Report) -> Forecast:
    """Predicts, tells, and refuses a build that would exceed a budget of the settings.

    Raises:
        ConfigError: a budget would be exceeded; the figure and the options are named.
    """
    predicted = forecast(items, dim, settings)
    report(
        f"plan: {items:,} items × {dim}: {predicted.memory_bytes / GIB:.2f} GiB of memory, "
        f"{predicted.disk_bytes / GIB:.2f} GiB of disk, {predicted.build_seconds:.0f} s for one build"
    )
    _refuse("memory_gib", predicted.memory_bytes / GIB, settings.memory_gib, "GiB of memory", settings)
    _refuse("disk_gib", predicted.disk_bytes / GIB, settings.disk_gib, "GiB of disk", settings)
    minutes = (predicted.build_seconds + predicted.tune_seconds) / 60
    _refuse("minutes", minutes, settings.minutes, "minutes", settings)
    return predicted


def _refuse(key: str, predicted: float, budget: float | None, unit: str, settings: IndexSettings) -> None:
    if budget is None or predicted <= budget:
        return
    options = ['index.reorder_types = ["int8"]'] if settings.reorder_types != ("int8",) else []
    options += [f"index.shards = {2 * settings.shards}", f"a larger index.{key}"]
    raise ConfigError(
        f"index.{key}: the build is predicted to need {predicted:.2f} {unit}, the budget is {budget:g}. "
        f"Nothing was started. Options: {', '.join(options)}."
    )
