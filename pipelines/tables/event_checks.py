"""Events: raw batches of the events table to checked, typed ones that carry catalogue rows instead of item ids.

Reads a raw Arrow batch; returns one of ``checked_schema``, the rejects, and the events of unknown items. Pure: neither
files nor Beam.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import STRING
from pipelines.contracts.hashing import fractions_of
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.schema.window import moment
from pipelines.contracts.vocabulary import ValueTable
from pipelines.tables.column_types import TableTypes
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects.checks import Checks
from pipelines.tables.rejects.rules import check_columns
from pipelines.tables.rejects.typed_columns import TypedColumns

# The split of an event that only its user's whole sequence (leave_last_out) or the newest event (rolling windows)
# determines.
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

    ``dropped`` counts events after the split's ``test_until``; ``unknown`` (``unknown_schema``) are the events that are
    left out because their item is not in the items table; ``forgotten`` are the user ids of rows that are dropped
    because their users are forgotten.
    """

    events: pa.Table
    rejects: pa.Table
    unknown: pa.Table
    dropped: int
    forgotten: pa.Array


def unknown_schema(user_type: pa.DataType, item_type: pa.DataType) -> pa.Schema:
    """Columns of events whose item is in no table; ``row`` is the place in the file."""
    return pa.schema(
        [
            ("user_id", user_type),
            ("item_id", item_type),
            ("file", pa.string()),
            ("row", pa.int64()),
            ("time", pa.int64()),
        ]
    )


class EventChecker:
    """Checks batches of events against the schema and the catalogue.

    Args:
        schema: the data set's.
        types: of the columns of the events table.
        catalogue: items to rows.
        late_before_us: events before this moment are rejected as late; None rejects none.
        forgotten: users to erase without trace: their events are neither accepted nor rejected.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        types: TableTypes,
        catalogue: ItemLookup,
        late_before_us: int | None = None,
        forgotten: Forgotten | None = None,
    ) -> None:
        self._schema = schema
        self._table = schema.tables.events
        self._types = types
        self._checked_schema = checked_schema(types.kinds[self._table.user_id].arrow)
        self._catalogue = catalogue
        self._late_before_us = late_before_us
        self._forgotten = Forgotten.empty() if forgotten is None else forgotten

    def check(self, batch: TableBatch) -> Checked:
        """Checks one batch; the accepted events keep the batch's order."""
        checks = Checks(batch, "events")
        columns = TypedColumns(batch, self._types, self._table.decimal, checks)
        users, items = columns.id(self._table.user_id), columns.id(self._table.item_id)
        rows = self._catalogue.rows(items)
        times = self._times(columns, checks, len(rows))
        actions = self._actions(columns, checks, len(rows))
        values = self._values(columns, checks, len(rows))
        check_columns(checks, columns.value, self._schema.validation.columns.get("events", {}))
        splits = self._splits(columns, checks, users, items, times)
        hidden = self._forgotten.holds(users)
        checks.hide(hidden)
        sound = checks.accepted
        inside = self._inside(times)
        kept = sound & inside & (rows >= 0)
        arrays = [users, rows, times, actions, values, splits]
        events = pa.Table.from_arrays([pa.array(one) for one in arrays], schema=self._checked_schema)
        if not kept.all():
            events = events.filter(pa.array(kept))
        return Checked(
            events,
            checks.rejects(),
            self._unknown(batch, users, items, times, sound & inside & (rows < 0)),
            int((sound & ~inside).sum()),
            users.filter(pa.array(hidden)),
        )

    def _unknown(
        self, batch: TableBatch, users: pa.Array, items: pa.Array, times: npt.NDArray[np.int64], unknown: Bools
    ) -> pa.Table:
        schema = unknown_schema(users.type, items.type)
        places = np.flatnonzero(unknown)
        if not len(places):
            return schema.empty_table()
        chosen = pa.array(places)
        files = pa.repeat(batch.file, len(places))
        rows = pa.array(batch.rows_of(places))
        columns = [users.take(chosen), items.take(chosen), files, rows, pa.array(times[places])]
        return pa.Table.from_arrays(columns, schema=schema)

    def _inside(self, times: npt.NDArray[np.int64]) -> Bools:
        until = self._schema.split.test_until
        return np.ones(len(times), bool) if until is None else np.asarray(times < moment(until))

    def _times(self, columns: TypedColumns, checks: Checks, count: int) -> npt.NDArray[np.int64]:
        name = self._table.order_column
        if name is None:
            return np.zeros(count, np.int64)
        values = columns.value(name, required=True).cast(pa.int64())
        times = np.asarray(values.fill_null(0) if values.null_count else values, np.int64)
        if self._table.time is not None:
            self._check_window(checks, times, name)
        return times

    def _check_window(self, checks: Checks, times: npt.NDArray[np.int64], name: str) -> None:
        rules = self._schema.validation
        if rules.earliest is not None:
            expected = f"not before validation.earliest, {rules.earliest.isoformat()}"
            checks.reject(times < moment(rules.earliest), "range", name, expected)
        if rules.latest is not None:
            expected = f"before validation.latest, {rules.latest.isoformat()}"
            checks.reject(times >= moment(rules.latest), "range", name, expected)
        if self._late_before_us is not None:
            expected = f"at most {rules.late_days:g} days before the newest event of the previous run"
            checks.reject(times < self._late_before_us, "late", name, expected)

    def _actions(self, columns: TypedColumns, checks: Checks, count: int) -> npt.NDArray[np.int8]:
        name = self._table.action
        if name is None or not self._schema.actions:
            return np.zeros(count, np.int8)
        return self._named(columns, checks, name, self._schema.action_names)

    def _named(self, columns: TypedColumns, checks: Checks, name: str, names: tuple[str, ...]) -> npt.NDArray[np.int8]:
        """``[rows] int8``: the places of a column's values among these names."""
        values = columns.value(name, required=True)
        codes = _codes(values if pa.types.is_string(values.type) else convert(values, STRING).values, names)
        checks.reject(codes < 0, "allowed", name, f"one of {', '.join(map(repr, names))}")
        return codes

    def _values(self, columns: TypedColumns, checks: Checks, count: int) -> npt.NDArray[np.float32]:
        name = self._table.value
        if name is None:
            return np.zeros(count, np.float32)
        read = columns.value(name)
        values = np.asarray(read.cast(pa.float64(), safe=False).fill_null(0.0), np.float64)
        limit = float(np.finfo(np.float32).max)
        checks.reject(np.abs(values) > limit, "range", name, "a number that a float32 can hold")
        return np.clip(values, -limit, limit).astype(np.float32) + np.float32(0)  # -0.0 becomes 0.0.

    def _splits(
        self,
        columns: TypedColumns,
        checks: Checks,
        users: pa.Array,
        items: pa.Array,
        times: npt.NDArray[np.int64],
    ) -> npt.NDArray[np.int8]:
        split = self._schema.split
        bounds = split.bounds(None)
        if bounds is not None:
            return np.searchsorted(np.array(bounds), times, side="right").astype(np.int8)
        if split.column is None:
            return np.full(len(times), UNDECIDED, np.int8)
        codes = self._named(columns, checks, split.column, SPLITS)
        if split.valid_fraction > 0:
            drawn = fractions_of(_filled(users), _filled(items), self._schema.seed)
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


def columns_of(schema: DatasetSchema) -> tuple[str, ...]:
    """The columns of the events table that the job reads, each once."""
    table = schema.tables.events
    named = [table.user_id, table.item_id, table.order_column, table.action if schema.actions else None, table.value]
    named += [schema.split.column, *schema.validation.columns.get("events", {})]
    return tuple(dict.fromkeys(name for name in named if name is not None))
