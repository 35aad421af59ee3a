"""The users of a batch job: ids, or raw records, of a given table, joined with what the bundle knows of them.

Reads a table in any form that the users table may have; writes a Parquet table of records (``user_id``, features,
history, ``known``). A user whom the bundle knows is answered with the stored record, of which the columns of the table
replace what they give; a row that gives a history replaces the history's times and actions and the request's time too,
since those belong together.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index.inference.request_times import MomentReader
from index.registry.bundle import Bundle
from pipelines.contracts.arrays import Bools, Int32
from pipelines.contracts.conversion import convert, expected, is_list, plain_array
from pipelines.contracts.conversion.column_type import MOMENT, STRING, ColumnType
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.schema import id_type
from pipelines.contracts.vocabulary import ValueTable
from pipelines.progress import SILENT, Progress
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.input_table import BadRow, InputTable, refusal

# What a history brings with it.
_HISTORY_KEYS = ("history", "history_time", "history_action", "time")


@dataclass(frozen=True)
class UserCounts:
    """How many users were asked for, and how many of them the bundle knows."""

    users: int
    known: int


def write_user_records(
    users: Any, bundle: Bundle, target: Path, rows_per_group: int, progress: Progress = SILENT
) -> UserCounts:
    """Writes the records of the users to answer.

    Args:
        users: a file, folder, glob or URL of ids or raw records, or anything with ``__arrow_c_stream__``.
        bundle: of the version that will answer.
        target: the Parquet file to write.
        rows_per_group: rows of a row group.
        progress: says which columns are not read.

    Raises:
        SchemaError: the table cannot be read, has no column of ids, or rows that cannot be read.
        ArtifactError: it holds ids alone, and the bundle was built without users.
    """
    reader = _UserReader.of(bundle)
    table = InputTable(users, bundle.schema.tables.users, "users")
    count = known = 0
    bad: list[BadRow] = []
    with pq.ParquetWriter(target, reader.layout, compression="zstd") as writer:
        for batch in table.batches(reader.kinds, reader.kinds):
            if batch.first_row == 0:
                reader.check_columns(batch, progress)
            records, wrong = reader.read(batch)
            bad += wrong
            writer.write_table(records, row_group_size=rows_per_group)
            count, known = count + len(records), known + int(pc.sum(records["known"]).as_py() or 0)
    if bad:
        raise refusal(f"{table.title}: {len(bad)} rows cannot be read, so nobody was answered. Correct them.", bad)
    return UserCounts(count, known)


@dataclass(frozen=True)
class _UserReader:
    """Reads batches of users for one bundle.

    id_names: names that the column of ids may have. features: columns that user features read. kinds: types of all
    columns that may be given; ``history_time`` is a list of texts where it is text, and is then read as moments.
    """

    id_names: tuple[str, ...]
    features: frozenset[str]
    kinds: Mapping[str, ColumnType]
    moments: MomentReader
    decimal: str
    stored: pa.Table | None
    places: ValueTable | None

    @classmethod
    def of(cls, bundle: Bundle) -> _UserReader:
        schema, stored = bundle.schema, bundle.users
        types = schema.column_types("users")
        columns = {column for feature in schema.side("user") for column in feature.raw_columns}
        fields = {} if stored is None else {field.name: field.type for field in stored.schema}
        kinds = {**schema.column_types("users", text=True), **_kinds_of(fields), **types}
        moments = MomentReader.of(schema)
        separator = {name: types[name].separator for name in _HISTORY_KEYS if name in types}
        user = ColumnType.for_ids(fields["user_id"]) if stored is not None else id_type(schema.ids.user) or STRING
        item = ColumnType.for_ids(bundle.vocabulary.item_ids.type)
        kinds = {name: kinds.get(name, STRING) for name in sorted(columns)}
        for key, of in (("history", item.type), ("history_action", "string"), ("history_time", "string")):
            kinds[key] = ColumnType.model_validate({"type": "list", "of": of, "separator": separator.get(key)})
        id_names = tuple(dict.fromkeys(["user_id", schema.id_column("user"), schema.tables.events.user_id]))
        kinds = {**kinds, **dict.fromkeys(id_names, user), "time": moments.kind}
        places = None if stored is None else ValueTable(plain_array(stored["user_id"]))
        decimal = "." if schema.tables.users is None else schema.tables.users.decimal
        return cls(id_names, frozenset(columns), kinds, moments, decimal, stored, places)

    @property
    def layout(self) -> pa.Schema:
        """The columns that are written."""
        names = [name for name in self.kinds if name in ("user_id", *_HISTORY_KEYS) or name in self.features]
        fields = [(name, pa.list_(MOMENT) if name == "history_time" else self.kinds[name].arrow) for name in names]
        return pa.schema([*fields, ("known", pa.bool_())])

    def check_columns(self, batch: TableBatch, progress: Progress) -> None:
        """Finds the column of ids, and columns that no record has: a misspelt one is refused, others are not read.

        Raises:
            SchemaError: there is no column of ids, or a name is near to a record's.
            ArtifactError: there are ids alone, and the bundle has no users.
        """
        self._id_column(batch)
        names = batch.table.column_names
        if self.stored is None and not set(names) & (self.kinds.keys() - set(self.id_names)):
            raise ArtifactError(
                f"{batch.file}: holds ids alone, and the version was built without users. Build with "
                "index.include_users = true, or give raw records."
            )
        others = [name for name in names if name not in self.kinds]
        for name in others:
            near = difflib.get_close_matches(name, self.kinds.keys() - set(names), n=1, cutoff=0.8)
            if near:
                raise SchemaError(f"{batch.file}: column {name!r} is unknown; did you mean {near[0]!r}?")
        if others:
            progress.line(f"{batch.file}: not read, since no user feature uses them: {', '.join(others)}")

    def _id_column(self, batch: TableBatch) -> str:
        for name in self.id_names:
            if name in batch.table.column_names:
                return name
        found = ", ".join(batch.table.column_names) or "none"
        raise SchemaError(f"{batch.file}: expected a column {self.id_names[0]}, found {found}.")

    def read(self, batch: TableBatch) -> tuple[pa.Table, list[BadRow]]:
        """The records of a batch, and the rows that are none."""
        raw, id_column = batch.table, self._id_column(batch)
        cells = _Cells(batch, self.decimal)
        ids = cells.converted(id_column, self.kinds[id_column], needed=True)
        given = {"user_id": ids, **dict.fromkeys(self.features & set(self.id_names), ids)}
        for name in raw.column_names:
            if name == "history_time":
                given[name] = self._history_times(cells)
            elif name in self.kinds and name not in self.id_names:
                given[name] = cells.converted(name, self.kinds[name])
        places = self._places(ids)
        has_history = _valid(given["history"]) if "history" in given else np.zeros(len(raw), bool)
        columns = {name: self._joined(name, given.get(name), places, has_history) for name in self.layout.names[:-1]}
        return pa.table({**columns, "known": places >= 0}, schema=self.layout), cells.bad

    def _places(self, ids: pa.Array) -> Int32:
        """``[rows] int32`` each user's place among the bundle's, -1 where it has none."""
        return np.full(len(ids), -1, np.int32) if self.places is None else self.places.places(ids)

    def _history_times(self, cells: _Cells) -> pa.Array:
        """Lists of moments; whole cells are refused where one moment is."""
        column = plain_array(cells.batch.table["history_time"])
        lists = column if is_list(column.type) else cells.converted("history_time", self.kinds["history_time"])
        lists = lists.cast(pa.list_(lists.type.value_type))
        read = convert(pc.list_flatten(lists), self.moments.kind)
        owners = np.asarray(pc.list_parent_indices(lists), np.int64)
        wrong = np.bincount(owners, read.wrong | read.null, len(lists)) > 0
        cells.refuse(wrong, "history_time", f"a list of moments, each {expected(self.moments.kind)}")
        offsets = np.concatenate([[0], np.cumsum(pc.fill_null(pc.list_value_length(lists), 0))])
        mask = lists.is_null()
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), read.values, mask=mask)

    def _joined(self, name: str, given: pa.Array | None, places: Int32, has_history: Bools) -> pa.Array:
        """A column: what is given, else what the bundle has."""
        kind = self.layout.field(name).type
        rows = np.arange(len(places))
        own = pa.nulls(len(places), kind) if given is None else given.cast(kind)
        if self.stored is None or name not in self.stored.column_names:
            return own
        from_stored = ~_valid(own) & (places >= 0)
        if name in _HISTORY_KEYS:
            from_stored &= ~has_history
        both = pa.concat_arrays([own, plain_array(self.stored[name]).cast(kind)])
        return both.take(pa.array(np.where(from_stored, len(places) + places, rows)))


class _Cells:
    """The cells of a batch in their types, and the rows with a cell that does not fit."""

    def __init__(self, batch: TableBatch, decimal: str) -> None:
        self.batch = batch
        self._decimal = decimal
        self.bad = [BadRow(batch.file, line.row, line.reason, line.expected, line.value) for line in batch.malformed]

    def converted(self, name: str, kind: ColumnType, *, needed: bool = False) -> pa.Array:
        """A column in its type; ``needed``: a missing value is refused."""
        read = convert(self.batch.table[name], kind, decimal=self._decimal)
        self.refuse(read.wrong, name, expected(kind))
        if needed:
            empty = np.asarray(pc.equal(read.values, "").fill_null(False), bool) if kind.type == "string" else False
            self.refuse(read.null | empty, name, "an id", rule="null")
        return read.values

    def refuse(self, wrong: Bools, name: str, wanted: str, rule: str = "type") -> None:
        """Notes the rows of ``wrong`` (``[rows] bool``)."""
        places = np.flatnonzero(wrong)
        if not len(places):
            return
        values = self.batch.table[name].take(pa.array(places)).to_pylist()
        for row, value in zip(self.batch.rows_of(places).tolist(), values, strict=True):
            self.bad.append(BadRow(self.batch.file, row, f"{rule}:{name}", wanted, value))


def _kinds_of(fields: Mapping[str, pa.DataType]) -> dict[str, ColumnType]:
    kinds = {name: ColumnType.for_stored(stored) for name, stored in fields.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _valid(column: pa.Array) -> Bools:
    return np.asarray(column.is_valid(), dtype=bool)
