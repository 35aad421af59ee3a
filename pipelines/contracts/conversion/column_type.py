"""The declared types of columns: what a cell is converted to, whatever the file's format says."""

from __future__ import annotations

import zoneinfo
from typing import Literal, Self

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from pipelines.contracts.configuration import Section
from pipelines.contracts.conversion.plain import plain_type

TypeName = Literal["string", "int64", "float64", "bool", "timestamp", "list", "embedding"]
TimeUnit = Literal["s", "ms", "us", "ns"]

MOMENT = pa.timestamp("us", tz="UTC")


class ColumnType(Section):
    """The type of one column. In the TOML it is a name, or a table where the type needs more than a name."""

    type: TypeName = Field(
        description="string, int64, float64, bool, timestamp, list (several values) or embedding (a vector of numbers)."
    )
    unit: TimeUnit | None = Field(
        default=None, description="timestamp: unit of integers since 1970-01-01 UTC. Not set: integers are refused."
    )
    timezone: str | None = Field(
        default=None, description='timestamp: time zone of times without one, such as "Europe/Berlin". Not set: UTC.'
    )
    separator: str | None = Field(
        default=None,
        min_length=1,
        description='list, embedding: text between the values of a cell, such as "|". Not set: cells are arrays in '
        'brackets, such as ["a", "b"] or {a,b}.',
    )
    of: Literal["string", "int64"] = Field(default="string", description="list: type of its values.")

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, zone: str | None) -> str | None:
        if zone is not None:
            try:
                zoneinfo.ZoneInfo(zone)
            except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError) as err:
                raise ValueError('expected a time zone of the IANA database, such as "Europe/Berlin"') from err
        return zone

    @model_validator(mode="after")
    def _own_keys(self) -> Self:
        owners = {
            "unit": ("timestamp",),
            "timezone": ("timestamp",),
            "separator": ("list", "embedding"),
            "of": ("list",),
        }
        for key in self.model_fields_set & owners.keys():
            # A default is fine: a schema that is read back from JSON names every key.
            given = getattr(self, key) != type(self).model_fields[key].default
            if given and self.type not in owners[key]:
                raise ValueError(f"{key} is for the type {' or '.join(owners[key])} only, and the type is {self.type}")
        return self

    @classmethod
    def for_stored(cls, stored: pa.DataType) -> ColumnType | None:
        """The type that holds the values of a stored column; None if there is none (a decimal, a structure)."""
        types = pa.types
        families = (
            (types.is_string, STRING),
            (types.is_boolean, BOOL),
            (types.is_integer, INT64),
            (types.is_floating, FLOAT64),
            (lambda kind: types.is_timestamp(kind) or types.is_date(kind), TIMESTAMP),
        )
        for is_of, kind in families:
            if is_of(stored):
                return kind
        lists = (LIST, INT64_LIST, EMBEDDING)
        return next((kind for kind in lists if kind.arrow == stored), None)

    @classmethod
    def for_ids(cls, stored: pa.DataType) -> ColumnType:
        """The type of ids or categories that a column holds: int64 where it holds integers, else string."""
        return INT64 if pa.types.is_integer(plain_type(stored)) else STRING

    @property
    def arrow(self) -> pa.DataType:
        """The type in which the column is stored."""
        if self.type == "list":
            return pa.list_(pa.int64() if self.of == "int64" else pa.string())
        return _ARROW[self.type]


_ARROW = {
    "string": pa.string(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "timestamp": MOMENT,
    "embedding": pa.list_(pa.float32()),
}
STRING = ColumnType(type="string")
INT64 = ColumnType(type="int64")
FLOAT64 = ColumnType(type="float64")
BOOL = ColumnType(type="bool")
TIMESTAMP = ColumnType(type="timestamp")
LIST = ColumnType(type="list")
INT64_LIST = ColumnType(type="list", of="int64")
EMBEDDING = ColumnType(type="embedding")
