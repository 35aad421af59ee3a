"""Item attributes, laid out for rules: one column each, in row order.

Reads the bundle's item table. A column holds numbers, truth values, codes of texts, times, or lists.
"""

from __future__ import annotations

import dataclasses
import difflib
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from index.forking import renew_after_fork
from pipelines.contracts.errors import SchemaError

Kind = Literal["number", "truth", "text", "time"]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Column:
    """One attribute of all items.

    kind: type of the values. values: ``[items]`` (or, for a list attribute, ``[elements]``) numbers as they are, truth
    as bool, time as int64 microseconds UTC, text as int32 codes. known: where a value is not null; None means
    everywhere. code_of_text: the code of each text. owners: for a list attribute, ``[elements] int64`` the row of each
    element. is_id: a number and its text are the same value.
    """

    name: str
    kind: Kind
    values: npt.NDArray[Any]
    known: Mask | None
    items: int
    code_of_text: dict[str, int] | None = None
    owners: npt.NDArray[np.int64] | None = None
    is_id: bool = False

    @property
    def is_list(self) -> bool:
        """Whether an item may have several values."""
        return self.owners is not None


class Attributes:
    """The attributes of a catalogue; a column is laid out at its first use. Safe to use from many threads."""

    def __init__(self, table: pa.Table, ids: Collection[str] = ("item_id",)) -> None:
        """Takes the bundle's item table, in row order, and the names of its columns that are ids."""
        self._table = table
        self._ids = frozenset(ids)
        self._columns: dict[str, Column] = {}
        self._groups: dict[str, npt.NDArray[np.int32]] = {}
        self._lock = threading.Lock()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """In a forked process: another thread may have held the lock."""
        self._lock = threading.Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all attributes."""
        return tuple(self._table.column_names)

    @property
    def items(self) -> int:
        """Number of items."""
        return int(self._table.num_rows)

    def column(self, name: str) -> Column:
        """The attribute of that name.

        Raises:
            SchemaError: there is none, or its type cannot be in a rule.
        """
        kept = self._columns.get(name)
        if kept is None:
            with self._lock:
                kept = self._columns.get(name) or _lay_out(name, self._raw(name))
                kept = dataclasses.replace(kept, is_id=name in self._ids)
                self._columns[name] = kept
        return kept

    def groups(self, name: str) -> npt.NDArray[np.int32]:
        """``[items] int32`` a number for each value of the attribute; -1 where it is null.

        Raises:
            SchemaError: there is no such attribute, or it is a list.
        """
        kept = self._groups.get(name)
        if kept is None:
            raw = self._raw(name)
            if pa.types.is_nested(raw.type):
                raise SchemaError(f"max_per: attribute {name!r} is a list; expected one value per item.")
            indices = raw.dictionary_encode().indices
            kept = np.asarray(pc.fill_null(indices, -1), dtype=np.int32)
            self._groups[name] = kept
        return kept

    def _raw(self, name: str) -> pa.Array:
        if name not in self._table.column_names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"There are {', '.join(self.names)}."
            raise SchemaError(
                f"unknown attribute {name!r:.80}; {hint} What a rule may name is set by [index] attributes when the "
                "bundle is built."
            )
        raw = self._table[name].combine_chunks()
        raw = raw.dictionary_decode() if pa.types.is_dictionary(raw.type) else raw
        return raw.cast(pa.string()) if pa.types.is_string_view(raw.type) else raw


def _lay_out(name: str, raw: pa.Array) -> Column:
    items = len(raw)
    if pa.types.is_list(raw.type) or pa.types.is_large_list(raw.type) or pa.types.is_fixed_size_list(raw.type):
        owners = np.asarray(pc.list_parent_indices(raw), np.int64)
        elements = pc.list_flatten(raw)
        inner = _lay_out(name, elements)
        return Column(name, inner.kind, inner.values, inner.known, items, inner.code_of_text, owners)
    known = None if raw.null_count == 0 else np.asarray(pc.is_valid(raw), dtype=bool)
    kind, values, code_of_text = _values(name, raw)
    if values.dtype.kind == "f":
        finite = ~np.isnan(values)
        known = known if finite.all() else (finite if known is None else known & finite)
    return Column(name, kind, values, known, items, code_of_text)


def _values(name: str, raw: pa.Array) -> tuple[Kind, npt.NDArray[Any], dict[str, int] | None]:
    if pa.types.is_boolean(raw.type):
        return "truth", np.asarray(pc.fill_null(raw, False), dtype=bool), None
    if pa.types.is_integer(raw.type):
        return "number", np.asarray(pc.fill_null(raw, 0)), None
    if pa.types.is_floating(raw.type):
        return "number", np.asarray(pc.fill_null(raw, np.nan)), None
    if pa.types.is_decimal(raw.type):
        return "number", np.asarray(raw.cast(pa.float64()).fill_null(np.nan)), None
    if pa.types.is_date(raw.type) or pa.types.is_timestamp(raw.type):
        zone = raw.type.tz if pa.types.is_timestamp(raw.type) else None
        moments = raw.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64())
        return "time", np.asarray(pc.fill_null(moments, 0)), None
    if pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type) or pa.types.is_null(raw.type):
        encoded = raw.cast(pa.string()).dictionary_encode()
        codes = {text: code for code, text in enumerate(encoded.dictionary.to_pylist())}
        return "text", np.asarray(pc.fill_null(encoded.indices, -1), dtype=np.int32), codes
    raise SchemaError(f"attribute {name!r} of type {raw.type} cannot be in a rule; expected numbers, text or times.")
