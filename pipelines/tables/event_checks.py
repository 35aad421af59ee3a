"""Events: raw batches of the events table to checked, typed ones that carry catalogue rows instead of item ids.

Reads a raw Arrow batch; returns one of ``checked_schema`` and the rejects. Pure: neither files nor Beam.
"""

from __future__ import annotations

import datetime
import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import EARLIEST_US, LATEST_US, Converted, as_ids, as_integers, as_numbers, as_times
from pipelines.contracts.hashing import fractions_of
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.vocabulary import ValueTable
from pipelines.tables.forgotten import Forgotten
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects import MAX_ID_LENGTH, Checks, check_columns

# The split of an event that only its user's whole sequence determines (leave_last_out).
UNDECIDED = -1
_DENSE_SPAN_PER_ITEM = 16


def checked_schema(user_type: pa.DataType) -> pa.Schema:
    """Columns of checked events: what is hashed, shuffled and grouped."""
    return pa.schema(
        [
            ("user_id", user_type),
            ("row", pa.int32()),
            ("time", pa.int64()),
            ("action", pa.int8()),
            ("value", pa.float32()),
            ("split", pa.int8()),
        ]
    )


def moment(bound: datetime.datetime | int) -> int:
    """A bound of the split as the integer that event times are compared with: microseconds UTC, or the order itself."""
    if isinstance(bound, int):
        return bound
    return (bound - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) // datetime.timedelta(microseconds=1)


@dataclass(frozen=True)
class ItemLookup:
    """Item ids (sorted, unique) to rows; a dense table if the ids are integers without large gaps."""

    item_ids: pa.Array

    @functools.cached_property
    def _dense(self) -> npt.NDArray[np.int32] | None:
        if not pa.types.is_int64(self.item_ids.type) or len(self.item_ids) == 0:
            return None
        ids = np.asarray(self.item_ids, np.int64)
        span = int(ids[-1]) - int(ids[0]) + 1
        if span > _DENSE_SPAN_PER_ITEM * len(ids) + 1_000_000:
            return None
        table = np.full(span, -1, np.int32)
        table[ids - ids[0]] = np.arange(len(ids), dtype=np.int32)
        return table

    @functools.cached_property
    def _hashed(self) -> ValueTable:
        return ValueTable(self.item_ids)

    def rows(self, ids: pa.Array) -> npt.NDArray[np.int32]:
        """``[n]`` ids of the catalogue's type -> ``[n] int32`` rows, -1 where null or unknown."""
        dense = self._dense
        if dense is None:
            return self._hashed.places(ids)
        first = int(self.item_ids[0].as_py())
        # A null becomes an id before the first: outside the table like any unknown one.
        numbers = np.asarray(ids.fill_null(first - 1) if ids.null_count else ids, np.int64)
        inside = (numbers >= first) & (numbers < first + len(dense))
        return np.where(inside, dense[np.where(inside, numbers - first, 0)], -1).astype(np.int32)


@dataclass(frozen=True)
class Checked:
    """The result of one batch.

    ``dropped`` counts events after the split's ``test_until``; ``forgotten`` are the user ids of rows that are dropped
    because their users are forgotten.
    """

    events: pa.Table
    rejects: pa.Table
    dropped: int
    forgotten: pa.Array


class EventChecker:
    """Checks batches of events against the schema and the catalogue.

    Args:
        schema: the data set's.
        user_type: int64 or string, the type of all user ids.
        catalogue: items to rows.
        late_before_us: events before this moment are rejected as late; None rejects none.
        forgotten: users to erase without trace: their events are neither accepted nor rejected.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        user_type: pa.DataType,
        catalogue: ItemLookup,
        late_before_us: int | None = None,
        forgotten: Forgotten | None = None,
    ) -> None:
        self._schema = schema
        self._table = schema.tables.events
        self._user_type = user_type
        self._catalogue = catalogue
        self._late_before_us = late_before_us
        self._forgotten = Forgotten.nobody() if forgotten is None else forgotten

    def check(self, batch: TableBatch) -> Checked:
        """Checks one batch; the accepted events keep the batch's order."""
        raw = batch.table
        checks = Checks(len(raw))
        users = as_ids(raw[self._table.user_id], self._user_type)
        _check_id(checks, users, self._table.user_id)
        items = as_ids(raw[self._table.item_id], self._catalogue.item_ids.type)
        _check_id(checks, items, self._table.item_id)
        rows = self._catalogue.rows(items.values)
        checks.reject(rows < 0, f"unknown:{self._table.item_id}")
        times = self._times(raw, checks)
        actions = self._actions(raw, checks)
        values = self._values(raw, checks)
        check_columns(checks, raw, self._schema.validation.columns.get("events", {}))
        splits = self._splits(raw, checks, users, items, times)
        hidden = self._forgotten.holds(users.values)
        checks.hide(hidden)
        kept = checks.accepted
        dropped = 0
        if self._schema.split.test_until is not None:
            inside = times < moment(self._schema.split.test_until)
            dropped = int((kept & ~inside).sum())
            kept = kept & inside
        columns = [users.values, rows, times, actions, values, splits]
        events = pa.Table.from_arrays([pa.array(column) for column in columns], schema=checked_schema(self._user_type))
        if not kept.all():
            events = events.filter(pa.array(kept))
        rejects = checks.rejects(batch, "events")
        return Checked(events, rejects, dropped, users.values.filter(pa.array(hidden)))

    def _times(self, raw: pa.Table, checks: Checks) -> npt.NDArray[np.int64]:
        name = self._table.order_column
        if name is None:
            return np.zeros(len(raw), np.int64)
        is_time = self._table.time is not None
        converted = as_times(raw[name]) if is_time else as_integers(raw[name])
        _check_value(checks, converted, name)
        times = np.asarray(converted.values.fill_null(0), np.int64)
        if is_time:
            rules = self._schema.validation
            earliest = EARLIEST_US if rules.earliest is None else moment(rules.earliest)
            latest = LATEST_US if rules.latest is None else moment(rules.latest)
            checks.reject((times < earliest) | (times >= latest), f"range:{name}")
            if self._late_before_us is not None:
                checks.reject(times < self._late_before_us, f"late:{name}")
        return times

    def _actions(self, raw: pa.Table, checks: Checks) -> npt.NDArray[np.int8]:
        name = self._table.action
        if name is None or not self._schema.actions:
            return np.zeros(len(raw), np.int8)
        converted = as_ids(raw[name], pa.string())
        _check_value(checks, converted, name)
        codes = _codes(converted.values, self._schema.action_names)
        checks.reject(codes < 0, f"allowed:{name}")
        return codes

    def _values(self, raw: pa.Table, checks: Checks) -> npt.NDArray[np.float32]:
        if self._table.value is None:
            return np.zeros(len(raw), np.float32)
        converted = as_numbers(raw[self._table.value])
        checks.reject(converted.wrong, f"type:{self._table.value}")
        values = np.asarray(converted.values.fill_null(0.0), np.float64)
        limit = float(np.finfo(np.float32).max)
        checks.reject(np.abs(values) > limit, f"range:{self._table.value}")
        return np.clip(values, -limit, limit).astype(np.float32) + np.float32(0)  # -0.0 becomes 0.0.

    def _splits(
        self, raw: pa.Table, checks: Checks, users: Converted, items: Converted, times: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int8]:
        split = self._schema.split
        if split.valid_from is not None and split.test_from is not None:
            bounds = np.array([moment(split.valid_from), moment(split.test_from)])
            return np.searchsorted(bounds, times, side="right").astype(np.int8)
        if split.column is None:
            return np.full(len(raw), UNDECIDED, np.int8)
        converted = as_ids(raw[split.column], pa.string())
        _check_value(checks, converted, split.column)
        codes = _codes(converted.values, SPLITS)
        checks.reject(codes < 0, f"allowed:{split.column}")
        if split.valid_fraction > 0:
            drawn = fractions_of(_filled(users.values), _filled(items.values), self._schema.seed)
            codes = np.where((codes == 0) & (drawn < split.valid_fraction), 1, codes).astype(np.int8)
        return codes


def _filled(ids: pa.Array) -> pa.Array:
    """Ids without nulls; the rows that had one are rejected anyway."""
    return ids.fill_null(0 if pa.types.is_int64(ids.type) else "") if ids.null_count else ids


def _codes(texts: pa.Array, names: tuple[str, ...]) -> npt.NDArray[np.int8]:
    encoded = texts.dictionary_encode()
    places = {name: code for code, name in enumerate(names)}
    known = np.array([places.get(text, -1) for text in encoded.dictionary.to_pylist()] + [-1], np.int8)
    return np.take(known, np.asarray(encoded.indices.fill_null(len(known) - 1)))


def _check_value(checks: Checks, converted: Converted, name: str) -> None:
    checks.reject(converted.null, f"null:{name}")
    checks.reject(converted.wrong, f"type:{name}")


def _check_id(checks: Checks, converted: Converted, name: str) -> None:
    _check_value(checks, converted, name)
    if pa.types.is_string(converted.values.type):
        lengths = pc.fill_null(pc.binary_length(converted.values), 0)
        checks.reject(np.asarray(lengths, np.int64) > MAX_ID_LENGTH, f"length:{name}")


def columns_of(schema: DatasetSchema) -> tuple[str, ...]:
    """The columns of the events table that the job reads, each once."""
    table = schema.tables.events
    named = [table.user_id, table.item_id, table.order_column, table.action if schema.actions else None, table.value]
    named += [schema.split.column, *schema.validation.columns.get("events", {})]
    return tuple(dict.fromkeys(name for name in named if name is not None))
