"""Entities: raw batches of the items or the users table to checked, typed ones.

Reads a raw Arrow batch; returns the accepted rows, their columns in the types that ``encode`` reads, and the rejects.
Pure: neither files nor Beam.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import plain_type
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.schema import DatasetSchema, Side, TableName
from pipelines.tables.column_types import TableTypes, named_columns
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects.checks import Checks
from pipelines.tables.rejects.rules import check_columns
from pipelines.tables.rejects.typed_columns import TypedColumns

# What a feature's own rules expect of a cell.
_EXPECTED = {"dimension": "a vector of the feature's dim", "nan": "finite numbers", "zero": "a vector other than 0"}


@dataclass(frozen=True)
class Accepted:
    """Accepted rows: ``ids`` in the side's id type, ``table`` in the layout of ``EntityChecker.layout``.

    ``forgotten`` are the ids of rows that are dropped because their users are forgotten; ``rows`` (``[accepted]``) are
    the places of the accepted rows in their file.
    """

    ids: pa.Array
    table: pa.Table
    rejects: pa.Table
    forgotten: pa.Array
    rows: Int64


def entity_columns(schema: DatasetSchema, side: Side, available: Sequence[str]) -> list[str]:
    """Columns to read: all of the items table (attributes may be any), of the users table what features need.

    Raises:
        SchemaError: a feature, a role or a rule names a column that the table does not have.
    """
    table = schema.tables.items if side == "item" else schema.tables.users
    if table is None:
        return []
    named: list[str | None] = [schema.id_column(side)]
    if schema.tables.items is not None and side == "item":
        named += [schema.tables.items.advertiser_id, schema.tables.items.title]
    named += [feature.source for feature in schema.side(side) if not feature.made_of_events]
    named += list(schema.validation.columns.get(f"{side}s", {}))  # type: ignore[call-overload]
    needed = [name for name in dict.fromkeys(named) if name is not None]
    missing = [name for name in needed if name not in available]
    if missing:
        raise SchemaError(
            f"tables.{side}s: expected column {missing[0]!r}, found only {', '.join(available) or 'none'}. "
            "Correct the schema or the table."
        )
    return list(available) if side == "item" else needed


class EntityChecker:
    """Checks batches of one side's table.

    Args:
        schema: the data set's.
        side: item or user.
        types: of the table's columns, those to read.
        forgotten: users to erase without trace: their rows are neither accepted nor rejected.

    Raises:
        SchemaError: a column's type cannot serve its feature.
    """

    def __init__(
        self, schema: DatasetSchema, side: Side, types: TableTypes, forgotten: Forgotten | None = None
    ) -> None:
        self._forgotten = Forgotten.empty() if forgotten is None else forgotten
        self._schema = schema
        self._table: TableName = "items" if side == "item" else "users"
        self._id_column = schema.id_column(side)
        self._types = types
        self._named = frozenset(named_columns(schema, self._table))
        source = getattr(schema.tables, self._table)
        self._decimal = "." if source is None else source.decimal
        self._features: dict[str, list[Feature]] = defaultdict(list)
        for feature in schema.side(side):
            if not feature.made_of_events:
                self._features[feature.source].append(feature)
        self.layout = types.arrow_schema
        for name, features in self._features.items():
            for feature in features:
                _require_type(self._table, name, self.layout.field(name).type, feature)

    def check(self, batch: TableBatch) -> Accepted:
        """Checks one batch; the accepted rows keep the batch's order."""
        checks = Checks(batch, self._table)
        typed = TypedColumns(batch, self._types, self._decimal, checks)
        columns = {self._id_column: typed.id(self._id_column)}
        for name in self._types.columns:
            if name not in columns:
                columns[name] = self._value(typed, checks, name)
        rules = self._schema.validation.columns.get(self._table, {})
        check_columns(checks, lambda name: columns[name], rules)
        ids = columns[self._id_column]
        hidden = self._forgotten.holds(ids)
        checks.hide(hidden)
        kept = checks.accepted
        arrays = [columns[name] for name in self._types.columns]
        table = pa.Table.from_arrays(arrays, schema=self.layout).filter(pa.array(kept))
        return Accepted(
            ids.filter(pa.array(kept)),
            table,
            checks.rejects(),
            ids.filter(pa.array(hidden)),
            batch.rows_of(np.flatnonzero(kept)),
        )

    def _value(self, typed: TypedColumns, checks: Checks, name: str) -> pa.Array:
        if name not in self._named:
            return typed.as_they_are(name)
        column = typed.value(name)
        for feature in self._features.get(name, []):
            feature.check(column, lambda bad, rule: checks.reject(bad, rule, name, _EXPECTED.get(rule)))
        return column


def _require_type(table: TableName, name: str, arrow_type: pa.DataType, feature: Feature) -> None:
    if not feature.accepts(plain_type(arrow_type)):
        raise SchemaError(
            f"tables.{table}: column {name!r} has type {arrow_type}, {feature.title} expects {feature.expects}. Change "
            f"the feature's kind, or declare another type: [tables.{table}.types] {name} = ..."
        )
