"""Column types: the type of every column of a table, settled over all its files before a row is read.

A type is declared in the TOML, implied by a column's role or feature, or that of the Parquet files, widened where they
differ. Files of text formats declare nothing: with one of them, a column that the TOML leaves open is a string (a list
feature's a list). Values decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.contracts.conversion import expected
from pipelines.contracts.conversion.column_type import FLOAT64, INT64, LIST, STRING, TIMESTAMP, ColumnType
from pipelines.contracts.conversion.plain import parquet_type
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema, Side, TableName, TableSource, id_type
from pipelines.tables.files import SourceFile
from pipelines.tables.readers import file_schema, require_columns

_BOOL = ColumnType(type="bool")
_INT_LIST = ColumnType(type="list", of="int64")


@dataclass(frozen=True)
class TableTypes:
    """Types of a table's columns: first those that the TOML names, in its order, then the others as in the files.

    kinds: what the columns are converted to. kept: Parquet types that no kind expresses (a decimal, a structure), of
    columns that stay as they are.
    """

    columns: tuple[str, ...]
    kinds: Mapping[str, ColumnType]
    kept: Mapping[str, pa.DataType]

    @property
    def arrow_schema(self) -> pa.Schema:
        """The columns as they are stored."""
        return pa.schema([(name, self.kept.get(name) or self.kinds[name].arrow) for name in self.columns])

    def only(self, columns: Sequence[str]) -> TableTypes:
        """The types of these columns, in this order."""
        kinds = {name: self.kinds[name] for name in columns if name in self.kinds}
        return TableTypes(tuple(columns), kinds, {name: self.kept[name] for name in columns if name in self.kept})


def named_columns(schema: DatasetSchema, table: TableName) -> tuple[str, ...]:
    """Columns that the TOML names: by a role, a feature, a rule or a type."""
    source = getattr(schema.tables, table)
    if source is None:
        return ()
    rules = schema.validation.columns.get(table, {})
    names: list[str | None] = list(id_columns(schema, table).values())
    if table == "events":
        names += [source.order_column, source.action if schema.actions else None, source.value, schema.split.column]
    else:
        side: Side = "item" if table == "items" else "user"
        names += [getattr(source, "advertiser_id", None), getattr(source, "title", None)]
        names += [feature.source for feature in schema.side(side) if not feature.made_of_events]
    return tuple(dict.fromkeys(name for name in [*names, *rules, *source.types] if name is not None))


def id_columns(schema: DatasetSchema, table: TableName) -> dict[Side, str]:
    """The id columns of a table."""
    events = schema.tables.events
    if table == "events":
        return {"user": events.user_id, "item": events.item_id}
    side: Side = "item" if table == "items" else "user"
    return {} if getattr(schema.tables, table) is None else {side: schema.id_column(side)}


def table_types(
    schema: DatasetSchema, table: TableName, files: Sequence[SourceFile], ids: Mapping[Side, ColumnType]
) -> TableTypes:
    """Settles the types of a table's columns.

    Args:
        schema: the data set's.
        table: events, items or users.
        files: the table's.
        ids: types of the ids, see ``id_types``.

    Raises:
        SchemaError: a file cannot be read or lacks a column that the TOML names, or files differ in a type.
    """
    found = _schemas(schema, table, files)
    names = _in_order(named_columns(schema, table), [own.names for own in found.values()])
    any_text = any(file.is_text for file in found)
    declared = schema.column_types(table, text=any_text)
    declared |= {column: ids[side] for side, column in id_columns(schema, table).items()}
    kinds: dict[str, ColumnType] = {}
    kept: dict[str, pa.DataType] = {}
    for name in names:
        settled = declared.get(name) or (STRING if any_text else _widened(name, table, found))
        if isinstance(settled, ColumnType):
            kinds[name] = settled
        else:
            kept[name] = settled
    return TableTypes(names, kinds, kept)


def _in_order(named: Sequence[str], found: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """All columns found: those that the TOML names in its order, which no format has a say in, then the others."""
    there = dict.fromkeys(name for names in found for name in names)
    return tuple(dict.fromkeys([*(name for name in named if name in there), *there]))


def id_types(schema: DatasetSchema, files: Mapping[TableName, Sequence[SourceFile]]) -> dict[Side, ColumnType]:
    """The types of the two ids, the same in all tables.

    Declared by ``[ids]`` or by ``[tables.TABLE.types]``; else int64 if every file that has the id is Parquet and has
    integers there, else string.

    Args:
        schema: the data set's.
        files: of each table that the schema has.

    Raises:
        SchemaError: a file cannot be read, its column can be no id, or two tables declare different types.
    """
    return {"user": _id_type(schema, "user", files), "item": _id_type(schema, "item", files)}


def _id_type(schema: DatasetSchema, side: Side, files: Mapping[TableName, Sequence[SourceFile]]) -> ColumnType:
    own = id_type(getattr(schema.ids, side))
    if own is not None:
        return own
    columns = {table: id_columns(schema, table).get(side) for table in files}
    named = {table: column for table, column in columns.items() if column is not None}
    declared = {
        table: getattr(schema.tables, table).types[column].type
        for table, column in named.items()
        if column in getattr(schema.tables, table).types
    }
    if len(set(declared.values())) > 1 or not set(declared.values()) <= {"int64", "string"}:
        said = ", ".join(f"{kind} in {table}" for table, kind in declared.items())
        raise SchemaError(
            f"the type of {side} ids is declared as {said}. "
            f'Give one for all tables: [ids] {side} = "string" (or "int64").'
        )
    if declared:
        return INT64 if "int64" in declared.values() else STRING
    kinds: list[pa.DataType] = []
    for table, column in named.items():
        source = getattr(schema.tables, table)
        for file in files[table]:
            found = file_schema(file, source, table)
            if column in found.names:
                kinds.append(pa.string() if file.is_text else _id_field(found.field(column).type, column, file, table))
    known = [kind for kind in kinds if not pa.types.is_null(kind)]
    return INT64 if known and all(pa.types.is_integer(kind) for kind in known) else STRING


def _id_field(kind: pa.DataType, column: str, file: SourceFile, table: TableName) -> pa.DataType:
    plain = parquet_type(kind)
    types = pa.types
    fits = types.is_integer(plain) or types.is_string(plain) or types.is_floating(plain) or types.is_decimal(plain)
    if not (fits or types.is_null(plain) or types.is_binary(plain)):
        raise SchemaError(
            f"tables.{table}: column {column!r} has type {kind} in {file.url}; an id is an integer or a text. "
            "Change the column."
        )
    return plain


def _schemas(schema: DatasetSchema, table: TableName, files: Sequence[SourceFile]) -> dict[SourceFile, pa.Schema]:
    """The columns of each file that has any, having checked that none lacks one that the TOML names."""
    source: TableSource = getattr(schema.tables, table)
    wanted = named_columns(schema, table)
    found = {file: file_schema(file, source, table, wanted) for file in files}
    filled = {file: own for file, own in found.items() if own.names} or found
    # A line of JSON leaves out what it does not have, and so may a whole file.
    in_json = {name for file, own in filled.items() if file.format == "jsonl" for name in own.names}
    for file, own in filled.items():
        needed = [name for name in wanted if file.format != "jsonl" or name not in in_json]
        require_columns(own, needed, file, table)
    return filled


def require_convertible(
    schema: DatasetSchema, table: TableName, files: Sequence[SourceFile], types: TableTypes
) -> None:
    """Checks that no Parquet file has a column of which every cell would be wrong.

    Raises:
        SchemaError: one has; the message says file, column, both types, and what to write in the TOML.
    """
    source: TableSource = getattr(schema.tables, table)
    for file in files:
        if file.is_text:
            continue
        for field in file_schema(file, source, table):
            kind = types.kinds.get(field.name)
            if kind is not None and not _could_be(parquet_type(field.type), kind):
                raise _unlike(schema, table, file, field, kind)


def _could_be(found: pa.DataType, kind: ColumnType) -> bool:
    """Whether a cell of a Parquet type can ever be one of the declared type."""
    types = pa.types
    if types.is_string(found) or types.is_binary(found) or types.is_null(found):
        return True
    if types.is_nested(found):
        return kind.type in ("list", "embedding") and not (types.is_struct(found) or types.is_map(found))
    if types.is_timestamp(found) or types.is_date(found):
        return kind.type in ("timestamp", "string")
    if types.is_integer(found) or types.is_floating(found) or types.is_decimal(found):
        return kind.type not in ("list", "embedding") and (kind.type != "timestamp" or kind.unit is not None)
    return kind.type not in ("list", "embedding", "timestamp")


def _unlike(
    schema: DatasetSchema, table: TableName, file: SourceFile, field: pa.Field, kind: ColumnType
) -> SchemaError:
    line = f'[tables.{table}.types] {field.name} = {{ type = "timestamp", unit = "s" }}'
    found = f"tables.{table}: column {field.name!r} of {file.url} has type {field.type}, expected {expected(kind)}."
    events = schema.tables.events
    if table == "events" and field.name == events.order and kind.type == "int64":
        return SchemaError(f'{found} Give time = "{field.name}" in place of order.')
    if kind.type == "timestamp":
        order = f', or give order = "{field.name}" in place of time' if field.name == events.time else ""
        return SchemaError(f"{found} Write {line} (or ms, us, ns){order}.")
    return SchemaError(
        f"{found} Declare another type: [tables.{table}.types] {field.name} = ..., or correct the table."
    )


def _widened(name: str, table: TableName, found: Mapping[SourceFile, pa.Schema]) -> ColumnType | pa.DataType:
    """The type that holds the values of all Parquet files."""
    kinds = {file: parquet_type(own.field(name).type) for file, own in found.items() if name in own.names}
    kinds = {file: kind for file, kind in kinds.items() if not pa.types.is_null(kind)}
    distinct = list(dict.fromkeys(kinds.values()))
    if not distinct:
        return STRING
    settled = _common(distinct)
    if settled is None:
        first, second = (next(file for file, kind in kinds.items() if kind == one) for one in distinct[:2])
        raise SchemaError(
            f"tables.{table}: column {name!r} is {distinct[0]} in {first.url} and {distinct[1]} in {second.url}. "
            f'Declare its type: [tables.{table}.types] {name} = "string" (or another).'
        )
    return settled


def _common(kinds: Sequence[pa.DataType]) -> ColumnType | pa.DataType | None:
    """The type for values of all these types; None if there is none."""
    types = pa.types

    def all_are(*checks: object) -> bool:
        return all(any(check(kind) for check in checks) for kind in kinds)  # type: ignore[operator]

    if all_are(types.is_string):
        return STRING
    if all_are(types.is_boolean):
        return _BOOL
    if all_are(types.is_boolean, types.is_integer):
        return INT64
    if all_are(types.is_boolean, types.is_integer, types.is_floating):
        return FLOAT64
    if all_are(types.is_date, types.is_timestamp):
        return TIMESTAMP
    if all_are(types.is_list):
        inner = _common(list(dict.fromkeys(kind.value_type for kind in kinds if not types.is_null(kind.value_type))))
        if inner in (STRING, INT64):
            return LIST if inner == STRING else _INT_LIST
    if len(kinds) == 1:
        return kinds[0]
    return FLOAT64 if all_are(types.is_boolean, types.is_integer, types.is_floating, types.is_decimal) else None
