"""Lays out a version with changes: fresh ads join at the end, dead ones leave; the bundle's own parts stay as they are.

What grows with fresh ads (ids, vectors, attributes, leaves, popularity) is made once per fresh ad; what a pause or a
removal changes is a mask.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from index.inference.item_ids import ItemIds
from index.inference.records import RecordReader
from index.inference.request_ids import IdsLike, int64_ids, num_ids, text_ids
from index.registry.delta_search import DeltaSearcher
from index.registry.deltas import DeltaState
from index.retrieval.live.version import MIB, ServingVersion, attributes_of
from index.rules.eligible import EligibleCache
from index.rules.planner import Planner
from index.search.growing_vectors import GrowingVectors
from index.search.leaves import Leaves
from index.search.searcher import Rows, Scores, Vectors
from index.search.ties import TieOrder
from pipelines.contracts.arrays import Bools


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
    """The version with its changes applied.

    Args:
        base: the version as it was opened.
        before: the version after some of the changes; it is used again if no ad has joined since.
        state: the changes applied.
        growing: the base's vectors, to which the fresh ones are appended.
    """
    same = state.num_fresh == before.num_items - base.num_items
    laid_out = with_dead(before if same else _with_fresh(base, state, growing), state.dead)
    return dataclasses.replace(laid_out, delta_sequence=state.sequence)


def _with_fresh(base: ServingVersion, state: DeltaState, growing: GrowingVectors) -> ServingVersion:
    bundle = base.bundle
    fresh_ids = state.fresh_items["item_id"].cast(bundle.vocabulary.item_ids.type).combine_chunks()
    ties = TieOrder.of(bundle.vocabulary.item_ids, fresh_ids.to_pylist())
    items = FreshItemIds(base.items, fresh_ids)
    vectors = growing.with_fresh(state.fresh_vectors)
    catalogue = pa.concat_tables([bundle.items, state.fresh_items])
    planner = grown_planner(base.planner, vectors, state.fresh_vectors, state.log_values)
    return dataclasses.replace(
        base,
        items=items,
        vectors=vectors,
        tower=base.tower.over(vectors),
        reader=RecordReader(bundle.schema, items, base.tower.history_length, base.reader.clock),
        planner=dataclasses.replace(planner, ties=ties),
        attributes=attributes_of(bundle, catalogue),
        popularity=base.popularity.with_fresh(state.fresh_popularity, ties),
        catalogue=catalogue,
    )


def with_dead(version: ServingVersion, dead: Bools) -> ServingVersion:
    """The version in which just the rows ``dead [items] bool`` are not shown: by no searcher, source or rule."""
    searcher, alive = version.bundle.searcher, None
    first_fresh = version.bundle.num_items
    if dead.any() or version.num_items > first_fresh:
        searcher, alive = DeltaSearcher(searcher, version.vectors[first_fresh:], dead, version.planner.ties), ~dead
    return dataclasses.replace(
        version,
        searcher=searcher,
        planner=dataclasses.replace(version.planner, searcher=searcher, alive=alive),
        eligibles=EligibleCache(int(version.settings.rule_cache_mib * MIB)),
    )


def grown_planner(planner: Planner, vectors: Vectors, fresh: Vectors, log_values: Scores | None) -> Planner:
    """Adds fresh rows to the leaf with the nearest centroid.

    Args:
        planner: of the version as it was opened.
        vectors: ``[items + fresh, dim] float32``.
        fresh: ``[fresh, dim] float32``.
        log_values: ``[items + fresh] float32``; None without a value.
    """
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
    return dataclasses.replace(planner, vectors=vectors, leaves=leaves, log_values=log_values)
