"""Applies deltas to a version that is serving: fresh ads join, dead ones leave, and a call waits at most for a mask.

Reads the log of a registry. Every call checks whether the log has a next entry (one stat). If so, the new pauses and
removals apply to that same call; fresh ads are laid out by a separate thread and join when it is done. An object store
is too slow for that: there a watcher reads the log itself at intervals.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from index.inference.item_embedder import ItemEmbedder
from index.inference.item_ids import ItemIds
from index.inference.query_tower import QueryTower
from index.inference.records import RecordReader
from index.inference.request_ids import IdsLike, int64_ids, num_ids, text_ids
from index.registry.delta_log import DeltaLog, Entry
from index.registry.delta_search import DeltaSearcher, MaskedSearcher
from index.registry.deltas import DeltaState
from index.retrieval.live.version import MIB, ServingVersion, attributes_of
from index.rules.eligible import Eligible, EligibleCache
from index.rules.planner import Planner
from index.search.growing_vectors import GrowingVectors
from index.search.leaves import Leaves
from index.search.searcher import Rows, Scores, Vectors
from pipelines.contracts.errors import TowerlineError

_LOG = logging.getLogger("towerline.retriever")


class FreshItemIds(ItemIds):
    """Ids of a catalogue followed by fresh rows; an id with several rows means its last one."""

    def __init__(self, base: ItemIds, fresh: pa.Array) -> None:
        self._base = base
        self._numbers = pa.types.is_integer(fresh.type)
        self._first_fresh = len(base)
        ids = fresh.to_pylist()
        self._fresh_row = {item_id: self._first_fresh + place for place, item_id in enumerate(ids)}
        known = base.of(np.arange(self._first_fresh, dtype=np.int32))
        self._by_row = np.concatenate([known, np.asarray(ids, dtype=known.dtype)])

    def rows(self, item_ids: IdsLike, what: str) -> Rows:
        """See ``ItemIds.rows``."""
        if not num_ids(item_ids, what):
            return np.zeros(0, np.int32)
        given = int64_ids(item_ids, what) if self._numbers else text_ids(item_ids, what)
        rows = self._base.rows(given, what)
        listed = given.tolist() if isinstance(given, np.ndarray) else given
        fresh = [self._fresh_row.get(item_id, -1) for item_id in listed]
        return np.where(np.asarray(fresh, np.int32) >= 0, fresh, rows).astype(np.int32)


def with_state(
    base: ServingVersion, before: ServingVersion, state: DeltaState, growing: GrowingVectors
) -> ServingVersion:
    """The version with its deltas applied.

    Args:
        base: the version without deltas.
        before: the version as it serves now; parts that the state did not change are taken from it.
        state: the deltas applied.
        growing: the base's vectors, to which the fresh ones are appended.
    """
    if state.num_fresh == before.num_items - base.num_items:
        return _masked(before, state)
    fresh = state.fresh_items["item_id"].cast(base.bundle.vocabulary.item_ids.type).combine_chunks()
    items = FreshItemIds(base.items, fresh)
    vectors = growing.with_fresh(state.fresh_vectors)
    tower = QueryTower(base.bundle.query_tower.read_bytes(), base.bundle.schema, base.bundle.vocabulary.user, vectors)
    catalogue = pa.concat_tables([base.bundle.items, state.fresh_items])
    grown = dataclasses.replace(
        base,
        items=items,
        vectors=vectors,
        tower=tower,
        reader=RecordReader(base.bundle.schema, items, tower.history_length, base.reader.clock),
        planner=_grown(base.planner, vectors, state.fresh_vectors, state.fresh_log_values),
        attributes=attributes_of(base.bundle, catalogue),
        catalogue=catalogue,
    )
    return _masked(grown, state)


def _masked(version: ServingVersion, state: DeltaState) -> ServingVersion:
    """Removes dead rows: the searcher does not return them, and no rule finds them."""
    planner = dataclasses.replace(version.planner, searcher=DeltaSearcher(version.bundle.searcher, state))
    alive = Eligible.of(~state.dead, planner.leaves, version.vectors, planner.log_values, gather_bytes=0)
    return dataclasses.replace(
        version,
        searcher=planner.searcher,
        planner=planner,
        alive=alive,
        delta_sequence=state.sequence,
        eligibles=EligibleCache(int(version.settings.rule_cache_mib * MIB)),
    )


def _grown(planner: Planner, vectors: Vectors, fresh: Vectors, log_values: Scores | None) -> Planner:
    """Adds fresh rows to the leaf with the nearest centroid."""
    values: Scores | None = planner.log_values
    if values is not None and log_values is not None:
        values = np.concatenate([values, log_values])
    leaves = planner.leaves
    if leaves is not None:
        nearest = np.argmax(fresh @ leaves.centroids.T, axis=1).astype(np.int32)
        by_leaf = np.argsort(nearest, kind="stable")
        # Each goes to the end of its leaf: fresh rows have the largest numbers, so rows stay ascending within a leaf.
        ends = leaves.offsets[nearest[by_leaf] + 1]
        rows = np.insert(leaves.rows, ends, (len(vectors) - len(fresh) + by_leaf).astype(np.int32))
        joined = np.cumsum(np.bincount(nearest, minlength=leaves.number))
        offsets = leaves.offsets + np.concatenate([[0], joined])
        leaves = Leaves(rows, offsets, leaves.centroids, np.concatenate([leaves.leaf_of_row, nearest]))
    return dataclasses.replace(planner, vectors=vectors, leaves=leaves, log_values=values)


class DeltaFollower:
    """Keeps one version up to date with its log. Safe to use from many threads."""

    def __init__(self, base: ServingVersion, log: DeltaLog) -> None:
        """Takes the version without deltas, and its log. Nothing is applied before ``catch_up`` or ``poll``."""
        self._base = base
        self._log = log
        self._live = base
        self._lock = threading.Lock()
        self._embedder = ItemEmbedder(base.bundle)
        self._state = DeltaState.of(base.bundle)
        self._seen = 0
        self._growing = GrowingVectors(base.vectors)
        self._waiting: list[Entry] = []
        self._thread: threading.Thread | None = None

    def after_fork(self) -> None:
        """In a forked process: renews locks, and applies what a thread of the parent was about to apply."""
        self._lock = threading.Lock()
        if self._waiting:
            self._fold()

    def poll(self) -> ServingVersion:
        """Returns the version to answer a call with, with all pauses and removals in the log applied.

        If the log cannot be read, the error is logged and the version continues as it is.
        """
        if self._log.has(self._seen + 1):
            self.look()
        # Read after the comparison: the thread that saw the entry has swapped the version before.
        return self._live

    def look(self) -> None:
        """Reads the log. Not to be used in a call on an object store, which is slow."""
        with self._lock:
            try:
                self._take_in()
            except (TowerlineError, OSError):
                _LOG.exception("the deltas of version %s cannot be read; it continues without them", self._base.version)

    def catch_up(self) -> None:
        """Applies everything before it returns: for opening a version."""
        with self._lock:
            self._state = DeltaState.opened(self._base.bundle, self._log, self._embedder)
            self._seen = self._state.sequence
            self._live = with_state(self._base, self._live, self._state, self._growing)

    def _take_in(self) -> None:
        last = self._log.last()
        entries = self._log.after(self._seen)
        self._seen = max([last, *(entry.sequence for entry in entries)])
        if not entries:
            return
        self._waiting += entries
        killed = _killed(self._live, entries)
        if len(killed):
            self._live = _without(self._live, killed)
        self._thread = threading.Thread(target=self._fold, name="towerline-deltas", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Returns when everything read so far has been applied."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _fold(self) -> None:
        """Applies waiting entries outside the lock, and swaps once no more have come meanwhile."""
        while True:
            with self._lock:
                state, entries = self._state, tuple(self._waiting)
            if not entries:
                return
            state = state.after(entries, self._embedder)
            grown = with_state(self._base, self._live, state, self._growing)
            with self._lock:
                if len(self._waiting) == len(entries):
                    self._state, self._waiting, self._live = state, [], grown
                    return


def _killed(live: ServingVersion, entries: Sequence[Entry]) -> Rows:
    """Rows that the entries remove or pause and do not restore: an upsert ends a removal, a resume ends a pause."""
    removed: set[Any] = set()
    paused: set[Any] = set()
    for entry in entries:
        if entry.sequence > live.bundle.delta_sequence:
            removed = (removed - _ids(live, entry, "upsert")) | _ids(live, entry, "remove")
        paused = (paused - _ids(live, entry, "resume")) | _ids(live, entry, "pause")
    gone = removed | paused
    if not gone:
        return np.zeros(0, np.int32)
    rows = live.items.rows(list(gone), "delta")
    return rows[rows >= 0]


def _ids(live: ServingVersion, entry: Entry, change: str) -> set[Any]:
    return set(live.bundle.item_types.ids(entry.ids(change)).drop_null().to_pylist())


def _without(live: ServingVersion, rows: Rows) -> ServingVersion:
    """The version without some more rows, at the cost of a mask; used until the whole state is laid out."""
    mask = np.ones(live.num_items, np.bool_) if live.alive is None else live.alive.mask.copy()
    mask[rows] = False
    alive = Eligible.of(mask, live.planner.leaves, live.vectors, live.planner.log_values, gather_bytes=0)
    dead = np.zeros(live.num_items, np.bool_)
    dead[rows] = True
    searcher = MaskedSearcher(live.searcher, dead)
    return dataclasses.replace(
        live,
        searcher=searcher,
        planner=dataclasses.replace(live.planner, searcher=searcher),
        alive=alive,
        eligibles=EligibleCache(int(live.settings.rule_cache_mib * MIB)),
    )
