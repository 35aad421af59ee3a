"""Writes changes of ads into the registry's log: ``towerline apply-delta``.

Reads the live version's bundle with the log applied, and a table of ads; writes one entry of the log, one file: a
reader sees all of it or nothing. An entry keeps the ads' raw columns in their types and no vectors: each version embeds
them with its own item tower.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from index.inference.item_embedder import ItemEmbedder
from index.registry.change_feed import Changes, read_changes
from index.registry.delta_entry import CHANGES, Entry
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState, Fold
from index.registry.registry import Registry
from pipelines.contracts.errors import SchemaError
from pipelines.progress import SILENT, Progress


@dataclass(frozen=True)
class Applied:
    """Counts of an entry. ``version``: the live one. ``rebuild``: why the index should be rebuilt; None if it need not
    be."""

    version: str
    sequence: int
    upserted: int
    removed: int
    paused: int
    resumed: int
    seconds: float
    rebuild: str | None


def apply(registry: str | Path, items: Any, *, progress: Progress = SILENT) -> Applied:
    """Appends one entry to the registry's log.

    Args:
        registry: a folder or an fsspec URL.
        items: a table of ads as the items table is: a file, folder or glob, or anything with ``__arrow_c_stream__``. A
            column ``change`` holds upsert (also where it is empty), remove, pause or resume; for all but upsert the id
            is enough. An upsert sets the columns of the table, or the keys of its JSONL row; the others stay as they
            were.
        progress: shows that the changes are being checked and written.

    Raises:
        ArtifactError: nothing is live, or the version is damaged.
        SchemaError: the table cannot be read, or a row cannot be applied: its id is missing or occurs twice, its change
            is unknown, its item to remove, pause or resume is neither in the live version nor in the log, a cell does
            not fit its column, or the live version cannot embed the ad; then nothing is written.
    """
    started = time.perf_counter()
    opened = Registry(registry)
    with progress.waiting("apply-delta"):
        live = opened.open(verify=False)
        log = DeltaLog(opened.store)
        embedder = ItemEmbedder(live.bundle)
        state = DeltaState.opened(live.bundle, log, embedder)
        changes = read_changes(items, state, lambda: _named(log, state))
        after = _tried(state, changes, embedder)
        entry = log.append(changes.rows())
    return Applied(
        version=live.version,
        sequence=entry.sequence,
        upserted=changes.count("upsert"),
        removed=changes.count("remove"),
        paused=changes.count("pause"),
        resumed=changes.count("resume"),
        seconds=time.perf_counter() - started,
        rebuild=after.why_rebuild(),
    )


def _tried(state: DeltaState, changes: Changes, embedder: ItemEmbedder) -> DeltaState:
    """The live version's state with the changes.

    Raises:
        SchemaError: it cannot embed an ad.
    """
    # Later than anything that is in the bundle, so that it applies.
    sequence = max(state.sequence, state.bundle.delta_sequence) + 1
    fold = Fold(state, embedder)
    fold.apply(Entry(sequence, 0, changes.rows()))
    if fold.refused:
        first = next(iter(fold.refused))
        raise SchemaError(
            f"{len(fold.refused)} ads cannot be embedded by the live version, so nothing was written. The first is "
            f"{first!r}: {fold.refused[first]}"
        )
    return fold.state()


def _named(log: DeltaLog, state: DeltaState) -> frozenset[Any]:
    """The ids that the log names, in the type of the version's."""
    types, found = state.bundle.item_types, set(state.paused_ids)
    for entry in log.after(0):
        for change in CHANGES:
            found.update(types.ids(entry.ids(change)).drop_null().to_pylist())
    return frozenset(found)
