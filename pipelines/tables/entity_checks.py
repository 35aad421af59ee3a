"""Entities: raw batches of the items or the users table to checked, typed ones.

Reads a raw Arrow batch; gives the accepted rows, their columns in the types that ``encode`` reads, and the rejects.
Pure: neither files nor Beam.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import (
    CategoricalFeature,
    CountFeature,
    DatasetSchema,
    EmbeddingFeature,
    Feature,
    IdFeature,
    ListFeature,
    NumericFeature,
    Side,
    TextFeature,
)
from pipelines.tables.conversion import as_ids, as_numbers, as_times, one_array
from pipelines.tables.readers import Batch
from pipelines.tables.rejects import MAX_ID_LENGTH, Checks, check_columns, check_vectors


@dataclass(frozen=True)
class Accepted:
    """Accepted rows: ``ids`` in the side's id type, ``table`` in the layout of ``EntityChecker.layout``."""

    ids: pa.Array
    table: pa.Table
    rejects: pa.Table


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
    named += [feature.source for feature in schema.side(side) if not isinstance(feature, CountFeature)]
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
        forgotten: ids of which no trace may stay: their rows are neither accepted nor rejected.

    Raises:
        SchemaError: a column's type cannot serve its feature.
    """

    def __init__(
        self,
        schema: DatasetSchema,
        side: Side,
        id_type: pa.DataType,
        arrow_schema: pa.Schema,
        forgotten: pa.Array | None = None,
    ) -> None:
        self._forgotten = forgotten
        self._schema = schema
        self._side = side
        self._id_type = id_type
        self._arrow_schema = arrow_schema
        self._features = {
            feature.source: feature for feature in schema.side(side) if not isinstance(feature, CountFeature)
        }
        for name, feature in self._features.items():
            _require_type(side, name, arrow_schema.field(name).type, feature)
        self.layout = pa.schema([(field.name, self._stored_type(field)) for field in arrow_schema])

    def _stored_type(self, field: pa.Field) -> pa.DataType:
        if field.name == self._schema.id_column(self._side):
            return self._id_type
        kind = _plain_type(field.type)
        feature = self._features.get(field.name)
        if isinstance(feature, NumericFeature) and pa.types.is_string(kind):
            return pa.float64()
        if isinstance(feature, EmbeddingFeature):
            return pa.list_(pa.float32())
        if feature is not None and feature.kind == "time_since" and pa.types.is_string(kind):
            return pa.timestamp("us", tz="UTC")
        return pa.string() if pa.types.is_null(kind) else kind

    def check(self, batch: Batch) -> Accepted:
        """Checks one batch; the accepted rows stand in the batch's order."""
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
        if self._forgotten is not None:
            checks.hide(np.asarray(pc.is_in(ids.values, value_set=self._forgotten), dtype=bool))
        kept = pa.array(checks.accepted)
        table = pa.Table.from_arrays(columns, schema=self.layout).filter(kept)
        rejects = checks.rejects(raw, f"{self._side}s", batch.file, batch.first_row)
        return Accepted(ids.values.filter(kept), table, rejects)

    def _column(self, raw: pa.Table, field: pa.Field, checks: Checks) -> pa.Array:
        column = one_array(raw[field.name])
        target = self.layout.field(field.name).type
        feature = self._features.get(field.name)
        if isinstance(feature, NumericFeature) and pa.types.is_string(column.type):
            converted = as_numbers(column)
            checks.reject(converted.wrong, f"type:{field.name}")
            return converted.values
        if feature is not None and feature.kind == "time_since" and pa.types.is_string(column.type):
            times = as_times(column)
            checks.reject(times.wrong, f"type:{field.name}")
            return times.values.cast(target)
        if isinstance(feature, EmbeddingFeature) and not pa.types.is_null(column.type):
            column = column.cast(pa.list_(column.type.value_type))
            check_vectors(checks, column, field.name, feature.dim)
        return column.cast(target)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.string() if pa.types.is_large_string(kind) or pa.types.is_string_view(kind) else kind


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _require_type(side: Side, name: str, kind: pa.DataType, feature: Feature) -> None:
    kind = _plain_type(kind)
    text, number, lists = pa.types.is_string(kind), _is_number(kind) or pa.types.is_decimal(kind), _is_list(kind)
    if isinstance(feature, IdFeature | CategoricalFeature):
        fits, expected = text or _is_number(kind) or pa.types.is_temporal(kind), "text or numbers"
    elif isinstance(feature, TextFeature):
        fits, expected = text, "text"
    elif isinstance(feature, ListFeature):
        fits, expected = lists and not pa.types.is_nested(kind.value_type), "lists of text or numbers"
    elif isinstance(feature, NumericFeature):
        fits, expected = text or number, "numbers"
    elif isinstance(feature, EmbeddingFeature):
        fits, expected = lists and _is_number(kind.value_type), "lists of numbers"
    else:
        fits, expected = text or pa.types.is_temporal(kind) or pa.types.is_int64(kind), "timestamps or dates"
    if not fits and not pa.types.is_null(kind):
        raise SchemaError(
            f"tables.{side}s: column {name!r} has type {kind}, feature {feature.name!r} of kind {feature.kind!r} "
            f"expects {expected}. Change the feature's kind or the column."
        )
