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

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.files import link, write_aside, write_parquet
from pipelines.contracts.schema import DatasetSchema
from pipelines.features.duplicates import Unique, by_split, unique
from pipelines.features.fitting import SideSummary, summarise
from pipelines.features.ingest import Spilled, read_spilled
from pipelines.features.task import Base, Job
from pipelines.features.totals import PartitionFacts
from pipelines.sequences.counted import UNUSED, Counted, Use, held_out, in_count_window, item_counts, splits_in
from pipelines.sequences.day_lists import DayEvents, lists_name, write_day_lists
from pipelines.sequences.grouping import (
    Grouped,
    alive,
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
from pipelines.sequences.repeats import repeats
from pipelines.sequences.segments import MAX_SEGMENTS, Partition, joined, part_name, segment_name, write_part
from pipelines.tables.event_checks import checked_schema

# Ids of users without a row in the users table that are kept as examples.
_EXAMPLES = 100


@dataclass(frozen=True)
class _Built:
    """A partition's sequences, written: its ``users`` as they are now, and the events that are to be counted.

    ``found``: those asked to be forgotten whom the previous run had.
    """

    users: Users
    counted: Counted
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
        build = _appended if not job.base.recount else _recounted if job.window is None else _rolled
        built = build(job, job.base, part, new, profiled)
    del events
    users = _users_table(job, part, built, profiles)
    write_parquet(users, Path(job.out) / "users" / part_name(part, job.partitions))
    items, by_moment = len(job.catalogue.item_ids), _by_moment(job)
    rows, counts = built.counted.by_item(items, lambda use: use.splits == 0)
    is_unknown = _unknown_users(job, built.users, profiled)
    return PartitionFacts(
        users=len(built.users.ids),
        events=built.counted.by_split,
        item_frequency=pa.table({"row": rows, "count": counts}),
        item_held_out=held_out(built.counted, items),
        item_counts=item_counts(job.schema, built.counted, items, by_moment=by_moment),
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
    return _Built(Users.of(used), _all_of(job, used), _duplicates(job, used, found.duplicates), rewritten=True)


def _used(job: Job, stored: Grouped, profiled: pa.Array) -> Grouped:
    """What is used of the stored events: all, or those inside the window, of users with any or with a profile."""
    return stored if job.window is None else alive(in_window(stored, job.window), profiled)


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
    whole = alive(merge(old, added), profiled)
    rewritten = forgotten or _must_rewrite(job, part, found)
    if rewritten:
        _write_base(job, part, whole)
    else:
        _append(job, base, part, partition, added)
    used = _used(job, whole, profiled)
    duplicates = _duplicates(job, used, found.duplicates)
    return _Built(Users.of(used), _all_of(job, used), duplicates, rewritten, frozenset(job.found([stored.user_ids])))


def _all_of(job: Job, grouped: Grouped) -> Counted:
    return Counted.all_of(grouped, job.as_of_us)


def _must_rewrite(job: Job, part: int, found: Unique) -> bool:
    """Whether a partition under rolling windows is due, or would hide a repeat: one that is in another file than the
    event that it repeats, so that neither file's own days would tell when it leaves."""
    assert job.base is not None
    assert job.window is not None
    return not job.window.is_whole and (is_due(job.base, part) or found.across)


def is_due(base: Base, part: int) -> bool:
    """Whether it is this partition's turn to be rewritten."""
    return (base.generation + part) % MAX_SEGMENTS == 0


def _recounted(job: Job, base: Base, part: int, new: Grouped, profiled: pa.Array) -> _Built:
    """Appends to the previous run's partition and counts all events again; rewrites it if it is due or users leave."""
    partition = job.base_partitions[part]
    old = _read_base(job, base, partition)
    found = unique(job, part, old, new)
    known = Users.read(Path(base.dir) / "users" / part_name(part, job.partitions)).ids
    added = with_more_users(found.events, profiled.filter(pa.array(places_of(profiled, known) < 0)))
    whole = alive(merge(old, added), profiled)
    whole = with_last_out(whole) if job.schema.split.leave_last_out else whole
    rewritten = (partition.segments > 0 and is_due(base, part)) or bool((places_of(known, whole.user_ids) < 0).any())
    if rewritten:
        _write_base(job, part, whole)
    else:
        _append(job, base, part, partition, added)
    duplicates = _duplicates(job, whole, found.duplicates)
    return _Built(Users.of(whole), _all_of(job, whole), duplicates, rewritten, frozenset(job.found([known])))


def _appended(job: Job, base: Base, part: int, new: Grouped, profiled: pa.Array) -> _Built:
    """Appends to the previous run's partition, and counts new events and days that bounds have crossed.

    Its sequences are read only where it is to be rewritten, or where a new event may repeat an old one.
    """
    partition = job.base_partitions[part]
    crossed = partition.events_of(job.crossed_days) if job.crossed_days else None
    lacks_lists = bool(job.crossed_days) and crossed is None
    rolls_on = job.window is not None and not job.window.is_whole
    due = is_due(base, part) and (rolls_on or (job.window is None and partition.segments > 0))
    due |= lacks_lists and (job.window is None or rolls_on)
    may_repeat = len(new.times) > 0 and base.last_time is not None and int(new.times.min()) <= base.last_time
    old = _read_base(job, base, partition) if due or may_repeat else None
    if lacks_lists:
        stored = _in_run(job, base, partition.stored())
        crossed = DayEvents.of(stored, repeats(stored, by_split=False), job.crossed_days)
    elif crossed is not None and job.remap is not None:
        crossed = dataclasses.replace(crossed, rows=job.remap[crossed.rows])
    found = unique(job, part, old, new)
    known = Users.read(Path(base.dir) / "users" / part_name(part, job.partitions))
    users, counted, repeating = _changed(job, known, found, crossed, profiled)
    stays = (users.events > 0) | (places_of(users.ids, profiled) >= 0)
    rewritten = due or (not bool(stays.all()) if job.window is None else rolls_on and found.across)
    users, counted = _only(users, counted, stays)
    added = with_more_users(found.events, profiled.filter(pa.array(places_of(profiled, known.ids) < 0)))
    if rewritten:
        old = _read_base(job, base, partition) if old is None else old
        _write_base(job, part, alive(merge(old, added), profiled))
    else:
        _append(job, base, part, partition, added)
    rejects = job.schema.validation.duplicates == "reject"
    duplicates = found.duplicates if rejects else counted.repeats(repeating)
    return _Built(users, counted, duplicates, rewritten, frozenset(job.found([known.ids])))


def _changed(
    job: Job, known: Users, found: Unique, crossed: DayEvents | None, profiled: pa.Array
) -> tuple[Users, Counted, npt.NDArray[np.bool_]]:
    """All users with their events counted as of now, the events whose part changes, and which of these repeat."""
    assert job.base is not None
    new = found.events
    splits = new.splits if job.bounded is None else splits_in(job.bounded, new.times)
    if crossed is None or job.bounded is None or job.base.window is None:
        users = Users.together([known, Users.idle(new.user_ids), Users.idle(profiled)])
        places = places_of(new.user_ids, users.ids)[new.owners]
        counted = Counted(places, new.rows, new.actions, new.times, Use(splits, job.as_of_us))
        return counted.added_to(users), counted, found.repeats
    times = crossed.days * US_PER_DAY
    now, before = splits_in(job.bounded, times), splits_in(job.base.window, times)
    entering = crossed.users_of((now != UNUSED) & (before == UNUSED))
    users = Users.together([known, *map(Users.idle, (new.user_ids, entering, profiled))])
    counted = Counted(
        np.concatenate([places_of(piece.user_ids, users.ids)[piece.owners] for piece in (new, crossed)]),
        np.concatenate([new.rows, crossed.rows]),
        np.concatenate([new.actions, crossed.actions]),
        np.concatenate([new.times, times]),
        Use(np.concatenate([splits, now]), job.as_of_us),
        Use(np.concatenate([np.full(len(new.rows), UNUSED, np.int8), before]), job.base.as_of_us),
    )
    repeating = np.concatenate([found.repeats, crossed.repeats])
    return counted.added_to(users), counted, repeating


def _only(users: Users, counted: Counted, stays: npt.NDArray[np.bool_]) -> tuple[Users, Counted]:
    """The same without the users who do not stay (``[users] bool``)."""
    if stays.all():
        return users, counted
    places = np.where(stays, np.cumsum(stays) - 1, -1)
    kept = Users(users.ids.filter(pa.array(stays)), users.events[stays], users.train[stays], users.valid[stays])
    return kept, dataclasses.replace(counted, places=np.where(counted.places < 0, -1, places[counted.places]))


def _read_base(job: Job, base: Base, partition: Partition) -> Grouped:
    """The previous run's events of a partition, in this run's catalogue and split, without forgotten users.

    With rolling windows all that is stored and not too old, whether it is used yet or not.
    """
    if job.window is not None:
        return since(_in_run(job, base, partition.stored()), job.window.history_from)
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
    if job.listed_days:
        keeps = job.schema.validation.duplicates == "keep"
        repeating = repeats(grouped, by_split=False) if keeps else np.zeros(len(grouped.rows), bool)
        write_day_lists(grouped, repeating, job.listed_days, target.with_name(lists_name(target.name)))


def _append(job: Job, base: Base, part: int, partition: Partition, new: Grouped) -> None:
    """Takes the previous run's files over and puts the new events next to them."""
    folder = Path(job.out) / "sequences"
    for name in partition.files:
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
    for feature in job.schema.counts("user"):
        for days, name in zip(feature.window_days, feature.raw_columns, strict=True):
            chosen = in_count_window(job.schema, built.counted, feature, days, by_moment=_by_moment(job))
            counts = built.counted.by_user(len(ids), chosen) + _counts_before(job, part, name, ids)
            table = table.append_column(name, pa.array(counts))
    return table


def _by_moment(job: Job) -> bool:
    """Whether valid and test begin at a moment, or at a value of the order."""
    return job.schema.split.bounds(job.window) is not None


def _counts_before(job: Job, part: int, name: str, ids: pa.Array) -> npt.NDArray[np.int64]:
    """``[users] int64``: the previous run's counts, if this one counts only new events."""
    if job.base is None or job.base.recount:
        return np.zeros(len(ids), np.int64)
    path = Path(job.base.dir) / "users" / part_name(part, job.partitions)
    before = pq.ParquetFile(path).read(columns=["user_id", name])
    found = before[name].take(pc.index_in(ids, value_set=joined(before["user_id"])))
    return np.asarray(pc.fill_null(found, 0), np.int64)
