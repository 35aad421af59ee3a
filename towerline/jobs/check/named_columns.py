"""The columns that the TOML names, each with its key, against the columns that the tables have."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from index.rules.where import parse
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import Side, TableName
from towerline.config import Config
from towerline.jobs.check.finding import Finding, Kind, similar

Columns = Mapping[TableName, Sequence[str]]
_SIDES: tuple[tuple[Side, TableName], ...] = (("user", "users"), ("item", "items"))


@dataclass(frozen=True)
class _Named:
    """A column that a key of the TOML names. tables: any of which may have it. kind: the error without it."""

    key: str
    tables: tuple[TableName, ...]
    column: str
    kind: Kind = "SchemaError"


def missing_columns(config: Config, columns: Columns, *, later: bool = False) -> Iterator[Finding]:
    """An error for each key that names a column which its table does not have.

    Args:
        config: the whole configuration.
        columns: the columns of each table that is looked at; keys of other tables are not.
        later: only keys that the stages after ``features`` read.
    """
    known = _with_made(config, columns)
    first = () if later else (*_of_tables(config), *_of_features(config))
    for named in (*first, *_of_later_stages(config)):
        if not set(named.tables) <= known.keys():
            continue
        there = list(dict.fromkeys(column for table in named.tables for column in known[table]))
        if named.column not in there:
            places = " or ".join(f"the {table} table" for table in named.tables)
            found = f"expected a column of {places}, got {named.column!r}."
            yield Finding(named.key, "error", found, similar(named.column, there), named.kind)
    if "items" in known:
        yield from _unknown_attributes(config)


def _with_made(config: Config, columns: Columns) -> dict[TableName, Sequence[str]]:
    """The columns as the features keep them: without a table of its own, a side has the ids that events name."""
    known: dict[TableName, Sequence[str]] = dict(columns)
    if config.tables.items is None:
        known["items"] = [config.id_column("item")]
    if config.tables.users is None:
        known["users"] = [config.id_column("user")]
    for side, table in _SIDES:
        if table in known:
            made = [name for feature in config.counts(side) for name in feature.raw_columns]
            known[table] = [*known[table], *made]
    return known


def _of_tables(config: Config) -> Iterator[_Named]:
    events, items, users = config.tables.events, config.tables.items, config.tables.users
    roles = {
        "user_id": events.user_id,
        "item_id": events.item_id,
        "time": events.time,
        "order": events.order,
        "action": events.action if config.actions else None,
        "value": events.value,
    }
    yield from _roles("events", roles)
    if config.split.column is not None:
        yield _Named("split.column", ("events",), config.split.column)
    if items is not None:
        named = {"item_id": items.item_id, "advertiser_id": items.advertiser_id, "title": items.title}
        yield from _roles("items", named)
    if users is not None:
        yield from _roles("users", {"user_id": users.user_id})
    for table, rules in config.validation.columns.items():
        if getattr(config.tables, table) is not None:
            yield from (_Named(f"validation.columns.{table}", (table,), column) for column in rules)


def _roles(table: TableName, roles: Mapping[str, str | None]) -> Iterator[_Named]:
    for key, column in roles.items():
        if column is not None:
            yield _Named(f"tables.{table}.{key}", (table,), column)


def _of_features(config: Config) -> Iterator[_Named]:
    for side, table in _SIDES:
        if getattr(config.tables, table) is not None:
            for feature in config.side(side):
                if not feature.made_of_events:
                    yield _Named(f"features.{side}.{feature.name}", (table,), feature.source)


def _of_later_stages(config: Config) -> Iterator[_Named]:
    index, evaluation = config.index, config.evaluation
    named = [("index.attributes", column) for column in index.attributes]
    named += [("index.value", index.value)] if index.value is not None else []
    for key in ("category", "price", "first_seen"):
        column = getattr(evaluation, key)
        named += [(f"evaluation.{key}", column)] if column is not None else []
    yield from (_Named(key, ("items",), column, "ConfigError") for key, column in named)
    yield from (_Named("evaluation.slices", ("items", "users"), name, "ConfigError") for name in evaluation.slices)


def _unknown_attributes(config: Config) -> Iterator[Finding]:
    """Rules of ``[evaluation]`` may name what the bundle has: ``index.attributes`` and the roles."""
    items, evaluation = config.tables.items, config.evaluation
    roles = () if items is None else (items.advertiser_id, items.title)
    known = [name for name in ("item_id", *config.index.attributes, config.index.value, *roles) if name is not None]
    named = [("evaluation.max_per", name) for name in evaluation.max_per]
    if evaluation.eligible is not None:
        try:
            tree = parse(evaluation.eligible)
        except SchemaError as err:
            yield Finding("evaluation.eligible", "error", str(err), "Correct the rule.")
            return
        names = (node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        named += [("evaluation.eligible", name) for name in dict.fromkeys(names)]
    for key, name in named:
        if name not in known:
            found = f"expected one of index.attributes, got {name!r}."
            yield Finding(key, "error", found, f"{similar(name, known)} Add it to index.attributes, or correct it.")
