"""Writes deltas: ``towerline apply-delta``. New and changed ads are embedded, removed and paused ones recorded.

Reads the live version's bundle (its item tower and vocabulary) and a table of ads; writes one entry of the log,
``deltas/<version>/<sequence>/``, by one rename: a reader sees all of it or nothing. An entry also keeps the ads'
raw columns in their types, so that they can be embedded again for another version (``carry``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.inference.item_tower import LiteItemTower
from index.registry.bundle import ITEM_TOWER_FILE, Bundle
from index.registry.change_feed import Changes, ItemTypes, read_changes
from index.registry.deltas import (
    CHANGES,
    FORMAT_VERSION,
    IDS_FILE,
    KIND,
    RAW_FILE,
    ROWS_FILE,
    VECTORS_FILE,
    Delta,
    DeltaLog,
    DeltaState,
    entry_name,
    replay,
)
from index.registry.registry import Registry
from index.registry.store import Store
from index.search.searcher import Vectors, check_vectors
from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import write_artifact
from pipelines.progress import SILENT, Progress
from pipelines.user_folders import temporary_folder

Clock = Callable[[], float]


@dataclass(frozen=True)
class Applied:
    """Counts of an entry. ``rebuild``: why the index should be rebuilt; None if it need not be."""

    version: str
    sequence: int
    upserted: int
    removed: int
    paused: int
    resumed: int
    seconds: float
    rebuild: str | None


def apply(registry: str | Path, items: Any, *, clock: Clock = time.time, progress: Progress = SILENT) -> Applied:
    """Appends one delta to the live version's log.

    Args:
        registry: a folder or an fsspec URL.
        items: a table of ads as the items table is: a file, folder or glob, or anything with ``__arrow_c_stream__``. A
            column ``change`` holds upsert (also where it is empty), remove, pause or resume; for all but upsert the id
            is enough.
        clock: seconds since the epoch, for features relative to now.
        progress: shows that the delta is being embedded and written.

    Raises:
        ArtifactError: nothing is live, or the version is damaged.
        SchemaError: the table cannot be read, or a row cannot be applied: its id is missing or occurs twice, its change
            is unknown, its item to remove, pause or resume is unknown, or a cell does not fit its column; then nothing
            is written.
    """
    started = time.perf_counter()
    opened = Registry(registry)
    with progress.waiting("apply-delta"), opened.store.lock():
        live = opened.open(verify=False)
        log = DeltaLog(opened.store, live.version)
        state = replay(live.bundle, log)
        changes = read_changes(items, live.bundle, state)
        after = append(opened.store, log, live.bundle, state, changes, clock)
    return Applied(
        version=live.version,
        sequence=after.sequence,
        upserted=changes.count("upsert"),
        removed=changes.count("remove"),
        paused=changes.count("pause"),
        resumed=changes.count("resume"),
        seconds=time.perf_counter() - started,
        rebuild=after.why_rebuild(),
    )


def append(
    store: Store, log: DeltaLog, bundle: Bundle, state: DeltaState, changes: Changes, clock: Clock
) -> DeltaState:
    """Embeds and writes one entry; returns the state with it. The caller holds the registry's lock."""
    sequence = state.sequence + 1
    rows = catalogue_rows(changes.raw, bundle)
    vectors = embed(changes.raw, bundle, clock)
    with temporary_folder("towerline-delta-") as folder:
        staged = folder / entry_name(sequence)
        with write_artifact(staged, kind=KIND, format_version=FORMAT_VERSION, inputs={"space": bundle.space}) as draft:
            pq.write_table(changes.raw, draft.dir / RAW_FILE)
            pq.write_table(rows, draft.dir / ROWS_FILE)
            pq.write_table(changes.ids, draft.dir / IDS_FILE)
            np.save(draft.dir / VECTORS_FILE, vectors)
            counts = {change: changes.count(change) for change in CHANGES}
            draft.facts.update(sequence=sequence, space=bundle.space, **counts)
        store.put(staged, f"{log.name}/{entry_name(sequence)}")
    return state.apply(Delta.read(log.open(sequence)))


def catalogue_rows(raw: pa.Table, bundle: Bundle) -> pa.Table:
    """The ads as rows of the bundle's items table; columns they lack are null.

    Raises:
        SchemaError: a column has another type than the bundle's.
    """
    columns = {}
    for wanted in bundle.items_schema:
        name = bundle.schema.id_column("item") if wanted.name == "item_id" else wanted.name
        if name not in raw.column_names:
            columns[wanted.name] = pa.nulls(len(raw), wanted.type)
            continue
        try:
            columns[wanted.name] = raw[name].combine_chunks().cast(wanted.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            raise SchemaError(f"delta: column {name!r}: expected {wanted.type}, got {raw[name].type} ({err}).") from err
    return pa.table(columns, schema=bundle.items_schema)


def embed(raw: pa.Table, bundle: Bundle, clock: Clock) -> Vectors:
    """``[ads, dim] float32`` by the bundle's own item tower; ads that the vocabulary lacks are embedded by content.

    Raises:
        SchemaError: a column does not fit its feature.
        ArtifactError: the bundle has no item tower, or a vector is not finite.
    """
    if raw.num_rows == 0:
        return np.zeros((0, bundle.dim), np.float32)
    encoded = encode_table(bundle.schema.side("item"), bundle.vocabulary.item, raw, as_of_us=round(clock() * 1_000_000))
    file = bundle.dir / ITEM_TOWER_FILE
    if not file.exists():
        raise ArtifactError(
            f"{bundle.dir}: the bundle has no item tower, so nothing new can be embedded. Build it again."
        )
    return check_vectors(LiteItemTower(file).vectors(encoded), "delta")


def carry(
    registry: Registry, source: str, target: str, since: str | None, clock: Clock = time.time
) -> DeltaState | None:
    """Copies the changes of one version to another, as one entry of its log.

    All pauses in effect on the source are copied. Upserts and removals are copied if the source's entry was written at
    ``since`` or later; ads are embedded again with the target's item tower. The caller holds the registry's lock.

    Args:
        registry: of both versions.
        source: the version that was live.
        target: the version about to go live.
        since: ISO time from which the target's tables lack the changes; None copies all.

    Returns:
        The target's state, None if there was nothing to copy.

    Raises:
        ArtifactError: an entry is damaged.
    """
    old = registry.open(source, verify=False).bundle
    log = DeltaLog(registry.store, source)
    if source == target or not log.sequences():
        return None
    new = registry.open(target, verify=False).bundle
    state = replay(new, DeltaLog(registry.store, target))
    changes = _changes_since(old, log, since, new, state)
    if changes.raw.num_rows == 0 and changes.ids.num_rows == 0:
        return None
    return append(registry.store, DeltaLog(registry.store, target), new, state, changes, clock)


def _changes_since(old: Bundle, log: DeltaLog, since: str | None, new: Bundle, state: DeltaState) -> Changes:
    """The latest change of each item in the entries since then, and all pauses in effect."""
    types = ItemTypes.of(new)
    latest: dict[Any, tuple[str, pa.Table | None]] = {}
    for sequence in log.sequences():
        entry = log.open(sequence)
        if since is not None and entry.manifest.created_at < since:
            continue
        raw = types.converted(pq.read_table(entry.dir / RAW_FILE))
        for place, item_id in enumerate(raw[types.id_column].to_pylist() if raw.num_rows else []):
            latest[item_id] = ("upsert", raw.slice(place, 1))
        for item_id in _ids_of(Delta.read(entry).removed, new).to_pylist():
            latest[item_id] = ("remove", None)
    fresh = [table for change, table in latest.values() if change == "upsert" and table is not None]
    empty = pa.table({types.id_column: pa.array([], new.vocabulary.item_ids.type)})
    raw = pa.concat_tables(fresh, promote_options="default") if fresh else empty
    removed = [item_id for item_id, (change, _) in latest.items() if change == "remove"]
    in_effect = pa.array(list(replay(old, log).paused_ids), old.vocabulary.item_ids.type)
    paused = set(_ids_of(in_effect, new).to_pylist()) - state.paused_ids
    ids = pa.array([*removed, *sorted(paused)], new.vocabulary.item_ids.type)
    change = pa.array(["remove"] * len(removed) + ["pause"] * len(paused), pa.string())
    known = (state.rows_of(ids) >= 0) | (np.asarray(change) == "pause")
    return Changes(raw, pa.table({"item_id": ids, "change": change}).filter(pa.array(known)))


def _ids_of(ids: pa.Array, bundle: Bundle) -> pa.Array:
    """Ids of another version in this one's type; those that it cannot have are left out."""
    return convert(ids, ColumnType.for_ids(bundle.vocabulary.item_ids.type)).values.drop_null()
