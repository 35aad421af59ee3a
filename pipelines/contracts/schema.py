"""The schema: a data set's tables, columns, features, actions and split, from its TOML.

Reads a TOML file. Imports neither Beam, TensorFlow nor ScaNN. The sections that belong
to later stages (``[towers]``, ``[index]``, ...) are defined by those packages; ``towerline.config`` puts the
whole file together.
"""

from __future__ import annotations

import codecs
import datetime
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from pipelines.contracts.configuration import Moment, MomentOrOrder, Section, describe
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, STRING, TIMESTAMP, ColumnType
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.kinds import CountFeature, Feature, IdFeature

Side = Literal["user", "item"]
TableName = Literal["events", "items", "users"]
SplitName = Literal["train", "valid", "test"]
# Codes of SplitName in the sequences; the order is the order of time: a split's history is what has a smaller code.
SPLITS: tuple[SplitName, ...] = ("train", "valid", "test")


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


class Split(Section):
    """Which events are held out. Exactly one way:

    - ``valid_from`` and ``test_from``: by time (or order), half open: ``[.., valid_from)`` is train,
      ``[valid_from, test_from)`` valid, the rest test. ``test_until`` drops what comes later.
    - ``column``: a column with the words train, valid, test; ``valid_fraction`` moves that share of the train
      events to valid, chosen by a stable hash.
    - ``leave_last_out``: each user's last event is test, the one before valid, the rest train.
    """

    valid_from: MomentOrOrder | None = Field(
        default=None, description="Start of the validation part: a date or timestamp (UTC), or a value of `order`."
    )
    test_from: MomentOrOrder | None = Field(default=None, description="Start of the test part.")
    test_until: MomentOrOrder | None = Field(
        default=None, description="End of the test part; later events are dropped. Not set: no end."
    )
    column: str | None = Field(default=None, description="Column of the events with the words train, valid, test.")
    valid_fraction: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="With `column`: share of the train events to move to validation, chosen by a stable hash.",
    )
    leave_last_out: bool = Field(
        default=False, description="Each user's last event is test, the one before validation, the rest train."
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        by_time = self.valid_from is not None or self.test_from is not None
        if sum([by_time, self.column is not None, self.leave_last_out]) != 1:
            raise ValueError("give exactly one of valid_from with test_from, column, leave_last_out = true")
        if by_time:
            if self.valid_from is None or self.test_from is None:
                raise ValueError("valid_from and test_from go together")
            bounds = [self.valid_from, self.test_from]
            if self.test_until is not None:
                bounds.append(self.test_until)
            if len({type(bound) for bound in bounds}) != 1:
                raise ValueError("valid_from, test_from and test_until must be of one type (all dates or all integers)")
            if any(early >= late for early, late in itertools.pairwise(bounds)):  # type: ignore[operator]
                raise ValueError("expected valid_from < test_from < test_until")
        return self


class ColumnRule(Section):
    """What a column of a table must satisfy; a row that does not is rejected with the rule's name as the reason."""

    nullable: bool | None = Field(default=None, description="false: rows without a value are rejected.")
    min: float | None = Field(default=None, description="Smallest number allowed.")
    max: float | None = Field(default=None, description="Largest number allowed.")
    max_length: int | None = Field(default=None, ge=0, description="Maximum length of a text or list.")
    allowed: tuple[str, ...] | None = Field(default=None, description="The only values allowed.")


class DriftLimits(Section):
    """By how much a run may differ from the previous one."""

    null_rate: float = Field(
        default=0.05, ge=0.0, description="Maximum change of a column's share of missing values (0.05: five points)."
    )
    new_value_share: float = Field(
        default=0.2, ge=0.0, description="Maximum share of items, or of a feature's values by frequency, that are new."
    )
    mean: float = Field(
        default=0.5,
        ge=0.0,
        description="Maximum change of a number's mean, in standard deviations of the previous run (with quantile "
        "scaling: in places among its quantiles, from -1 to 1).",
    )
    daily_volume: float = Field(
        default=0.5,
        ge=0.0,
        description="Maximum relative difference of a new day's events from the mean of the last four weeks.",
    )


class Validation(Section):
    """How much bad input is accepted."""

    max_reject_rate: float = Field(
        default=0.01, ge=0.0, le=1.0, description="Maximum share of a table's rows rejected; above it the job fails."
    )
    min_joined: float = Field(
        default=0.5,
        ge=0.0,
        le=1.0,
        description="Minimum share of events whose user and item are in their tables; below it the job fails, below "
        "0.99 it warns. Such events are counted as unknown, not as rejects.",
    )
    max_rate: dict[str, float] = Field(
        default={}, description='The same by rule, for example { "type:price" = 0.05 }: the reasons in `rejects/`.'
    )
    columns: dict[Literal["events", "items", "users"], dict[str, ColumnRule]] = Field(
        default={}, description="Rules by table and column: `[validation.columns.events.quantity]`."
    )
    earliest: Moment | None = Field(
        default=None, description="Events before this date or time (UTC) are rejected. Not set: 1990-01-01."
    )
    latest: Moment | None = Field(
        default=None, description="Events at or after this date or time (UTC) are rejected. Not set: 2100-01-01."
    )
    late_days: float | None = Field(
        default=None,
        ge=0.0,
        description="With a previous run: new events that are older than its newest one by more than this many days "
        "are rejected. Not set: none.",
    )
    duplicates: Literal["keep", "reject"] = Field(
        default="keep",
        description="What happens to events that repeat another one of the user exactly (item, time, action, value): "
        "counted, or all but the first rejected.",
    )
    drift: Literal["off", "warn", "fail"] = Field(
        default="warn", description="What happens when a run differs from the previous one beyond `drift_limits`."
    )
    drift_limits: DriftLimits = Field(default=DriftLimits(), description="The limits of drift.")

    @model_validator(mode="after")
    def _a_range(self) -> Self:
        if self.earliest is not None and self.latest is not None and self.earliest >= self.latest:
            raise ValueError("expected earliest < latest")
        return self


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
