"""Users as raw records, made from the features: what the tuner, the probes and the bundle's user table need.

Reads ``users/`` and ``sequences/`` of a features artifact; writes nothing.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.contracts.encoding import source_columns
from pipelines.contracts.schema import DatasetSchema, SplitName
from pipelines.sequences import reader as stored
from pipelines.sequences.reader import Sequences

# The split whose history is all that was seen before the held-out end: what a published bundle is asked with.
_LAST_SPLIT = 2


def load_users(features: Path, schema: DatasetSchema) -> pa.Table:
    """The users table of the features: ``user_id`` and the raw columns that user features read, in sequence order."""
    table = stored.load_users(features).combine_chunks()
    wanted = {column for feature in schema.side("user") for column in source_columns(feature)}
    id_column = schema.id_column("user")
    if id_column in wanted and id_column not in table.column_names:
        # A feature may read the user's own id under the name that the tables have for it.
        table = table.append_column(id_column, table["user_id"])
    names = [name for name in table.column_names if name == "user_id" or name in wanted]
    return table.select(names)


def user_table(
    features: Path,
    schema: DatasetSchema,
    item_ids: pa.Array,
    users: npt.NDArray[np.int64],
    split: SplitName = "test",
) -> pa.Table:
    """Raw records of some users as a table: ``user_id``, feature columns, history with times and actions, ``time``.

    A history holds the latest events before the split, oldest first, at most the schema's history length.

    Args:
        features: the features artifact.
        schema: names features, actions and the history's length.
        item_ids: the catalogue in row order.
        users: ``[n] int64`` places of the users.
        split: what the users are to be asked for.
    """
    sequences = Sequences.open(features)
    histories = sequences.histories(split, schema.history.max_length)
    rows = histories.rows[users]
    kept = rows >= 0
    offsets = pa.array(np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32))
    columns = {
        "history": pa.ListArray.from_arrays(offsets, item_ids.take(pa.array(rows[kept]))),
        "history_action": pa.ListArray.from_arrays(offsets, _action_names(schema, histories.actions[users][kept])),
    }
    if schema.tables.events.time is not None:
        times = pa.array(histories.times[users][kept], pa.int64())
        columns["history_time"] = pa.ListArray.from_arrays(offsets, times)
        columns["time"] = pa.array(request_times(sequences, schema)[users])
    table = load_users(features, schema).take(pa.array(users))
    for name, column in columns.items():
        table = table.append_column(name, column)
    return table


def request_times(sequences: Sequences, schema: DatasetSchema) -> npt.NDArray[np.int64]:
    """``[users] int64`` microseconds: the moment a user of the table asks, so that every reader asks at the same one.

    With a split by time it is the start of the test part. Else it is the user's first test event, or the latest event
    of a user without any, or 0 of one without events.
    """
    start = schema.split.test_from
    if isinstance(start, datetime.datetime):
        return np.full(sequences.num_users, round(start.timestamp() * 1e6), np.int64)
    moments = np.zeros(sequences.num_users, np.int64)
    np.maximum.at(moments, sequences.owners, sequences.times)
    held = sequences.splits == _LAST_SPLIT
    first = np.full(sequences.num_users, np.iinfo(np.int64).max, np.int64)
    np.minimum.at(first, sequences.owners[held], sequences.times[held])
    return np.where(first < np.iinfo(np.int64).max, first, moments)


def _action_names(schema: DatasetSchema, codes: npt.NDArray[np.int8]) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array(schema.action_names)
    ).dictionary_decode()


def records_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a ``user_table`` as raw records for ``Retriever.retrieve``; nulls are left out."""
    return [{key: value for key, value in row.items() if value is not None} for row in table.to_pylist()]


def chosen_users(user_ids: pa.Array, wanted: int, seed: int, among: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``wanted`` of the users ``among`` (all, where there are fewer), by a stable hash of their ids, in its order.

    Args:
        user_ids: all users.
        wanted: how many.
        seed: another seed, other users.
        among: ``[n] int64`` places of the users to choose from.
    """
    ids: Sequence[Any] = user_ids.take(pa.array(among)).to_pylist()
    keys = np.array([xxhash.xxh3_64_intdigest(f"{seed}/{user_id}") for user_id in ids], np.uint64)
    order = np.argsort(keys, kind="stable")[:wanted]
    return among[order]


@dataclass(frozen=True)
class KnownUsers:
    """All users in sequence order, and the places of those with a history to ask with.

    with_history: ``[n] int64``: users with at least one event before the test part; everyone, where nobody has.
    """

    user_ids: pa.Array
    with_history: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        """How many users there are."""
        return len(self.user_ids)


def known_users(features: Path) -> KnownUsers:
    """Reads the sequences' users."""
    sequences = Sequences.open(features)
    earlier = np.concatenate([[0], np.cumsum(sequences.splits < _LAST_SPLIT)])
    counts = earlier[sequences.offsets[1:]] - earlier[sequences.offsets[:-1]]
    places = np.flatnonzero(counts).astype(np.int64)
    everyone = np.arange(len(sequences.user_ids), dtype=np.int64)
    return KnownUsers(sequences.user_ids, places if len(places) else everyone)
