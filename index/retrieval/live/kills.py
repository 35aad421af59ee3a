"""What entries of the log hide at once, before the rest of them is laid out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from index.registry.bundle import Bundle
from index.registry.delta_entry import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, Entry, Pauses
from index.registry.deltas import DeltaState
from pipelines.contracts.arrays import Bools


def hidden(state: DeltaState, entries: Iterable[Entry]) -> set[Any]:
    """Ads that are paused or removed after the entries, among those that an entry names.

    The fold of two flags over the entries in their order, beginning with the state's: an upsert ends a removal, a
    resume ends a pause, and neither ends the other.
    """
    bundle = state.bundle
    paused: dict[Any, bool] = {}
    removed: dict[Any, bool] = {}
    for entry in entries:
        if entry.sequence > bundle.delta_sequence:
            removed |= dict.fromkeys(_ids(bundle, entry, "upsert"), False)
            removed |= dict.fromkeys(_ids(bundle, entry, "remove"), True)
        paused |= dict.fromkeys(_ids(bundle, entry, "resume"), False)
        paused |= dict.fromkeys(_ids(bundle, entry, "pause"), True)
    return {
        item_id
        for item_id in [*paused, *removed]
        if paused.get(item_id, item_id in state.paused_ids) or removed.get(item_id, False)
    }


def _ids(bundle: Bundle, entry: Entry, change: str) -> list[Any]:
    ids: list[Any] = bundle.item_types.ids(entry.ids(change)).drop_null().to_pylist()
    return ids


def dead_rows(state: DeltaState, entries: Iterable[Entry]) -> Bools:
    """``[items + fresh] bool``: the state's dead rows, and those of the ads that later entries hide."""
    gone = hidden(state, entries)
    if not gone:
        return state.dead
    rows = state.rows_of(pa.array(list(gone), state.bundle.vocabulary.item_ids.type))
    dead = state.dead.copy()
    dead[rows[rows >= 0]] = True
    return dead


def as_entry(pauses: Pauses, state: DeltaState, before: Iterable[Entry]) -> Entry:
    """The pauses in force after entries that were removed, as one entry with the number of the last of them.

    Args:
        pauses: what the log kept.
        state: it applies to this,
        before: after these entries.
    """
    ids = state.bundle.item_types.ids(pauses.item_ids).drop_null()
    paused = {*state.paused_ids, *(one for entry in before for one in _ids(state.bundle, entry, "pause"))}
    resumed = pa.array(list(paused - set(ids.to_pylist())), ids.type)
    rows = {
        ID_COLUMN: pa.concat_arrays([ids, resumed]),
        CHANGE_COLUMN: pa.array(["pause"] * len(ids) + ["resume"] * len(resumed), pa.string()),
        SAID_COLUMN: pa.nulls(len(ids) + len(resumed), pa.list_(pa.string())),
    }
    return Entry(pauses.sequence, 0, pa.table(rows))
