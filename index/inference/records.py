"""Reads raw user records: turns history ids into rows, ages and actions, and checks feature columns by name.

A record has the keys ``history`` (item ids, oldest first), ``history_time``, ``history_action`` (as long as the
history), ``time`` (the moment of the request), ``user_id``, and feature columns. Ids and moments are read by the rules
of the tables: see ``request_ids`` and ``request_times``.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.inference.item_ids import ItemIds
from index.inference.request_ids import one_id
from index.inference.request_times import MomentReader
from index.search.searcher import Rows
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds.feature import RECORD_KEYS
from pipelines.contracts.schema import DatasetSchema, id_type

Clock = Callable[[], float]
_SEQUENCES = (list, tuple, np.ndarray, pa.Array, pa.ChunkedArray)
# The form of an id that needs no conversion.
_PLAIN: dict[str, type] = {"int64": int, "string": str}
_NO_ROWS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a record that every tower needs.

    rows: ``[n] int32`` known history items, oldest first, at most the tower's history length (the latest ones).
    ages_days: ``[n] float32`` days from event to request; None if the record has no times.
    actions: ``[n] int32`` codes; None if the record has no actions.
    all_rows, all_ages_days, all_actions: the same for the whole known history. now_us: the moment of the request.
    unknown: history ids that are not in the catalogue.
    """

    rows: Rows
    ages_days: npt.NDArray[np.float32] | None
    actions: npt.NDArray[np.int32] | None
    all_rows: Rows
    all_ages_days: npt.NDArray[np.float32] | None
    all_actions: npt.NDArray[np.int32] | None
    now_us: int
    unknown: int


class RecordReader:
    """Reads records for one schema and catalogue. Immutable."""

    def __init__(self, schema: DatasetSchema, items: ItemIds, history_length: int, clock: Clock = time.time) -> None:
        """Takes the clock for records without a ``time``."""
        self._items = items
        self._length = history_length
        self.clock = clock
        self._timed = schema.tables.events.time is not None
        self._moments = MomentReader.of(schema)
        self._user_kind = id_type(schema.ids.user)
        self._user_keys = tuple({"user_id", schema.id_column("user"), schema.tables.events.user_id})
        self._action_code = {name: code for code, name in enumerate(schema.action_names)}
        columns = {column for feature in schema.side("user") for column in feature.raw_columns}
        self._known_keys = frozenset({*RECORD_KEYS, *columns, schema.id_column("user"), schema.tables.events.user_id})

    def read(self, record: Mapping[str, Any]) -> Request:
        """Returns the record's history and moment.

        Raises:
            SchemaError: the record is not a mapping, has an unknown key, an id that can be none of the declared type or
                a history that is not a list of ids, or its times or actions have another length or type.
        """
        if not isinstance(record, Mapping):
            raise SchemaError(f"record: expected a mapping such as {{'history': [...]}}, got {record!r:.80}")
        if not record.keys() <= self._known_keys:
            self._refuse_unknown(record)
        if self._user_kind is not None:
            self._check_user(record, self._user_kind)
        moment = record.get("time")
        now_us = int(self.clock() * 1e6) if moment is None else self._moments.one(moment, "time")
        history = record.get("history")
        if history is None:
            return Request(_NO_ROWS, None, None, _NO_ROWS, None, None, now_us, 0)
        if not isinstance(history, _SEQUENCES):
            if not hasattr(history, "__array__"):
                raise SchemaError(f"history: expected a list of item ids, oldest first, got {history!r:.80}")
            history = np.asarray(history)
        rows = self._items.rows(history, "history")
        ages = self._ages(record.get("history_time"), len(rows), now_us)
        actions = self._actions(record.get("history_action"), len(rows))
        return self._latest_known(rows, ages, actions, now_us)

    def _latest_known(
        self,
        rows: Rows,
        ages: npt.NDArray[np.float32] | None,
        actions: npt.NDArray[np.int32] | None,
        now_us: int,
    ) -> Request:
        unknown = 0
        known = rows >= 0
        count = int(np.count_nonzero(known))
        if count < len(rows):
            unknown = len(rows) - count
            rows = rows[known]
            ages = None if ages is None else ages[known]
            actions = None if actions is None else actions[known]
        start = len(rows) - self._length
        if start <= 0:
            return Request(rows, ages, actions, rows, ages, actions, now_us, unknown)
        late_ages = None if ages is None else ages[start:]
        late_actions = None if actions is None else actions[start:]
        return Request(rows[start:], late_ages, late_actions, rows, ages, actions, now_us, unknown)

    def _check_user(self, record: Mapping[str, Any], kind: ColumnType) -> None:
        for key in self._user_keys:
            user_id = record.get(key)
            if user_id is not None and type(user_id) is not _PLAIN[kind.type]:
                one_id(user_id, kind, key)

    def _refuse_unknown(self, record: Mapping[str, Any]) -> None:
        key = sorted(map(str, record.keys() - self._known_keys))[0]
        near = difflib.get_close_matches(key, self._known_keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"Expected some of {', '.join(sorted(self._known_keys))}."
        raise SchemaError(f"record: unknown key {key!r}; {hint}")

    def _ages(self, times: Any, events: int, now_us: int) -> npt.NDArray[np.float32] | None:
        if times is None or not self._timed:
            return None
        _check_length("history_time", times, events)
        # Exact in float64: a difference of moments is below 2**53 microseconds.
        days = (now_us - self._moments.many(times, "history_time")) * (1.0 / US_PER_DAY)
        ages: npt.NDArray[np.float32] = np.maximum(days, 0.0).astype(np.float32)
        return ages

    def _actions(self, actions: Any, events: int) -> npt.NDArray[np.int32] | None:
        if actions is None:
            return None
        _check_length("history_action", actions, events)
        if isinstance(actions, pa.Array | pa.ChunkedArray):
            actions = actions.to_pylist()
        try:
            return np.array([self._action_code[action] for action in actions], np.int32)
        except (KeyError, TypeError) as err:
            known = ", ".join(self._action_code)
            raise SchemaError(f"history_action: expected one of {known} for each event, got {err}") from err


def _check_length(key: str, values: Any, events: int) -> None:
    listed = isinstance(values, _SEQUENCES) or (hasattr(values, "__array__") and hasattr(values, "__len__"))
    if not listed or len(values) != events:
        got = f"{len(values)} values" if listed else f"{values!r:.80}"
        raise SchemaError(f"{key}: expected a list as long as the history ({events}), got {got}")
