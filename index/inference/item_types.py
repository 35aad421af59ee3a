"""Types of a version's item columns: what the cells of a changed ad are converted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import convert, plain_array
from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.schema import DatasetSchema


@dataclass(frozen=True)
class ItemTypes:
    """Types of a bundle's item columns, those of the tables it was built from.

    kinds: what a column is converted to, the id column included. kept: stored types that no kind expresses.
    """

    id_column: str
    kinds: Mapping[str, ColumnType]
    kept: Mapping[str, pa.DataType]

    @classmethod
    def of(cls, schema: DatasetSchema, item_ids: pa.DataType, stored: pa.Schema) -> ItemTypes:
        """The types of a bundle.

        Args:
            schema: the bundle's; an older bundle's leaves some types open.
            item_ids: type of the catalogue's ids.
            stored: columns that the bundle has of its items, ``item_id`` and counts included.
        """
        fields = [field for field in stored if field.name != "item_id"]
        found = {field.name: ColumnType.for_stored(field.type) for field in fields}
        kinds = {
            **schema.column_types("items", text=True),
            **{name: kind for name, kind in found.items() if kind is not None},
            **schema.column_types("items"),
        }
        id_column = schema.id_column("item")
        kinds[id_column] = ColumnType.for_ids(item_ids)
        return cls(id_column, kinds, {field.name: field.type for field in fields if found[field.name] is None})

    def arrow(self, name: str) -> pa.DataType:
        """The type in which a column is kept; text for a column that the version does not know."""
        return self.kept.get(name) or self.kinds.get(name, STRING).arrow

    def ids(self, ids: pa.Array | pa.ChunkedArray) -> pa.Array:
        """Ids of another version in this one's type, null where they cannot be one."""
        return convert(ids, self.kinds[self.id_column]).values

    def column(self, column: pa.Array | pa.ChunkedArray, name: str) -> tuple[pa.Array, Bools]:
        """A column in its type here, null where a cell does not fit, and ``[n] bool`` where that is."""
        kept = self.kept.get(name)
        if kept is None:
            read = convert(column, self.kinds.get(name, STRING))
            return read.values, read.wrong
        plain = plain_array(column)
        try:
            return (plain if plain.type == kept else plain.cast(kept)), np.zeros(len(plain), bool)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return pa.nulls(len(plain), kept), np.asarray(plain.is_valid(), dtype=bool)
