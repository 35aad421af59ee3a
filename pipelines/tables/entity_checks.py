"""Entities: raw batches of the items or the users table to checked, typed ones.

Reads a raw Arrow batch; returns the accepted rows, their columns in the types that ``encode`` reads, and the rejects.
Pure: neither files nor Beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.conversion import as_ids, one_array, plain_type
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.schema import DatasetSchema, Side
from pipelines.tables.forgotten import Forgotten
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.rejects import MAX_ID_LENGTH, Checks, check_columns


@dataclass(frozen=True)
class Accepted:
    """Accepted rows: ``ids`` in the side's id type, ``table`` in the layout of ``EntityChecker.layout``.

    ``forgotten`` are the ids of rows that are dropped because their users are forgotten.
    """

    ids: pa.Array
    table: pa.Table
    rejects: pa.Table
    forgotten: pa.Array


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
        id_type: int64 or string.
        arrow_schema: the table's columns and types, unified over its files.
        forgotten: users to erase without trace: their rows are neither accepted nor rejected.

    Raises:
        SchemaError: a column's type cannot serve its feature.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        side: Side,
        id_type: pa.DataType,
        arrow_schema: pa.Schema,
        forgotten: Forgotten | None = None,
    ) -> None:
        self._forgotten = Forgotten.nobody() if forgotten is None else forgotten
        self._schema = schema
        self._side = side
        self._id_type = id_type
        self._arrow_schema = arrow_schema
        self._features = {feature.source: feature for feature in schema.side(side) if not feature.made_of_events}
        for name, feature in self._features.items():
            _require_type(side, name, arrow_schema.field(name).type, feature)
        self.layout = pa.schema([(field.name, self._stored_type(field)) for field in arrow_schema])

    def _stored_type(self, field: pa.Field) -> pa.DataType:
        if field.name == self._schema.id_column(self._side):
            return self._id_type
        arrow_type, feature = plain_type(field.type), self._features.get(field.name)
        if feature is not None:
            return feature.stored_type(arrow_type)
        return pa.string() if pa.types.is_null(arrow_type) else arrow_type

    def check(self, batch: TableBatch) -> Accepted:
        """Checks one batch; the accepted rows keep the batch's order."""
        raw, name = batch.table, self._schema.id_column(self._side)
        checks = Checks(len(raw))
        ids = as_ids(raw[name], self._id_type)
        checks.reject(ids.null, f"null:{name}")
        checks.reject(ids.wrong, f"type:{name}")
        if pa.types.is_string(self._id_type):
            lengths = np.asarray(pc.fill_null(pc.binary_length(ids.values), 0), np.int64)
            checks.reject(lengths > MAX_ID_LENGTH, f"length:{name}")
        columns = [
            ids.values if field.name == name else self._column(raw, field, checks) for field in self._arrow_schema
        ]
        check_columns(checks, raw, self._schema.validation.columns.get(f"{self._side}s", {}))  # type: ignore[call-overload]
        hidden = self._forgotten.holds(ids.values)
        checks.hide(hidden)
        kept = pa.array(checks.accepted)
        table = pa.Table.from_arrays(columns, schema=self.layout).filter(kept)
        rejects = checks.rejects(batch, f"{self._side}s")
        return Accepted(ids.values.filter(kept), table, rejects, ids.values.filter(pa.array(hidden)))

    def _column(self, raw: pa.Table, field: pa.Field, checks: Checks) -> pa.Array:
        column, feature = one_array(raw[field.name]), self._features.get(field.name)
        if feature is not None:
            column = feature.check(column, lambda bad, rule: checks.reject(bad, f"{rule}:{field.name}"))
        return column.cast(self.layout.field(field.name).type)


def _require_type(side: Side, name: str, arrow_type: pa.DataType, feature: Feature) -> None:
    arrow_type = plain_type(arrow_type)
    if not feature.accepts(arrow_type) and not pa.types.is_null(arrow_type):
        raise SchemaError(
            f"tables.{side}s: column {name!r} has type {arrow_type}, {feature.title} expects {feature.expects}. Change "
            "the feature's kind or the column."
        )
