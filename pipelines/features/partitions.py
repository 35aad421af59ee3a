"""Partitions: one partition's spilled rows become its sequences, its users and summaries of the features.

Reads the batches that ingestion spilled and, where the run appends to a previous one, what it needs of its files
(mostly the users alone). Writes files of ``sequences/`` and ``users/``, and the duplicates it rejects. Memory is
bounded by one partition, never by the data.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.files import link, write_aside, write_parquet
from pipelines.contracts.kinds import CountFeature
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.features.duplicates import by_split, repeats, unique
from pipelines.features.fitting import SideSummary, summarise
from pipelines.features.ingest import Spilled, read_spilled
from pipelines.features.task import Base, Job
from pipelines.features.totals import PartitionFacts
from pipelines.sequences.grouping import (
    Grouped,
    group_events,
    in_window,
    keep_users,
    merge,
    places_of,
    since,
    with_last_out,
    with_more_users,
    with_time_splits,
)
from pipelines.sequences.partition_users import Users
from pipelines.sequences.segments import MAX_SEGMENTS, Partition, joined, part_name, segment_name, write_part
from pipelines.sequences.window_counts import window_counts
from pipelines.tables.event_checks import checked_schema

# Ids of users without a row in the users table that are kept as examples.
_EXAMPLES = 100


@dataclass(frozen=True)
class _Built:
    """A partition's sequences, written: its ``users`` as they are now, and the events that are to be counted.

    ``found``: those asked to be forgotten whom the previous run had.
    """

    users: Users
    counted: Grouped
    duplicates: int
    rewritten: bool
    found: frozenset[int] = frozenset()


def build_partition(job: Job, part: int, spilled: Sequence[Spilled]) -> PartitionFacts:
    """Builds one partition: writes its files of ``sequences/`` and ``users/``, returns its facts.

    Raises:
        SchemaError: the users table has a user twice.
    """
    profiles = read_spilled(spilled, "users", part, job.users_layout)
    refuse_twice(profiles["user_id"], job.schema)
    profiled = pc.array_take(joined(profiles["user_id"]), pc.array_sort_indices(joined(profiles["user_id"])))
    events = _recent(job, read_spilled(spilled, "events", part, checked_schema(job.id_type)))
    last_out = job.schema.split.leave_last_out
    if job.base is None:
        built = _afresh(job, part, group_events(events, profiled, leave_last_out=last_out), profiled)
    else:
        new = group_events(events, profiled.slice(0, 0), leave_last_out=last_out)
        append = _appended if job.window is None else _rolled
        built = append(job, job.base, part, new, profiled)
    del events
    users = _users_table(job, part, built, profiles)
    write_parquet(users, Path(job.out) / "users" / part_name(part, job.partitions))
    trained = built.counted.splits == 0
    rows, counts = _counted(built.counted.rows[trained], len(job.catalogue.item_ids))
    is_unknown = _unknown_users(job, built.users, profiled)
    return PartitionFacts(
        users=len(built.users.ids),
        events=[int(number) for number in np.bincount(built.counted.splits, minlength=3)],
        item_frequency=pa.table({"row": rows, "count": counts}),
        item_held_out=_held_out(job, built.counted),
        item_counts=_item_counts(job, built.counted),
        summary=_summary(job, users, built.users),
        duplicates=built.duplicates,
        profiles=len(profiles),
        nulls={name: profiles[name].null_count for name in profiles.column_names},
        rewritten=built.rewritten,
        found=sorted(built.found),
        new_users=built.users.new_in_test,
        unknown=int(built.users.events[is_unknown].sum()),
        unknown_users=built.users.ids.filter(pa.array(is_unknown)).slice(0, _EXAMPLES).cast(pa.string()).to_pylist(),
    )


def _unknown_users(job: Job, users: Users, profiled: pa.Array) -> npt.NDArray[np.bool_]:
    """``[users] bool``: those without a row in the users table; nobody where there is none."""
    if job.users_types is None:
        return np.zeros(len(users.ids), bool)
    return places_of(users.ids, profiled) < 0


def _held_out(job: Job, grouped: Grouped) -> pa.Table:
    """(row, split, count) of valid and test."""
    parts = [
        pa.table(
            {"row": pa.array([], pa.int32()), "split": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
        )
    ]
    for code, name in enumerate(SPLITS[1:], start=1):
        rows, counts = _counted(grouped.rows[grouped.splits == code], len(job.catalogue.item_ids))
        parts.append(pa.table({"row": rows, "split": pa.repeat(name, len(rows)), "count": counts}))
    return pa.concat_tables(parts)


def _recent(job: Job, events: pa.Table) -> pa.Table:
    """The events that are not older than the window."""
    if job.window is None or job.window.history_from is None:
        return events
    return events.filter(pc.greater_equal(events["time"], job.window.history_from))


def _afresh(job: Job, part: int, grouped: Grouped, profiled: pa.Array) -> _Built:
    found = unique(job, part, None, grouped)
    kept = found.events
    if job.schema.split.leave_last_out and len(kept.rows) < len(grouped.rows):
        kept = with_last_out(kept)
    _write_base(job, part, kept)
    used = _used(job, kept, profiled)
    return _Built(Users.of(used), used, _duplicates(job, used, found.duplicates), rewritten=True)


def _used(job: Job, stored: Grouped, profiled: pa.Array) -> Grouped:
    """What is used of the stored events: all, or those inside the window, of users with any or with a profile."""
    return stored if job.window is None else _alive(in_window(stored, job.window), profiled)


def _alive(grouped: Grouped, profiled: pa.Array) -> Grouped:
    """The same without users who have neither an event nor a profile."""
    return keep_users(grouped, (np.diff(grouped.offsets) > 0) | (places_of(grouped.user_ids, profiled) >= 0))


def _duplicates(job: Job, used: Grouped, found: int) -> int:
    """Duplicates to report: those rejected, which were ``found``, or those kept among the events in use."""
    if job.schema.validation.duplicates == "reject":
        return found
    return int(repeats(used, by_split=by_split(job)).sum())


def _rolled(job: Job, base: Base, part: int, new: Grouped, profiled: pa.Array) -> _Built:
    """Appends to the previous run's partition under a window that may have moved: all events are counted again.

    Events that have become too old stay in the files until the partition is rewritten, and so do those after the end.
    """
    assert job.window is not None
    partition = job.base_partitions[part]
    stored = partition.stored()
    forgotten = base.forgets and bool(job.forgotten.holds(stored.user_ids).any())
    old = since(_in_run(job, base, stored), job.window.history_from)
    found = unique(job, part, old, new)
    added = with_more_users(found.events, profiled.filter(pa.array(places_of(profiled, stored.user_ids) < 0)))
    whole = _alive(merge(old, added), profiled)
    rewritten = forgotten or (_is_due(base, part) and not job.window.is_whole)
    if rewritten:
        _write_base(job, part, whole)
    else:
        _append(job, base, part, partition, added)
    used = _used(job, whole, profiled)
    duplicates = _duplicates(job, used, found.duplicates)
    return _Built(Users.of(used), used, duplicates, rewritten, frozenset(job.found([stored.user_ids])))


def _is_due(base: Base, part: int) -> bool:
    """Whether it is this partition's turn to be rewritten."""
    return (base.generation + part) % MAX_SEGMENTS == 0


def _appended(job: Job, base: Base, part: int, new: Grouped, profiled: pa.Array) -> _Built:
    """Appends to the previous run's partition, or rewrites it if it is due or users leave it."""
    partition = job.base_partitions[part]
    is_due = partition.segments > 0 and _is_due(base, part)
    may_repeat = len(new.times) > 0 and base.last_time is not None and int(new.times.min()) <= base.last_time
    old = _read_base(job, base, partition) if base.recount or is_due or may_repeat else None
    found = unique(job, part, old, new)
    new, duplicates = found.events, found.duplicates
    known = Users.read(Path(base.dir) / "users" / part_name(part, job.partitions))
    forgotten = frozenset(job.found([known.ids]))
    users = Users.together([known, Users.of(new), Users.idle(profiled)])
    alive = (users.events > 0) | (places_of(users.ids, profiled) >= 0)
    if base.forgets:
        alive &= ~job.forgotten.holds(users.ids)
    rewritten = is_due or not bool(alive.all())
    added = with_more_users(new, profiled.filter(pa.array(places_of(profiled, known.ids) < 0)))
    if not rewritten and not base.recount:
        _append(job, base, part, partition, added)
        return _Built(users, new, duplicates, rewritten=False, found=forgotten)
    old = _read_base(job, base, partition) if old is None else old
    whole = merge(old, added)
    whole = keep_users(whole, places_of(whole.user_ids, users.ids.filter(pa.array(alive))) >= 0)
    whole = with_last_out(whole) if job.schema.split.leave_last_out else whole
    if rewritten:
        _write_base(job, part, whole)
    else:
        _append(job, base, part, partition, added)
    if base.recount and job.schema.validation.duplicates == "keep":
        duplicates = int(repeats(whole, by_split=by_split(job)).sum())
    return _Built(Users.of(whole), whole if base.recount else new, duplicates, rewritten, forgotten)


def _read_base(job: Job, base: Base, partition: Partition) -> Grouped:
    """The previous run's events of a partition, in this run's catalogue and split, without forgotten users."""
    old = _in_run(job, base, partition.read())
    return old if base.bounds is None else with_time_splits(old, base.bounds)


def _in_run(job: Job, base: Base, old: Grouped) -> Grouped:
    """The previous run's events in this run's catalogue, without forgotten users."""
    if base.forgets:
        old = keep_users(old, ~job.forgotten.holds(old.user_ids))
    return old if job.remap is None else dataclasses.replace(old, rows=job.remap[old.rows])


def _write_base(job: Job, part: int, grouped: Grouped) -> None:
    target = Path(job.out) / "sequences" / part_name(part, job.partitions)
    write_aside(target, lambda aside: write_part(grouped, aside))


def _append(job: Job, base: Base, part: int, partition: Partition, new: Grouped) -> None:
    """Takes the previous run's files over and puts the new events next to them."""
    folder = Path(job.out) / "sequences"
    for name in partition.names:
        link(partition.folder / name, folder / name)
    if len(new.user_ids):
        target = folder / segment_name(part, job.partitions, base.generation)
        write_aside(target, lambda aside: write_part(new, aside))


def _summary(job: Job, table: pa.Table, users: Users) -> SideSummary:
    """The summary of the users' features."""
    own = job.schema.id_column("user")
    features = tuple(
        feature.model_copy(update={"column": "user_id"}) if feature.source == own else feature
        for feature in job.schema.side("user")
    )
    return summarise(features, table, users.ids, users.train, job.as_of_us)


def _counted(rows: npt.NDArray[np.int32], items: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct rows and how often each occurs; by a table of all items unless that were much larger than the rows."""
    if items > 4 * len(rows) + 1_000_000:
        distinct, numbers = np.unique(rows, return_counts=True)
        return distinct, numbers
    table = np.bincount(rows, minlength=items)
    seen = np.flatnonzero(table)
    return seen.astype(np.int32), table[seen]


def refuse_twice(ids: pa.ChunkedArray, schema: DatasetSchema) -> None:
    """Checks that no user is in the users table twice.

    Raises:
        SchemaError: one is.
    """
    counts = pc.value_counts(ids)
    if len(counts) < len(ids):
        twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
        raise SchemaError(
            f"tables.users: expected each {schema.id_column('user')} once, {twice[0].as_py()!r} occurs several times "
            f"(and {len(twice) - 1} others in the same partition). Remove the duplicates."
        )


def _users_table(job: Job, part: int, built: _Built, profiles: pa.Table) -> pa.Table:
    """The users' raw columns in the order of the sequences; nulls where a user has no profile."""
    ids = built.users.ids
    table = pa.table(built.users.columns())
    places = pc.index_in(ids, value_set=joined(profiles["user_id"])) if len(profiles.column_names) > 1 else None
    for name in profiles.column_names:
        if name != "user_id":
            table = table.append_column(name, profiles[name].take(places))
    counted = built.counted
    features = job.schema.counts("user")
    if not features:
        return table
    own = places_of(counted.user_ids, ids)[counted.owners]
    for feature in features:
        chosen = _counted_events(job, counted, feature)
        for days, name in zip(feature.window_days, feature.raw_columns, strict=True):
            counts = window_counts(own[chosen], counted.times[chosen], len(ids), job.as_of_us, days)
            counts = counts + _counts_before(job, part, name, ids)
            table = table.append_column(name, pa.array(counts))
    return table


def _counts_before(job: Job, part: int, name: str, ids: pa.Array) -> npt.NDArray[np.int64]:
    """``[users] int64``: the previous run's counts, if this one counts only new events."""
    if job.base is None or job.base.recount:
        return np.zeros(len(ids), np.int64)
    path = Path(job.base.dir) / "users" / part_name(part, job.partitions)
    before = pq.ParquetFile(path).read(columns=["user_id", name])
    found = before[name].take(pc.index_in(ids, value_set=joined(before["user_id"])))
    return np.asarray(pc.fill_null(found, 0), np.int64)


def _counted_events(job: Job, grouped: Grouped, feature: CountFeature) -> Any:
    """``[events] bool``: the events of the feature's action that are not held out.

    Where the split is a moment, all events before the test window: what validates is history by then, and training
    counts again as of each example's moment.
    """
    by_moment = job.schema.split.bounds(job.window) is not None
    chosen = grouped.splits < SPLITS.index("test" if by_moment else "valid")
    if feature.action is not None:
        chosen = chosen & (grouped.actions == job.schema.action_names.index(feature.action))
    return chosen


def _item_counts(job: Job, grouped: Grouped) -> pa.Table:
    """(row, column, count) of the item side's count features in this partition."""
    parts = [
        pa.table(
            {"row": pa.array([], pa.int32()), "column": pa.array([], pa.string()), "count": pa.array([], pa.int64())}
        )
    ]
    for feature in job.schema.counts("item"):
        chosen = _counted_events(job, grouped, feature)
        rows, places = np.unique(grouped.rows[chosen], return_inverse=True)
        for days, name in zip(feature.window_days, feature.raw_columns, strict=True):
            counts = window_counts(places, grouped.times[chosen], len(rows), job.as_of_us, days)
            parts.append(pa.table({"row": rows, "column": pa.repeat(name, len(rows)), "count": counts}))
    return pa.concat_tables(parts)
