"""The change feed: a table of ads, read and checked exactly as the nightly items table is.

Reads Parquet, CSV, TSV and JSONL as ``[tables.items]`` says they are written, or an Arrow table; each column is
converted to the type that the bundle's schema has for it. A feed with a bad row is refused as a whole, and the error
names the bad rows of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from index.inference.item_types import ItemTypes
from index.registry.delta_entry import CHANGE_COLUMN as ENTRY_CHANGE
from index.registry.delta_entry import CHANGES, ID_COLUMN, SAID_COLUMN
from index.registry.deltas import DeltaState
from pipelines.contracts.arrays import Bools, Int64
from pipelines.contracts.conversion import convert, plain_array
from pipelines.contracts.conversion.column_type import STRING
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import ColumnRule, DatasetSchema
from pipelines.tables.column_types import TableTypes, named_columns
from pipelines.tables.entity_checks import EntityChecker
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.input_table import BadRow, InputTable, refusal
from pipelines.tables.rejects.checks import REJECTS, Checks, malformed_rejects
from pipelines.tables.rejects.typed_columns import TypedColumns

CHANGE_COLUMN = "change"
_TABLE: Literal["items"] = "items"
_SAID_TYPE = pa.list_(pa.string())


@dataclass(frozen=True)
class Changes:
    """A checked feed.

    raw: the upserted ads' columns in their types, the id column first. said: ``[ads]`` names of the columns that each
    ad's row sets, nulls included: all of a table's, the keys of a JSONL row. ids: item_id and change of the others.
    """

    raw: pa.Table
    said: pa.Array
    ids: pa.Table

    def count(self, change: str) -> int:
        """Number of items with this change."""
        if change == "upsert":
            return int(self.raw.num_rows)
        return int(pc.sum(pc.equal(self.ids["change"], change)).as_py() or 0)

    def rows(self) -> pa.Table:
        """The rows of a log's entry."""
        id_column = self.raw.column_names[0]
        ads = {name: self.raw[name] for name in self.raw.column_names[1:]}
        upserts = {
            ID_COLUMN: self.raw[id_column],
            ENTRY_CHANGE: pa.repeat("upsert", len(self.raw)),
            SAID_COLUMN: self.said,
        }
        others = {ID_COLUMN: self.ids["item_id"], ENTRY_CHANGE: self.ids["change"]}
        parts = [pa.table({**upserts, **ads}), pa.table(others)]
        return pa.concat_tables(parts, promote_options="default").combine_chunks()


def read_changes(feed: Any, state: DeltaState, named: Callable[[], Collection[Any]] = frozenset) -> Changes:
    """Reads and checks a feed.

    Args:
        feed: a file, folder or glob, or anything with ``__arrow_c_stream__``.
        state: the live version with the log applied.
        named: ids that the log names; asked only for changes of ads that the version does not know.

    Raises:
        SchemaError: it cannot be read, has no id column, or rows that cannot be applied.
    """
    bundle, types = state.bundle, state.bundle.item_types
    table = InputTable(feed, bundle.schema.tables.items, "items")
    checker = _FeedChecker(bundle.schema, types, state)
    wanted = (types.id_column, CHANGE_COLUMN, *types.kinds)
    parts = [checker.check(batch) for batch in table.batches(types.kinds, wanted, with_keys=True)]
    if not parts:
        raise SchemaError(f"{table.title}: expected a column {types.id_column!r}, found none.")
    rows = pa.concat_tables([part.rows for part in parts])
    bad = pa.concat_tables([*(part.bad for part in parts), _unfit(rows, types.id_column, state, named)])
    if bad.num_rows:
        what = f"{table.title}: {bad.num_rows} rows cannot be applied, so nothing was written. Correct them."
        raise refusal(what, [_bad_row(row) for row in bad.to_pylist()])
    others = rows.filter(pc.not_equal(rows["change"], "upsert")).select(["item_id", "change"])
    raw = pa.concat_tables([part.upserts for part in parts], promote_options="default")
    first = raw.select([types.id_column, *(name for name in raw.column_names if name != types.id_column)])
    return Changes(first, pa.concat_arrays([part.said for part in parts]), others)


@dataclass(frozen=True)
class _Part:
    """One batch, checked. said: of the upserts; rows: item_id, change, file and row of what is accepted; bad:
    ``REJECTS``."""

    upserts: pa.Table
    said: pa.Array
    rows: pa.Table
    bad: pa.Table


@dataclass(frozen=True)
class _FeedChecker:
    """Checks batches of a feed: the id and the change of every row, and all columns of the upserts."""

    schema: DatasetSchema
    types: ItemTypes
    state: DeltaState

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
        ads = self._ads(batch, ids.take(pa.array(places)), places)
        accepted = checks.accepted
        accepted[ads.refused] = False
        rows = pa.table(
            {
                "item_id": ids,
                "change": change,
                "file": pa.repeat(batch.file, len(raw)),
                "row": pa.array(batch.rows_of(np.arange(len(raw)))),
            }
        )
        bad = pa.concat_tables([checks.rejects(), malformed_rejects(batch, _TABLE), ads.bad])
        return _Part(ads.table, ads.said, rows.filter(pa.array(accepted)), bad)

    def _ads(self, batch: TableBatch, ids: pa.Array, places: Int64) -> _Ads:
        """Checks the upserts, which are the rows at ``places``. A rule that forbids nulls does not refuse what a row of
        a known ad does not say: it stays as it was."""
        raw = batch.table.take(pa.array(places))
        own = [name for name in raw.column_names if name not in (CHANGE_COLUMN, self.types.id_column)]
        completed = self._completed(raw)
        checker = EntityChecker(self._lenient, "item", self._types_of(completed))
        ads = TableBatch(completed, batch.file, 0)
        checked = checker.check(ads)
        said = _said(batch, own).take(pa.array(places))
        checks = Checks(ads, _TABLE)
        known = np.zeros(len(ads.table), bool)
        known[checked.rows] = self.state.rows_of(ids.take(pa.array(checked.rows))) >= 0
        for name in self._never_null:
            null = np.zeros(len(ads.table), bool)
            null[checked.rows] = np.asarray(checked.table[name].is_null(), dtype=bool)
            checks.reject(null & (_mentions(said, name) | ~known), "null", name, "a value")
        rejects = pa.concat_tables([checked.rejects, checks.rejects()])
        refused = places[np.asarray(rejects["row"], np.int64)]
        kept = np.flatnonzero(checks.accepted[checked.rows])
        table = checked.table.select([self.types.id_column, *own]).take(pa.array(kept))
        place = rejects.column_names.index("row")
        bad = rejects.set_column(place, "row", pa.array(batch.rows_of(refused)))
        return _Ads(table, said.take(pa.array(checked.rows[kept])), refused, bad)

    @property
    def _rules(self) -> dict[str, ColumnRule]:
        return dict(self.schema.validation.columns.get(_TABLE, {}))

    @property
    def _never_null(self) -> list[str]:
        return [name for name, rule in self._rules.items() if rule.nullable is False]

    @property
    def _lenient(self) -> DatasetSchema:
        """The schema without the rules that forbid nulls."""
        rules = {name: rule.model_copy(update={"nullable": None}) for name, rule in self._rules.items()}
        columns = {**self.schema.validation.columns, _TABLE: rules}
        validation = self.schema.validation.model_copy(update={"columns": columns})
        return self.schema.model_copy(update={"validation": validation})

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
        absent = [name for name in named_columns(self.schema, _TABLE) if name not in columns]
        nulls = {name: pa.nulls(len(ads), self.types.kinds.get(name, STRING).arrow) for name in absent}
        return pa.table({**columns, **nulls})


@dataclass(frozen=True)
class _Ads:
    """Checked upserts. refused: ``[n]`` places in the batch of those that are ``bad`` (``REJECTS``)."""

    table: pa.Table
    said: pa.Array
    refused: Int64
    bad: pa.Table


def _said(batch: TableBatch, own: list[str]) -> pa.Array:
    """``[rows]`` names of the columns that each row sets."""
    if batch.keys is None:
        return pa.array([own], _SAID_TYPE).take(pa.array(np.zeros(len(batch.table), np.int64)))
    mine = set(own)
    return pa.array([[name for name in keys if name in mine] for keys in batch.keys.to_pylist()], _SAID_TYPE)


def _mentions(said: pa.Array, name: str) -> Bools:
    """``[rows] bool``: the rows that set the column."""
    found = np.zeros(len(said), bool)
    owner = np.asarray(pc.list_parent_indices(said))
    found[owner[np.asarray(pc.equal(pc.list_flatten(said), name), dtype=bool)]] = True
    return found


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


def _unfit(rows: pa.Table, id_column: str, state: DeltaState, named: Callable[[], Collection[Any]]) -> pa.Table:
    """``REJECTS``: rows whose id came before, and changes of items that neither the live version nor the log has."""
    ids = plain_array(rows["item_id"])
    first = np.zeros(len(ids), bool)
    first[np.unique(np.asarray(ids.dictionary_encode().indices), return_index=True)[1]] = True
    upserts = _mask(pc.equal(rows["change"], "upsert"))
    strange = first & ~upserts & (state.rows_of(ids) < 0)
    if strange.any():
        known = named()
        strange &= np.array([item_id not in known for item_id in ids.to_pylist()], bool)
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
