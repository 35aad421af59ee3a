"""Grouping: a partition's checked events to its users' time-ordered sequences, vectorised.

Pure: Arrow and NumPy in, Arrow and NumPy out. The order within a user is canonical (time, row, action, value, split),
so that any partitioning, any order of the input and any runner give the same sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Int64
from pipelines.contracts.hashing import as_sorted
from pipelines.contracts.schema import Window

_PACKED_LIMIT = 2**62
_TIME_UNITS = (86_400_000_000, 1_000_000, 1_000)


@dataclass(frozen=True)
class Grouped:
    """Sequences of a partition's users, in CSR form: the events of user ``u`` are ``offsets[u]:offsets[u + 1]``.

    Not ``EventLists``, which readers get: the features job sorts and merges these arrays, together with the users' ids.

    ``user_ids`` [users] ascending; ``offsets`` [users + 1] int64; ``rows`` int32, ``times`` int64, ``actions`` int8,
    ``values`` float32, ``splits`` int8, each [events].
    """

    user_ids: pa.Array
    offsets: Int64
    rows: npt.NDArray[np.int32]
    times: Int64
    actions: npt.NDArray[np.int8]
    values: npt.NDArray[np.float32]
    splits: npt.NDArray[np.int8]

    @property
    def owners(self) -> Int64:
        """``[events] int64``: the place of each event's user."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.offsets))


def order_by(groups: Int64, group_count: int, keys: Sequence[npt.NDArray[np.generic]]) -> Int64:
    """``[n] int64`` places that sort by group, then by the keys in turn.

    Each key is compared only among those still tied, with group and key packed into one integer where it fits:
    several times as fast as a lexicographic sort of all keys.
    """
    order = np.arange(len(groups))
    # A copy: the order is changed in place below.
    active, group, count = order.copy(), groups, group_count
    for key in keys:
        if len(active) == 0:
            break
        placed, same = _refine(group, count, key[order[active]].astype(np.int64))
        order[active] = order[active][placed]
        before, after = np.append(False, same), np.append(same, False)
        tied = before | after
        group = np.cumsum(~before)[tied]
        active = active[tied]
        group, count = (group - group[0], int(group[-1] - group[0]) + 1) if len(group) else (group, 0)
    return order


def _refine(group: Int64, group_count: int, key: Int64) -> tuple[Int64, npt.NDArray[np.bool_]]:
    """Places that sort by (group, key), and ``[n - 1] bool``: whether a place ties with the next."""
    low = int(key.min())
    span = int(key.max()) - low + 1
    unit = 1
    if group_count * span >= _PACKED_LIMIT:
        unit = next((unit for unit in _TIME_UNITS if not ((key - low) % unit).any()), 1)
    if group_count * (span // unit + 1) < _PACKED_LIMIT:
        packed = group * (span // unit + 1) + (key - low) // unit if unit > 1 else group * span + (key - low)
        placed = np.argsort(packed)
        in_order = packed[placed]
        return placed, in_order[1:] == in_order[:-1]
    placed = np.lexsort((key, group))
    sorted_group, sorted_key = group[placed], key[placed]
    return placed, (sorted_group[1:] == sorted_group[:-1]) & (sorted_key[1:] == sorted_key[:-1])


def _as_ordered(values: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Integers in the order of the floats (IEEE 754: negative ones run backwards)."""
    bits = values.view(np.int32)
    return np.where(bits < 0, np.int32(-(2**31)) - bits - 1, bits).astype(np.int32)


def merge(base: Grouped, new: Grouped) -> Grouped:
    """Both together, in canonical order: the same as grouping all their events at once.

    Meant for a ``new`` much smaller than ``base``: a copy of the base's columns, and a sort of only those users
    with an old and a new event at the same moment.
    """
    user_ids, base_places, new_places = _union(base.user_ids, new.user_ids)
    owners = new_places[new.owners]
    starts = np.zeros(len(user_ids) + 1, np.int64)
    np.add.at(starts, base_places + 1, np.diff(base.offsets))
    starts = np.cumsum(starts)
    after = bisect(base.times, starts[owners], starts[owners + 1], new.times)
    places = after + np.arange(len(owners))
    is_new = np.zeros(len(base.rows) + len(new.rows), bool)
    is_new[places] = True
    columns = [_interleaved(is_new, *pair) for pair in zip(_columns(base), _columns(new), strict=True)]
    counts = np.diff(starts) + np.bincount(owners, minlength=len(user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    # ``after`` is past every old event of the same moment: a tie, if any, is with the one right before.
    before = np.maximum(after - 1, 0)
    tied = (after > starts[owners]) & (base.times[before] == new.times) if len(base.times) else np.zeros(0, bool)
    return _resorted(Grouped(user_ids, offsets, *columns), np.unique(owners[tied]))


def _columns(grouped: Grouped) -> list[npt.NDArray[Any]]:
    return [grouped.rows, grouped.times, grouped.actions, grouped.values, grouped.splits]


def _interleaved(is_new: npt.NDArray[np.bool_], base: npt.NDArray[Any], new: npt.NDArray[Any]) -> npt.NDArray[Any]:
    merged = np.empty(len(is_new), base.dtype)
    merged[is_new] = new
    merged[~is_new] = base
    return merged


def with_time_splits(grouped: Grouped, bounds: Sequence[int]) -> Grouped:
    """The same with splits coded by time: ``bounds`` are the first moments of valid and of test."""
    splits = np.searchsorted(np.asarray(bounds, np.int64), grouped.times, side="right").astype(np.int8)
    return dataclasses.replace(grouped, splits=splits)


def since(grouped: Grouped, moment_us: int | None) -> Grouped:
    """The same without the events before a moment (None: with all of them); users stay, even without events."""
    return grouped if moment_us is None else keep_events(grouped, grouped.times >= moment_us)


def in_window(grouped: Grouped, window: Window) -> Grouped:
    """The events inside a window, with its splits; users stay, even without events."""
    kept = since(grouped, window.history_from)
    return with_time_splits(keep_events(kept, kept.times < window.end), window.bounds)


def alive(grouped: Grouped, profiled: pa.Array) -> Grouped:
    """The same without users who have neither an event nor a profile (``profiled``: ids, ascending)."""
    return keep_users(grouped, (np.diff(grouped.offsets) > 0) | (places_of(grouped.user_ids, profiled) >= 0))


def union_ids(pieces: Sequence[pa.Array]) -> pa.Array:
    """All ids of pieces each ascending and unique, ascending and unique again."""
    whole = max(pieces, key=len)
    for piece in pieces:
        if piece is whole or len(piece) == 0:
            continue
        unknown = places_of(piece, whole) < 0
        if unknown.any():
            whole = pa.concat_arrays([whole, piece.filter(pa.array(unknown))])
            whole = whole.take(pa.array(as_sorted(whole)))
    return whole


def places_of(ids: pa.Array, among: pa.Array) -> Int64:
    """``[n] int64``: the place of each id among ids that are ascending and unique; -1 where it is not there."""
    if ids.equals(among):
        return np.arange(len(ids))
    if not pa.types.is_int64(ids.type):
        return np.asarray(pc.fill_null(pc.index_in(ids, value_set=among), -1), np.int64)
    wanted, known = np.asarray(ids, np.int64), np.asarray(among, np.int64)
    if len(known) == 0:
        return np.full(len(wanted), -1, np.int64)
    places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[places] == wanted, places, -1)


def _union(one: pa.Array, other: pa.Array) -> tuple[pa.Array, Int64, Int64]:
    """All ids ascending, and the places of either side's ids among them."""
    merged = union_ids([one, other])
    return merged, places_of(one, merged), places_of(other, merged)


def bisect(times: Int64, low: Int64, high: Int64, wanted: Int64) -> Int64:
    """``[n] int64``: for each wanted time the first place in ``times[low:high]`` (ascending) that is later."""
    low, high = low.copy(), high.copy()
    while (open_ := np.flatnonzero(low < high)).size:
        middle = (low[open_] + high[open_]) // 2
        right = times[middle] <= wanted[open_]
        low[open_] = np.where(right, middle + 1, low[open_])
        high[open_] = np.where(right, high[open_], middle)
    return low


def _resorted(grouped: Grouped, users: Int64) -> Grouped:
    """The same with the events of some users sorted again."""
    if len(users) == 0:
        return grouped
    counts = np.diff(grouped.offsets)[users]
    owners = np.repeat(np.arange(len(users)), counts)
    ends = np.cumsum(counts)
    places = np.repeat(grouped.offsets[users] - (ends - counts), counts) + np.arange(int(ends[-1]))
    columns = [column.copy() for column in _columns(grouped)]
    rows, times, actions, values, splits = (column[places] for column in columns)
    order = order_by(owners, len(users), (times, rows, actions, _as_ordered(values), splits))
    for column in columns:
        column[places] = column[places[order]]
    return Grouped(grouped.user_ids, grouped.offsets, *columns)


def with_more_users(grouped: Grouped, user_ids: pa.Array) -> Grouped:
    """The same with further users that have no events."""
    if len(user_ids) == 0:
        return grouped
    ids, places, _ = _union(grouped.user_ids, user_ids)
    counts = np.zeros(len(ids), np.int64)
    counts[places] = np.diff(grouped.offsets)
    return dataclasses.replace(grouped, user_ids=ids, offsets=np.concatenate([[0], np.cumsum(counts)]))


def keep_users(grouped: Grouped, kept: npt.NDArray[np.bool_]) -> Grouped:
    """The same without the users where ``kept`` (``[users] bool``) is false."""
    if kept.all():
        return grouped
    events = kept[grouped.owners]
    counts = np.diff(grouped.offsets)[kept]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Grouped(grouped.user_ids.filter(pa.array(kept)), offsets, *(column[events] for column in _columns(grouped)))


def keep_events(grouped: Grouped, kept: npt.NDArray[np.bool_]) -> Grouped:
    """The same without the events where ``kept`` (``[events] bool``) is false; users stay, even without events."""
    if kept.all():
        return grouped
    counts = np.bincount(grouped.owners[kept], minlength=len(grouped.user_ids))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Grouped(grouped.user_ids, offsets, *(column[kept] for column in _columns(grouped)))


def with_last_out(grouped: Grouped) -> Grouped:
    """The same with each user's last event in test, the one before in valid, the rest in train."""
    return dataclasses.replace(grouped, splits=_last_out(grouped.offsets))


def group_events(events: pa.Table, more_users: pa.Array, *, leave_last_out: bool) -> Grouped:
    """Groups a partition's events by user.

    Args:
        events: ``checked_schema``, any order.
        more_users: ids of users that are in the result even without events.
        leave_last_out: give each user's last event to test, the one before to valid, the rest to train.
    """
    ids = events["user_id"].combine_chunks() if events["user_id"].num_chunks != 1 else events["user_id"].chunk(0)
    user_ids, owners = _users(ids, more_users)
    columns = [np.asarray(events[name]) for name in ("row", "time", "action", "value", "split")]
    grouped = _sorted(user_ids, owners, columns)
    return with_last_out(grouped) if leave_last_out else grouped


def gather(pieces: Sequence[Grouped]) -> Grouped:
    """Several pieces of one partition together, in canonical order; a user may be in any number of them."""
    if len(pieces) == 1:
        return pieces[0]
    ids = pa.concat_arrays([piece.user_ids for piece in pieces])
    user_ids, places = _users(ids, ids.slice(0, 0))
    owners = np.repeat(places, np.concatenate([np.diff(piece.offsets) for piece in pieces]))
    columns = [np.concatenate(parts) for parts in zip(*(_columns(piece) for piece in pieces), strict=True)]
    return _sorted(user_ids, owners, columns)


def _sorted(user_ids: pa.Array, owners: Int64, columns: Sequence[npt.NDArray[Any]]) -> Grouped:
    """Sequences of unsorted events: ``owners`` [events] are places in ``user_ids``."""
    rows, times, actions, values, splits = columns
    order = order_by(owners, len(user_ids), (times, rows, actions, _as_ordered(values), splits))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owners, minlength=len(user_ids)))])
    return Grouped(user_ids, offsets, *(column[order] for column in columns))


def _users(ids: pa.Array, more_users: pa.Array) -> tuple[pa.Array, Int64]:
    """All users ascending, and ``[events] int64`` the place of each event's user."""
    encoded = pa.concat_arrays([ids, more_users]).dictionary_encode()
    places = as_sorted(encoded.dictionary)
    ranks = np.empty(len(places), np.int64)
    ranks[places] = np.arange(len(places))
    return encoded.dictionary.take(pa.array(places)), ranks[np.asarray(encoded.indices)[: len(ids)]]


def _last_out(offsets: Int64) -> npt.NDArray[np.int8]:
    splits = np.zeros(int(offsets[-1]), np.int8)
    counts = np.diff(offsets)
    splits[offsets[1:][counts >= 1] - 1] = 2
    splits[offsets[1:][counts >= 2] - 2] = 1
    return splits
