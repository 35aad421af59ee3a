"""Writes deltas: ``towerline apply-delta``. New and changed ads are embedded, removed and paused ones recorded.

Reads the live version's bundle (its item tower and vocabulary) and a table of ads; writes one entry of the log,
``deltas/<version>/<sequence>/``, by one rename: a reader sees all of it or nothing. An entry also keeps the ads'
raw columns, so that they can be embedded again for another version (``carry``).
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.inference.item_tower import LiteItemTower
from index.registry.bundle import ITEM_TOWER_FILE, Bundle
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
from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.vocabulary import canonical
from pipelines.progress import SILENT, Progress

CHANGE_COLUMN = "change"
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


@dataclass(frozen=True)
class _Changes:
    """A checked table of changes. ``raw``: the upserted ads' columns; ``ids``: item_id and change of the others."""

    raw: pa.Table
    ids: pa.Table
    known: dict[str, int] = field(default_factory=dict)

    def count(self, change: str) -> int:
        """Number of items with this change."""
        if change == "upsert":
            return int(self.raw.num_rows)
        return int(pc.sum(pc.equal(self.ids["change"], change)).as_py() or 0)


def apply(
    registry: str | Path, items: Path | pa.Table, *, clock: Clock = time.time, progress: Progress = SILENT
) -> Applied:
    """Appends one delta to the live version's log.

    Args:
        registry: a folder or an fsspec URL.
        items: a table of ads as in the items table, or its Parquet file. A column ``change`` holds upsert (the
            default without the column), remove, pause or resume; for all but upsert the id is enough.
        clock: seconds since the epoch, for features relative to now.
        progress: shows that the delta is being embedded and written.

    Raises:
        ArtifactError: nothing is live, or the version is damaged.
        SchemaError: an id is missing or duplicated, a change is unknown, an item to remove, pause or resume is unknown,
            or a column has the wrong type; then nothing is written.
    """
    started = time.perf_counter()
    table = pq.read_table(items) if isinstance(items, Path) else items
    opened = Registry(registry)
    with progress.waiting("apply-delta"), opened.store.lock():
        live = opened.open(verify=False)
        log = DeltaLog(opened.store, live.version)
        state = replay(live.bundle, log)
        changes = _checked(table, live.bundle, state)
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


def _checked(table: pa.Table, bundle: Bundle, state: DeltaState) -> _Changes:
    id_column = bundle.schema.id_column("item")
    if id_column not in table.column_names:
        raise SchemaError(f"delta: expected a column {id_column!r}, found {', '.join(table.column_names)}.")
    ids = canonical(table[id_column].combine_chunks())
    wanted = bundle.vocabulary.item_ids.type
    if ids.null_count:
        raise SchemaError(f"delta: expected an id in every row, {ids.null_count} are null.")
    if ids.type != wanted:
        raise SchemaError(f"delta: expected ids of type {wanted} in {id_column!r}, got {ids.type}.")
    counts = pc.value_counts(ids)
    twice = (
        [entry["values"].as_py() for entry in counts if entry["counts"].as_py() > 1] if len(counts) < len(ids) else []
    )
    if twice:
        raise SchemaError(f"delta: expected each id once, {twice[0]!r} occurs more than once ({len(twice)} such ids).")
    change = (
        table[CHANGE_COLUMN].combine_chunks().fill_null("upsert")
        if CHANGE_COLUMN in table.column_names
        else pa.array(["upsert"] * len(ids))
    )
    unknown = sorted(set(change.to_pylist()) - set(CHANGES))
    if unknown:
        raise SchemaError(f"delta: expected a change among {', '.join(CHANGES)}, got {unknown[0]!r}.")
    table = table.set_column(table.column_names.index(id_column), id_column, ids)
    upserts = pc.equal(change, "upsert")
    others = pa.table({"item_id": ids, "change": change}).filter(pc.invert(upserts))
    strangers = others.filter(pa.array(state.rows_of(others["item_id"].combine_chunks()) < 0))
    if strangers.num_rows:
        first = strangers.slice(0, 1).to_pylist()[0]
        raise SchemaError(
            f"delta: cannot {first['change']} {first['item_id']!r}: no such item in the live version "
            f"({strangers.num_rows} such ids)."
        )
    raw = table.filter(upserts)
    return _Changes(raw.drop_columns(CHANGE_COLUMN) if CHANGE_COLUMN in raw.column_names else raw, others)


def append(
    store: Store, log: DeltaLog, bundle: Bundle, state: DeltaState, changes: _Changes, clock: Clock
) -> DeltaState:
    """Embeds and writes one entry; returns the state with it. The caller holds the registry's lock."""
    sequence = state.sequence + 1
    rows = catalogue_rows(changes.raw, bundle)
    vectors = embed(changes.raw, bundle, clock)
    with tempfile.TemporaryDirectory(prefix="towerline-delta-") as folder:
        staged = Path(folder) / entry_name(sequence)
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


def _changes_since(old: Bundle, log: DeltaLog, since: str | None, new: Bundle, state: DeltaState) -> _Changes:
    """The latest change of each item in the entries since then, and all pauses in effect."""
    id_column = new.schema.id_column("item")
    latest: dict[Any, tuple[str, pa.Table | None]] = {}
    for sequence in log.sequences():
        entry = log.open(sequence)
        if since is not None and entry.manifest.created_at < since:
            continue
        raw = pq.read_table(entry.dir / RAW_FILE)
        for place, item_id in enumerate(raw[id_column].to_pylist() if raw.num_rows else []):
            latest[item_id] = ("upsert", raw.slice(place, 1))
        for item_id in Delta.read(entry).removed.to_pylist():
            latest[item_id] = ("remove", None)
    paused = replay(old, log).paused_ids - state.paused_ids
    fresh = [table for change, table in latest.values() if change == "upsert" and table is not None]
    raw = pa.concat_tables(fresh, promote_options="default") if fresh else pa.table({id_column: _none(new)})
    removed = [item_id for item_id, (change, _) in latest.items() if change == "remove"]
    ids = pa.array([*removed, *sorted(paused)], new.vocabulary.item_ids.type)
    change = pa.array(["remove"] * len(removed) + ["pause"] * len(paused), pa.string())
    table = pa.table({"item_id": ids, "change": change})
    known = (state.rows_of(ids) >= 0) | np.isin(np.asarray(ids), np.asarray(raw[id_column]))
    return _Changes(raw, table.filter(pa.array(known | (np.asarray(change) == "pause"))))


def _none(bundle: Bundle) -> pa.Array:
    return pa.array([], bundle.vocabulary.item_ids.type)
