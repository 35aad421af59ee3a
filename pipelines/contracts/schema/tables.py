"""The tables of a schema: where they are, how their files are read, which columns have a role."""

from __future__ import annotations

import codecs
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.contracts.configuration import Section
from pipelines.contracts.conversion.column_type import ColumnType


class TableSource(Section):
    """Where a table is, how its files are read, and the types of its columns."""

    path: str | tuple[str, ...] = Field(
        description="A file, a folder, a glob, an fsspec URL, or a list of these. Relative paths start at the TOML's "
        "folder. A folder: all Parquet, CSV, TSV and JSONL files in it and below."
    )
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl"] = Field(
        default="auto", description="File format. auto: by the file's ending."
    )
    delimiter: str | None = Field(
        default=None, min_length=1, max_length=1, description='CSV: character between cells. Not set: "," (TSV: a tab).'
    )
    encoding: str = Field(default="utf-8", description='Text formats: encoding, such as "utf-16" or "latin-1".')
    decimal: Literal[".", ","] = Field(default=".", description="Text formats: decimal mark of numbers.")
    types: dict[str, ColumnType] = Field(
        default={},
        description='Types of columns: `price = "float64"` or `listed_at = { type = "timestamp", unit = "s" }`. A '
        "column not listed has the type that its role or feature implies, else that of the Parquet file; in text "
        "formats it is a string.",
    )

    @field_validator("types", mode="before")
    @classmethod
    def _type_by_name(cls, types: object) -> object:
        if not isinstance(types, dict):
            return types
        return {name: {"type": kind} if isinstance(kind, str) else kind for name, kind in types.items()}

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str) -> str:
        try:
            codecs.lookup(encoding)
        except LookupError as err:
            raise ValueError('expected a text encoding, such as "utf-8", "utf-16" or "latin-1"') from err
        return encoding

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths or globs, always as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    def at(self, path: str) -> TableSource:
        """Files elsewhere that are written as this table's; their format is that of their ending."""
        own = {name: getattr(self, name) for name in ("delimiter", "encoding", "decimal", "types")}
        return TableSource(path=path, **own)


class EventsTable(TableSource):
    """One row per event: a user did something with an item.

    Exactly one of ``time``, ``order`` and ``unordered`` is given. Events of a user with the same time (or order) form
    one basket: none of them is in another's history.
    """

    user_id: str = Field(description="Column of the user's id, integers or text.")
    item_id: str = Field(description="Column of the item's id, integers or text.")
    time: str | None = Field(default=None, description="Timestamp or date column (UTC).")
    order: str | None = Field(default=None, description="Integer column that orders a user's events; larger is later.")
    unordered: bool = Field(default=False, description="The events have neither time nor order.")
    action: str | None = Field(
        default=None, description="Column of what the user did, one of the names in `[actions]`. Not set: one action."
    )
    value: str | None = Field(
        default=None, description="Numeric column of what the event was worth. It tells equal events apart."
    )

    @model_validator(mode="after")
    def _one_order(self) -> Self:
        given = [self.time is not None, self.order is not None, self.unordered]
        if sum(given) != 1:
            raise ValueError("give exactly one of time = COLUMN, order = COLUMN, unordered = true")
        return self

    @property
    def order_column(self) -> str | None:
        """The column that orders a user's events; None where they have no order."""
        return self.time if self.time is not None else self.order


class ItemsTable(TableSource):
    """One row per item, that is, per shopping ad."""

    item_id: str = Field(description="Column of the item's id.")
    advertiser_id: str | None = Field(
        default=None, description="Column of the advertiser's id, for reports, rules and the gate on advertisers."
    )
    title: str | None = Field(default=None, description="Column of the title shown to people.")


class UsersTable(TableSource):
    """One row per user: what is known about a user besides the events."""

    user_id: str = Field(description="Column of the user's id.")


class Tables(Section):
    """The three tables. Without ``items`` the catalogue is the set of items that events name; likewise users."""

    events: EventsTable = Field(description="The events.")
    items: ItemsTable | None = Field(default=None, description="The items.")
    users: UsersTable | None = Field(default=None, description="The users.")
