"""The change feed: a table of ads, read and checked exactly as the nightly items table is.

Reads Parquet, CSV, TSV and JSONL as ``[tables.items]`` says they are written, or an Arrow table; each column is
converted to the type that the bundle's schema has for it. A feed with a bad row is refused as a whole, and the error
names the bad rows of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.registry.bundle import Bundle
from index.registry.deltas import CHANGES, DeltaState
from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import convert, plain_array
from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema
from pipelines.tables.column_types import TableTypes, named_columns
from pipelines.tables.entity_checks import EntityChecker
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.input_table import BadRow, InputTable, refusal
from pipelines.tables.rejects.checks import REJECTS, Checks, malformed_rejects
from pipelines.tables.rejects.typed_columns import TypedColumns

CHANGE_COLUMN = "change"
_TABLE = "items"


@dataclass(frozen=True)
class Changes:
    """A checked feed. raw: the upserted ads' columns in their types; ids: item_id and change of the others."""

    raw: pa.Table
    ids: pa.Table

    def count(self, change: str) -> int:
        """Number of items with this change."""
        if change == "upsert":
            return int(self.raw.num_rows)
        return int(pc.sum(pc.equal(self.ids["change"], change)).as_py() or 0)


@dataclass(frozen=True)
class ItemTypes:
    """Types of a bundle's item columns, those of the tables it was built from.

    kinds: what a column is converted to. kept: stored types that no kind expresses.
    """

    id_column: str
    kinds: Mapping[str, ColumnType]
    kept: Mapping[str, pa.DataType]

    @classmethod
    def of(cls, bundle: Bundle) -> ItemTypes:
        """The types of a bundle's schema; of an older bundle, which leaves some open, those of its attributes too."""
        schema, stored = bundle.schema, [field for field in bundle.items_schema if field.name != "item_id"]
        attributes = {field.name: ColumnType.for_stored(field.type) for field in stored}
        kinds = {
            **schema.column_types("items", text=True),
            **{name: kind for name, kind in attributes.items() if kind is not None},
            **schema.column_types("items"),
        }
        id_column = schema.id_column("item")
        kinds[id_column] = ColumnType.for_ids(bundle.vocabulary.item_ids.type)
        kept = {field.name: field.type for field in stored if attributes[field.name] is None}
        return cls(id_column, kinds, kept)

    def converted(self, table: pa.Table) -> pa.Table:
        """A table of ads of another version in these types; a cell that does not fit is null."""
        kinds = {name: self.kinds.get(name) for name in table.column_names}
        columns = {
            name: plain_array(table[name]) if kind is None else convert(table[name], kind).values
            for name, kind in kinds.items()
        }
        return pa.table(columns)


def read_changes(feed: Any, bundle: Bundle, state: DeltaState) -> Changes:
    """Reads and checks a feed.

    Args:
        feed: a file, folder or glob, or anything with ``__arrow_c_stream__``.
        bundle: of the live version.
        state: the deltas applied to it.

    Raises:
        SchemaError: it cannot be read, has no id column, or rows that cannot be applied.
    """
    types = ItemTypes.of(bundle)
    table = InputTable(feed, bundle.schema.tables.items, "items")
    checker = _FeedChecker(bundle.schema, types)
    wanted = (types.id_column, CHANGE_COLUMN, *types.kinds)
    parts = [checker.check(batch) for batch in table.batches(types.kinds, wanted)]
    if not parts:
        raise SchemaError(f"{table.title}: expected a column {types.id_column!r}, found none.")
    rows = pa.concat_tables([part.rows for part in parts])
    bad = pa.concat_tables([*(part.bad for part in parts), _unfit(rows, types.id_column, state)])
    if bad.num_rows:
        what = f"{table.title}: {bad.num_rows} rows cannot be applied, so nothing was written. Correct them."
        raise refusal(what, [_bad_row(row) for row in bad.to_pylist()])
    others = rows.filter(pc.not_equal(rows["change"], "upsert")).select(["item_id", "change"])
    raw = pa.concat_tables([part.upserts for part in parts], promote_options="default")
    return Changes(raw, others)


@dataclass(frozen=True)
class _Part:
    """One batch, checked. rows: item_id, change, file and row of what is accepted; bad: ``REJECTS``."""

    upserts: pa.Table
    rows: pa.Table
    bad: pa.Table


@dataclass(frozen=True)
class _FeedChecker:
    """Checks batches of a feed: the id and the change of every row, and all columns of the upserts."""

    schema: DatasetSchema
    types: ItemTypes

    def check(self, batch: TableBatch) -> _Part:
        """Checks one batch.

        Raises:
            SchemaError: it has no id column.
        """
        raw, id_column = batch.table, self.types.id_column
        if id_column not in raw.column_names:
            found = ", ".join(raw.column_names) or "none"
            raise SchemaError(f"{batch.file}: expected a column {id_column!r}, found {found}.")
        checks = Checks(batch, _TABLE)
        change = _changes_of(raw, checks)
        upserts = np.asarray(pc.equal(change, "upsert"), dtype=bool)
        ids = TypedColumns(batch, self._types_of(raw), self._decimal, checks).id(id_column)
        places = np.flatnonzero(checks.accepted & upserts)
        ads = self._completed(raw.take(pa.array(places)))
        checker = EntityChecker(self.schema, "item", self._types_of(ads))
        checked = checker.check(TableBatch(ads, batch.file, 0))
        refused = places[np.asarray(checked.rejects["row"], np.int64)]
        accepted = checks.accepted
        accepted[refused] = False
        rows = pa.table(
            {
                "item_id": ids,
                "change": change,
                "file": pa.repeat(batch.file, len(raw)),
                "row": pa.array(batch.rows_of(np.arange(len(raw)))),
            }
        )
        place = checked.rejects.column_names.index("row")
        unfit = checked.rejects.set_column(place, "row", pa.array(batch.rows_of(refused)))
        bad = pa.concat_tables([checks.rejects(), malformed_rejects(batch, _TABLE), unfit])
        return _Part(checked.table, rows.filter(pa.array(accepted)), bad)

    @property
    def _decimal(self) -> str:
        return "." if self.schema.tables.items is None else self.schema.tables.items.decimal

    def _types_of(self, table: pa.Table) -> TableTypes:
        """Types of a feed's columns. One that this version does not know is kept as text, for a later version."""
        names, kept = tuple(table.column_names), self.types.kept
        kinds = {name: self.types.kinds.get(name, STRING) for name in names if name not in kept}
        return TableTypes(names, kinds, {name: kept[name] for name in names if name in kept})

    def _completed(self, ads: pa.Table) -> pa.Table:
        """The columns of the upserts, with nulls for those that the TOML names and the feed does not have."""
        columns = {name: ads[name] for name in ads.column_names if name != CHANGE_COLUMN}
        absent = [name for name in named_columns(self.schema, "items") if name not in columns]
        nulls = {name: pa.nulls(len(ads), self.types.kinds.get(name, STRING).arrow) for name in absent}
        return pa.table({**columns, **nulls})


def _changes_of(raw: pa.Table, checks: Checks) -> pa.Array:
    """``[rows]`` changes in lower case; an upsert where nothing is said."""
    if CHANGE_COLUMN not in raw.column_names:
        return pa.repeat("upsert", len(raw))
    read = convert(raw[CHANGE_COLUMN], STRING)
    plain = pc.utf8_lower(pc.utf8_trim_whitespace(read.values.fill_null("")))
    change = pc.if_else(pc.equal(plain, ""), "upsert", plain)
    known = _mask(pc.is_in(change, value_set=pa.array(CHANGES)))
    checks.reject(read.wrong | ~known, "change", CHANGE_COLUMN, f"one of {', '.join(CHANGES)}")
    return change


def _mask(flags: pa.Array) -> Bools:
    return np.asarray(flags, dtype=bool)


def _unfit(rows: pa.Table, id_column: str, state: DeltaState) -> pa.Table:
    """``REJECTS``: rows whose id came before, and changes of items that the live version does not have."""
    ids = plain_array(rows["item_id"])
    first = np.zeros(len(ids), bool)
    first[np.unique(np.asarray(ids.dictionary_encode().indices), return_index=True)[1]] = True
    upserts = _mask(pc.equal(rows["change"], "upsert"))
    strange = first & ~upserts & (state.rows_of(ids) < 0)
    parts = [(~first, "twice", "each id once"), (strange, "unknown", "an item of the live version")]
    return pa.concat_tables([_rejects(rows.filter(pa.array(bad)), rule, id_column, what) for bad, rule, what in parts])


def _rejects(rows: pa.Table, rule: str, id_column: str, what: str) -> pa.Table:
    ids = rows["item_id"].to_pylist()
    records = [json.dumps({id_column: item_id}) for item_id in ids]
    return pa.table(
        {
            "table": pa.repeat(_TABLE, len(rows)),
            "file": rows["file"],
            "row": rows["row"],
            "reason": pa.repeat(f"{rule}:{id_column}", len(rows)),
            "column": pa.repeat(id_column, len(rows)),
            "value": pa.array([str(item_id) for item_id in ids], pa.string()),
            "expected": pa.repeat(what, len(rows)),
            "record": pa.array(records, pa.string()),
        },
        schema=REJECTS,
    )


def _bad_row(row: Mapping[str, Any]) -> BadRow:
    try:
        record = None if row["record"] is None else json.loads(row["record"])
    except ValueError:  # Cut short.
        record = {row["column"]: row["value"]}
    value = record.get(row["column"]) if isinstance(record, dict) else record
    return BadRow(row["file"], row["row"], row["reason"], row["expected"] or "a value within the rule", value)
