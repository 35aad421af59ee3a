"""What a build will need, before it starts: memory, disk and time, from the size of the catalogue.

Reads and writes nothing. The formulas count what is held (each term says what it is); only the rates of time are
measured, and scaled by a probe of this machine.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import numpy as np

from index.measuring import Report
from index.settings import IndexSettings, ReorderType
from pipelines.errors import ConfigError

GIB = 1 << 30
_BYTES_A_NUMBER: dict[ReorderType, int] = {"float32": 4, "bf16": 2, "int8": 1}
# What a Python process with NumPy, Arrow and ScaNN holds besides the data (measured: 90 MB idle, 150 at work).
_PROCESS_BYTES = 150 << 20


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
    # In memory 4 bits a code, one code for each dimension (the finer of the two tried); on disk a byte a code.
    codes = items * dim // 2 + 2 * 4 * items
    build = _build_seconds(items, dim, settings)
    # The vectors, ScaNN's own copy while it builds, and the trees.
    memory = _PROCESS_BYTES + 2 * vectors + _trees_held(build, settings) * (stored + codes)
    disk = vectors + stored + items * dim + 2 * 4 * items
    return Forecast(memory, disk, build, max(0.0, settings.tuning_seconds - build))


def _trees_held(build_seconds: float, settings: IndexSettings) -> int:
    """The climb holds the best tree while it builds the next; without time for a second one there is one."""
    alone = settings.tree is not None or 2 * build_seconds > settings.tuning_seconds
    return 1 if alone else 2


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
