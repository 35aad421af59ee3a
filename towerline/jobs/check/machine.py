"""Memory and disk of this machine against estimates of what a night needs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from index.building.forecast import GIB, BuildTime, check_budget, forecast
from pipelines.contracts.errors import ConfigError
from pipelines.threads import local_threads
from pipelines.user_folders import nearest
from towerline.config import Config
from towerline.jobs.check.finding import Finding

# Measured (docs/scale.md): an event is spilled and stored once each, at up to 40 bytes; a worker thread of the features
# job holds a partition of about 200 MB.
_BYTES_PER_EVENT = 80
_PARTITION_BYTES = 200 << 20
_EVENTS_PER_PARTITION = 1_000_000
# The items are held raw, sorted and encoded.
_COPIES_OF_ITEMS = 3
# The optimizer has two numbers for each parameter, and its gradient may be as large.
_NUMBERS_PER_PARAMETER = 4


@dataclass(frozen=True)
class Needs:
    """Estimated bytes: memory at the peak of each stage, disk of all artifacts together."""

    memory: dict[str, int]
    disk: int


def needs_of(config: Config, events: int, items: int, users: int, item_bytes: int) -> Needs:
    """Estimates what a night needs.

    Args:
        config: the whole configuration.
        events, items, users: their numbers.
        item_bytes: of the items table in memory.
    """
    dim = config.towers.embedding_dim
    index = forecast(items, dim, config.index, BuildTime(0.0, 0.0, trees=1))
    threads = local_threads(-(-events // _EVENTS_PER_PARTITION))
    features = threads * _PARTITION_BYTES + _COPIES_OF_ITEMS * item_bytes
    towers = 4 * dim * (items + users) * _NUMBERS_PER_PARAMETER + 20 * events
    # Features, model, embeddings, bundle, and the bundle's copy in the registry.
    disk = _BYTES_PER_EVENT * events + 2 * item_bytes + 3 * 4 * dim * items + 2 * index.disk_bytes
    return Needs({"features": features, "train": towers, "build": index.memory_bytes}, disk)


def of_machine(config: Config, needs: Needs, items: int) -> Iterator[Finding]:
    """An error where the index exceeds a budget of the TOML, a warning where the machine has less than is needed."""
    predicted = forecast(items, config.towers.embedding_dim, config.index, BuildTime(0.0, 0.0, trees=1))
    try:
        check_budget(predicted, config.index)
    except ConfigError as err:
        yield Finding.of("index", err)
    stage = max(needs.memory, key=lambda name: needs.memory[name])
    yield _compared("memory", needs.memory[stage], available_memory(), f"{stage} needs about")
    free = shutil.disk_usage(nearest(config.work)).free
    yield _compared("disk", needs.disk, free, f"a night writes below {config.work} about")


def _compared(check: str, needed: int, there: int | None, what: str) -> Finding:
    found = f"{what} {_size(needed)}"
    if there is None:
        return Finding(check, "ok", f"{found}.")
    found = f"{found}, {_size(there)} are free."
    if needed <= there:
        return Finding(check, "ok", found)
    remedy = (
        "Take a larger machine, or fewer events and items." if check == "memory" else "Free some, or move paths.work."
    )
    return Finding(check, "warning", found, remedy)


def _size(number: int) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / (1 << 20):.0f} MiB"


def available_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that can be had without swapping; None where the system does not say."""
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
