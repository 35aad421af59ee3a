"""Users as raw records, made from the features, for the tuner, the probes, the gates and the bundle's user table.

Reads ``users/`` and ``sequences/`` of a features artifact, once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.contracts.arrays import Int8, Int64
from pipelines.contracts.conversion import plain_array
from pipelines.contracts.conversion.column_type import MOMENT
from pipelines.contracts.schema import SPLITS, DatasetSchema, SplitName
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.reader import Sequences, load_users

_TEST = SPLITS.index("test")


class UserRecords:
    """All users of a features artifact, in sequence order, with what is known about each when a split begins.

    Opened once and passed on: opening reads all sequences.
    """

    def __init__(self, features: Path, sequences: Sequences) -> None:
        """Takes sequences that are already open; ``open`` reads them."""
        self._features = features
        self._sequences = sequences

    @classmethod
    def open(cls, features: Path) -> UserRecords:
        """Reads the sequences of a features artifact.

        Raises:
            ArtifactError: there are none, or they cannot be read.
        """
        return cls(features, Sequences.open(features))

    @property
    def num_users(self) -> int:
        """Number of users, including those without events."""
        return self.events.num_users

    @property
    def user_ids(self) -> pa.Array:
        """``[users]`` ids, ascending."""
        return self._sequences.user_ids

    @property
    def events(self) -> EventLists:
        """All users' events."""
        return self._sequences.events

    @functools.cached_property
    def with_history(self) -> Int64:
        """``[n] int64`` places of the users with an event before the test part; all users if nobody has one."""
        places = np.flatnonzero(self.events.before(_TEST).counts).astype(np.int64)
        return places if len(places) else np.arange(self.num_users, dtype=np.int64)

    @functools.cached_property
    def profiles(self) -> pa.Table:
        """The users' raw columns in sequence order; read on first use.

        Raises:
            ArtifactError: the users table cannot be read.
        """
        return load_users(self._features).combine_chunks()

    def sample(self, count: int, seed: int, among: Int64) -> Int64:
        """``count`` of the users at the places ``among``, chosen by ``sample_users``."""
        return sample_users(self.user_ids, count, seed, among)

    def table(
        self, users: npt.NDArray[np.integer], schema: DatasetSchema, item_ids: pa.Array, split: SplitName = "test"
    ) -> pa.Table:
        """Raw records of some users: ``user_id``, feature columns, history with times and actions, and ``time``.

        A history holds the latest events before the split, oldest first, at most the schema's history length.

        Args:
            users: ``[n]`` places of the users.
            schema: names features, actions and the maximum length of a history.
            item_ids: the catalogue in row order.
            split: the histories end where it begins.

        Raises:
            ArtifactError: the users table cannot be read.
        """
        history = self.events.of_users(users).before(SPLITS.index(split)).latest(schema.history.max_length)
        offsets = pa.array(history.offsets.astype(np.int32))
        columns = {
            "history": pa.ListArray.from_arrays(offsets, item_ids.take(pa.array(history.rows))),
            "history_action": pa.ListArray.from_arrays(offsets, _action_names(schema, history.actions)),
        }
        if schema.tables.events.time is not None:
            columns["history_time"] = pa.ListArray.from_arrays(offsets, _moments(history.times))
            columns["time"] = _moments(self.request_times(schema)[users])
        table = _feature_columns(self.profiles, schema).take(pa.array(users))
        for name, column in columns.items():
            table = table.append_column(name, column)
        return table

    def records(
        self, users: npt.NDArray[np.integer], schema: DatasetSchema, item_ids: pa.Array, split: SplitName = "test"
    ) -> list[dict[str, Any]]:
        """The rows of ``table`` as raw records for ``Retriever.retrieve``."""
        return records_of(self.table(users, schema, item_ids, split))

    def request_times(self, schema: DatasetSchema) -> Int64:
        """``[users] int64`` microseconds: the moment of each user's request, the same for every reader of the features.

        With a split by time it is the start of the test part. Otherwise it is the time of the user's first test event;
        for a user without one, that of the latest event; for a user without events, that of the latest event of all.
        """
        bounds = schema.split.bounds(self._sequences.window)
        if bounds is not None and schema.tables.events.time is not None:
            return np.full(self.num_users, bounds[1], np.int64)
        latest = np.zeros(self.num_users, np.int64)
        np.maximum.at(latest, self.events.owners, self.events.times)
        held = self.events.of_split(_TEST)
        first = np.full(self.num_users, np.iinfo(np.int64).max, np.int64)
        np.minimum.at(first, held.owners, held.times)
        latest = np.where(self.events.counts > 0, latest, latest.max(initial=0))
        return np.where(first < np.iinfo(np.int64).max, first, latest)


def records_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a users table as raw records for ``Retriever.retrieve``; nulls are left out.

    The times of a history stay an Arrow array each: as Python's datetimes they would take longer than the search.
    """
    plain = table.drop_columns("history_time") if "history_time" in table.column_names else table
    records = [{key: value for key, value in row.items() if value is not None} for row in plain.to_pylist()]
    if plain is not table:
        for record, times in zip(records, plain_array(table["history_time"]), strict=True):
            if times.is_valid:
                record["history_time"] = times.values
    return records


def _moments(us: Int64) -> pa.Array:
    """Microseconds UTC as timestamps."""
    return pa.array(us).view(MOMENT)


def sample_users(user_ids: pa.Array, count: int, seed: int, among: Int64) -> Int64:
    """``count`` of the users ``among`` (all, if there are fewer), chosen and ordered by a stable hash of their ids.

    Args:
        user_ids: all users.
        count: size of the sample.
        seed: chooses the hash; another seed gives other users.
        among: ``[n] int64`` places of the users to choose from.
    """
    ids: Sequence[Any] = user_ids.take(pa.array(among)).to_pylist()
    keys = np.array([xxhash.xxh3_64_intdigest(f"{seed}/{user_id}") for user_id in ids], np.uint64)
    order = np.argsort(keys, kind="stable")[:count]
    return among[order]


def _feature_columns(profiles: pa.Table, schema: DatasetSchema) -> pa.Table:
    """``user_id`` and the raw columns that user features read."""
    wanted = {column for feature in schema.side("user") for column in feature.raw_columns}
    id_column = schema.id_column("user")
    if id_column in wanted and id_column not in profiles.column_names:
        # A feature may read the user's own id under its name in the tables.
        profiles = profiles.append_column(id_column, profiles["user_id"])
    return profiles.select([name for name in profiles.column_names if name == "user_id" or name in wanted])


def _action_names(schema: DatasetSchema, codes: Int8) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array(schema.action_names)
    ).dictionary_decode()
