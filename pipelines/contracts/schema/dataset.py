"""The schema as a whole, and how it is read."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from pipelines.contracts.configuration import Section, describe
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, STRING, TIMESTAMP, ColumnType
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.kinds import CountFeature, Feature, IdFeature
from pipelines.contracts.schema.split import Split
from pipelines.contracts.schema.tables import Tables, TableSource
from pipelines.contracts.schema.validation import Validation

Side = Literal["user", "item"]
TableName = Literal["events", "items", "users"]


class Ids(Section):
    """Types of the ids, the same in all tables and in every request.

    Not set: int64 if every file that names the id is Parquet with integers, else string.
    """

    user: Literal["string", "int64"] | None = Field(default=None, description="Type of user ids: string or int64.")
    item: Literal["string", "int64"] | None = Field(default=None, description="Type of item ids: string or int64.")


class Features(Section):
    """Features of the two sides, in the order they are given."""

    user: tuple[Feature, ...] = ()
    item: tuple[Feature, ...] = ()

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        for side, features in (("user", self.user), ("item", self.item)):
            names = [feature.name for feature in features]
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"features.{side}: each name may occur once, repeated: {', '.join(twice)}")
        return self


class History(Section):
    """How much of a user's past the user tower sees."""

    max_length: int = Field(
        default=50,
        ge=1,
        description="Number of a user's latest events in the history. More: better vectors for active users, larger "
        "features and slower training.",
    )


class Dataset(Section):
    """The data set."""

    name: str = Field(description="Name, shown in manifests and reports.")


class DatasetSchema(Section):
    """Everything that ``pipelines`` needs to know about a data set."""

    dataset: Dataset
    tables: Tables
    ids: Ids = Ids()
    actions: dict[str, float] = Field(
        default={},
        description="Names of the actions and their weights as training positives. 0: context, part of histories and "
        "never a positive. Rows with other actions are rejected.",
    )
    features: Features = Features()
    history: History = History()
    split: Split
    validation: Validation = Validation()
    seed: int = Field(default=17, description="Seed of training, tuning and of `split.valid_fraction`.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.actions and self.tables.events.action is None:
            raise ValueError("[actions] has weights, but tables.events.action names no column")
        if self.actions and (min(self.actions.values()) < 0 or max(self.actions.values()) <= 0):
            raise ValueError(
                f"actions: expected weights of 0 (context only) or more, one of them above 0, got {self.actions}"
            )
        self._refuse_types_against_roles()
        if self.tables.events.unordered and self.split.column is None:
            raise ValueError("unordered events have no time: split.column must name the column that splits them")
        if self.tables.events.order is not None and isinstance(self.split.valid_from, datetime.datetime):
            raise ValueError("tables.events.order is an integer: split.valid_from and test_from must be integers")
        if self.tables.events.time is not None and isinstance(self.split.valid_from, int):
            raise ValueError("tables.events.time is a time: split.valid_from and test_from must be dates")
        if self.split.rolls and self.tables.events.time is None:
            raise ValueError("split.valid_days and test_days count days: tables.events.time must name a column")
        for side, table in (("user", self.tables.users), ("item", self.tables.items)):
            for feature in self.side(side):  # type: ignore[arg-type]
                if table is None and feature.needs_table:
                    raise ValueError(f"features.{side} {feature.name!r} needs [tables.{side}s], which is not given")
            for count in self.counts(side):  # type: ignore[arg-type]
                if count.action is not None and count.action not in self.action_names:
                    raise ValueError(
                        f"features.{side} {count.name!r}: expected an action of [actions], one of "
                        f"{', '.join(self.action_names)}, got {count.action!r}"
                    )
            if table is None and self.validation.columns.get(f"{side}s"):  # type: ignore[call-overload]
                raise ValueError(f"validation.columns.{side}s needs [tables.{side}s], which is not given")
        return self

    def side(self, side: Side) -> tuple[Feature, ...]:
        """The features of one side; an item side without any is the item's id alone."""
        if side == "user":
            return self.features.user
        if self.features.item:
            return self.features.item
        return (IdFeature(kind="id", name="item_id", column=self.id_column("item")),)

    def counts(self, side: Side) -> tuple[CountFeature, ...]:
        """The features of one side that the job counts from the events."""
        return tuple(feature for feature in self.side(side) if isinstance(feature, CountFeature))

    def id_column(self, side: Side) -> str:
        """The id column of the side's own table, or of the events if it has none."""
        if side == "user":
            return self.tables.events.user_id if self.tables.users is None else self.tables.users.user_id
        return self.tables.events.item_id if self.tables.items is None else self.tables.items.item_id

    def column_types(self, table: TableName, *, text: bool = False) -> dict[str, ColumnType]:
        """Types of the table's columns as the TOML declares them, or as a column's role or feature implies.

        Columns that are left out have the type that their Parquet files declare; so have id columns unless ``[ids]``
        declares them. With ``text`` the columns of features have a type in any case, and what is left out is a string:
        files of text formats declare nothing.
        """
        source = getattr(self.tables, table)
        if source is None:
            return {}
        side: Side = "item" if table == "items" else "user"
        implied = self._event_types() if table == "events" else self._entity_types(side, text=text)
        return {name: kind for name, kind in {**implied, **source.types}.items() if kind is not None}

    def _refuse_types_against_roles(self) -> None:
        events, items = self.tables.events, self.tables.items
        roles = [
            ("events", "time", events.time, ("timestamp",)),
            ("events", "order", events.order, ("int64",)),
            ("events", "action", events.action, ("string",)),
            ("events", "value", events.value, ("float64", "int64")),
            ("events", "split.column", self.split.column, ("string",)),
            ("items", "title", None if items is None else items.title, ("string",)),
        ]
        for table, role, column, fitting in roles:
            declared = getattr(self.tables, table).types.get(column) if column is not None else None
            if declared is not None and declared.type not in fitting:
                raise ValueError(
                    f'{role} = "{column}": expected a column of type {" or ".join(fitting)}, '
                    f'got [tables.{table}.types] {column} = "{declared.type}". '
                    f'Remove that line, or write {column} = "{fitting[0]}".'
                )

    def _event_types(self) -> dict[str, ColumnType | None]:
        events = self.tables.events
        roles = {
            self.split.column: STRING,
            events.value: FLOAT64,
            events.action: STRING,
            events.order: INT64,
            events.time: TIMESTAMP,
            events.item_id: id_type(self.ids.item),
            events.user_id: id_type(self.ids.user),
        }
        return {name: kind for name, kind in roles.items() if name is not None}

    def _entity_types(self, side: Side, *, text: bool) -> dict[str, ColumnType | None]:
        types: dict[str, ColumnType | None] = {}
        if side == "item" and self.tables.items is not None and self.tables.items.title is not None:
            types[self.tables.items.title] = STRING
        for feature in self.side(side):
            if not feature.made_of_events:
                kind = feature.implied_type
                types[feature.source] = feature.text_type if kind is None and text else kind
        return {**types, self.id_column(side): id_type(self.ids.user if side == "user" else self.ids.item)}

    def with_stored(self, types: Mapping[TableName, Mapping[str, ColumnType]], ids: Ids) -> DatasetSchema:
        """The schema with the types that a run has settled: those of columns that it leaves open, and of the ids."""
        tables: dict[str, TableSource] = {}
        for name, stored in types.items():
            source: TableSource | None = getattr(self.tables, name)
            if source is not None:
                open_ones = {column: kind for column, kind in stored.items() if column not in self.column_types(name)}
                tables[name] = source.model_copy(update={"types": {**open_ones, **source.types}})
        return self.model_copy(update={"ids": ids, "tables": self.tables.model_copy(update=tables)})

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the actions, in the order of their codes; one unnamed action if there is no column."""
        return tuple(self.actions) if self.actions else ("event",)

    @property
    def action_weights(self) -> tuple[float, ...]:
        """The weights of the actions, in the order of their codes; 0 is context: in histories, never held-out truth."""
        return tuple(self.actions.values()) if self.actions else (1.0,)


def id_type(name: Literal["string", "int64"] | None) -> ColumnType | None:
    """The declared type of an id; None if it is not declared."""
    return None if name is None else ColumnType(type=name)


def resolve_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns ``raw`` with the tables' relative paths made absolute, starting at ``folder``."""

    def absolute(path: object) -> object:
        if not isinstance(path, str) or "://" in path or Path(path).is_absolute():
            return path
        return str((folder / path).resolve())

    tables = raw.get("tables")
    if not isinstance(tables, dict):
        return raw
    resolved = {}
    for name, table in tables.items():
        if isinstance(table, dict) and "path" in table:
            path = table["path"]
            path = [absolute(part) for part in path] if isinstance(path, list) else absolute(path)
            table = {**table, "path": path}
        resolved[name] = table
    return {**raw, "tables": resolved}


def parse_schema(raw: dict[str, Any], where: str) -> DatasetSchema:
    """Returns the schema in ``raw``.

    Raises:
        ConfigError: a key is unknown, missing or of a wrong type; the message names each, with ``where``.
    """
    try:
        return DatasetSchema.model_validate(raw)
    except ValidationError as err:
        raise ConfigError(describe(err, where, DatasetSchema)) from err
