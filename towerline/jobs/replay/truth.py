"""The truth of a day: what users chose on it, and how they would have been described on the night before.

Reads the day's files and the features of the night; nothing of the day itself is in a record.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.inference.user_records import UserRecords, records_of, sample_users
from pipelines.contracts.arrays import Int32, Int64
from pipelines.contracts.schema import DatasetSchema, Split
from pipelines.contracts.vocabulary import ValueTable, Vocabulary
from pipelines.features.planning import Survey
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.item_sets import ItemSets
from pipelines.sequences.reader import Sequences
from pipelines.sequences.strengths import counting
from pipelines.tables.event_checks import EventChecker, ItemLookup
from pipelines.tables.readers import read_shard
from towerline.jobs.replay.day_files import listed

# Chooses the users of a day, where not all are asked: the same users every day.
_SEED = 23


@dataclass(frozen=True)
class DayTruth:
    """What is asked about one day.

    user_ids: ``[users]`` those with an event that counts, ascending. item_ids: the catalogue of the night's features;
    behind it, without an items table, the day's items that are not in it. truth: what each user chose. seen: what each
    had chosen before. had: ``[items] int64`` events of each item before the day. Events whose action has weight 0 are
    in neither.
    """

    user_ids: pa.Array
    item_ids: pa.Array
    truth: ItemSets
    seen: ItemSets
    had: Int64
    _table: pa.Table
    _known: Int32

    @property
    def num_users(self) -> int:
        """Number of users."""
        return len(self.user_ids)

    @functools.cached_property
    def new_truth(self) -> ItemSets:
        """The truth among ads that nobody had chosen before."""
        return self.truth.where(self.had[self.truth.rows] == 0)

    @functools.cached_property
    def novel_truth(self) -> ItemSets:
        """The truth that a user had not chosen before."""
        return self.truth.where(~self.truth.within(self.seen))

    @functools.cached_property
    def places(self) -> ValueTable:
        """Item ids to rows of the catalogue."""
        return ValueTable(self.item_ids)

    def records(self, users: Int64) -> list[dict[str, Any]]:
        """Raw records of some users (``[n]`` places), as of midnight before the day; a new user has an id alone."""
        found: list[dict[str, Any]] = [
            {"user_id": user_id} for user_id in self.user_ids.take(pa.array(users)).to_pylist()
        ]
        known = self._known[users]
        described = records_of(self._table.take(pa.array(known[known >= 0])))
        for place, record in zip(np.flatnonzero(known >= 0).tolist(), described, strict=True):
            found[place] = record
        return found

    def seen_ids(self, user: int) -> list[Any]:
        """Ids of the items that a user had chosen."""
        rows = self.seen.rows[self.seen.offsets[user] : self.seen.offsets[user + 1]]
        ids: list[Any] = self.item_ids.take(pa.array(rows)).to_pylist()
        return ids


def truth_of(
    schema: DatasetSchema, features: Path, day: datetime.date, files: Sequence[Path], max_users: int | None
) -> DayTruth:
    """What users chose on a day.

    Args:
        schema: the data set's.
        features: those of the night before; its events end where the day begins, or earlier.
        day: its date.
        files: its events; empty if it had none.
        max_users: a stable sample of at most this many users; None takes all.

    Raises:
        ArtifactError: the features cannot be read.
        SchemaError: the day's files cannot be read.
    """
    midnight = datetime.datetime(day.year, day.month, day.day, tzinfo=datetime.UTC)
    schema = schema.model_copy(update={"split": _before_and_after(midnight)})
    known = _as_of(features, midnight)
    chosen = _Chosen.of(schema, files, known.user_ids, Vocabulary.load(features / "vocabulary").item_ids)
    if max_users is not None:
        chosen = chosen.sampled(max_users)
    places = ValueTable(known.user_ids).places(chosen.user_ids)
    there = places[places >= 0]
    counted = known.events.where(counting(known.events, schema.action_weights))
    past = counted.of_users(there)
    return DayTruth(
        user_ids=chosen.user_ids,
        item_ids=chosen.item_ids,
        truth=chosen.truth,
        seen=ItemSets.of(np.flatnonzero(places >= 0)[past.owners], past.rows, len(places)),
        had=np.bincount(counted.rows, minlength=len(chosen.item_ids)).astype(np.int64),
        _table=known.table(there, schema, chosen.item_ids),
        _known=np.where(places >= 0, np.cumsum(places >= 0) - 1, -1).astype(np.int32),
    )


def _before_and_after(midnight: datetime.datetime) -> Split:
    """A split whose test part begins with the day: everything before it is history."""
    return Split(valid_from=midnight - datetime.timedelta(days=1), test_from=midnight)


def _as_of(features: Path, midnight: datetime.datetime) -> UserRecords:
    """The users of the features with all their events, whichever part of the split these are in."""
    read = Sequences.open(features)
    events = read.events.window(None, round(midnight.timestamp() * 1e6))
    known: EventLists = dataclasses.replace(events, splits=np.zeros(events.num_events, np.int8))
    return UserRecords(features, Sequences(read.user_ids, known))


@dataclass(frozen=True)
class _Chosen:
    """What users chose on a day: ``truth`` in rows of ``item_ids``, one set for each of ``user_ids``."""

    user_ids: pa.Array
    item_ids: pa.Array
    truth: ItemSets

    @classmethod
    def of(cls, schema: DatasetSchema, files: Sequence[Path], user_ids: pa.Array, item_ids: pa.Array) -> _Chosen:
        """Reads the day's events as the features job would, and keeps those whose action counts."""
        if not files:
            return cls(user_ids.slice(0, 0), item_ids, ItemSets.of(np.zeros(0, np.int64), np.zeros(0, np.int32), 0))
        day_ids, events = _accepted(schema, files)
        weights = np.asarray(schema.action_weights)
        events = events.filter(pa.array(weights[np.asarray(events["action"])] > 0))
        if schema.tables.items is None:
            new = day_ids.filter(pa.array(ValueTable(item_ids).places(day_ids) < 0))
            item_ids = pa.concat_arrays([item_ids, new])
        rows = ValueTable(item_ids).places(day_ids)[np.asarray(events["row"])]
        events, rows = events.filter(pa.array(rows >= 0)), rows[rows >= 0]
        users = pc.unique(events["user_id"])
        users = users.take(pc.array_sort_indices(users))
        owners = ValueTable(users).places(events["user_id"].combine_chunks())
        return cls(users, item_ids, ItemSets.of(owners, rows, len(users)))

    def sampled(self, count: int) -> _Chosen:
        """At most ``count`` of the users, chosen by a stable hash."""
        among = np.arange(len(self.user_ids), dtype=np.int64)
        users = np.sort(sample_users(self.user_ids, count, _SEED, among))
        return _Chosen(self.user_ids.take(pa.array(users)), self.item_ids, self.truth.of_users(users))


def _accepted(schema: DatasetSchema, files: Sequence[Path]) -> tuple[pa.Array, pa.Table]:
    """The ids of the day's items, ascending, and the events that the features job would accept, in rows of these."""
    source = schema.tables.events.model_copy(update={"path": tuple(map(str, files)), "format": "parquet"})
    schema = schema.model_copy(update={"tables": schema.tables.model_copy(update={"events": source})})
    survey = Survey.of(schema, listed(schema))
    types = survey.types["events"]
    named = [pq.read_table(file, columns=[source.item_id])[source.item_id] for file in files]
    day_ids = pc.unique(pa.chunked_array([chunk for column in named for chunk in column.chunks]))
    day_ids = day_ids.take(pc.array_sort_indices(day_ids))
    checker = EventChecker(schema, types, ItemLookup(day_ids))
    events = [
        checker.check(batch).events
        for shard in survey.events
        for batch in read_shard(shard, source, types.columns, types.kinds)
    ]
    return day_ids, pa.concat_tables(events)
