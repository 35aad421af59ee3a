"""Remedies: the line of the TOML that makes a refused cell readable, where its form shows which one."""

from __future__ import annotations

import re

from pipelines.contracts.schema import DatasetSchema, TableName
from pipelines.tables.column_types import id_columns
from pipelines.tables.formats.undecodable import DECODABLE
from pipelines.tables.rejects.place import Place

_INTEGER = re.compile(r"-?[0-9]+(\.0*)?")
_COMMA_NUMBER = re.compile(r"-?[0-9]*,[0-9]+")
# Such as 1.234,56, 1,234.56, 1,234,567, 1 234,56 (of any blank) and 1'234.56.
_GROUPED_NUMBER = re.compile(r"-?[0-9]{1,3}([.,\s'\u2019][0-9]{3})+([.,][0-9]+)?")
_SEPARATORS = ("|", ";", ",", " ")
# Integers since 1970 of about today, by their number of digits.
_UNITS = {10: "s", 13: "ms", 16: "us", 19: "ns"}


def remedy(schema: DatasetSchema, table: TableName, reason: str, example: Place | None) -> str | None:
    """What to write in the TOML; None where the table itself must be corrected."""
    rule, _, column = reason.partition(":")
    if rule != "type" or example is None or example.value is None:
        return None
    if example.expected == DECODABLE:
        return f'Where the files are in another encoding, write [tables.{table}] encoding = "cp1252" (or another).'
    value = example.value.strip()
    for side, name in id_columns(schema, table).items():
        if name == column:
            return f'Where ids are no plain integers, write [ids] {side} = "string".'
    kind = schema.column_types(table, text=True).get(column)
    if kind is None:
        return None
    place = f"[tables.{table}.types] {column}"
    if kind.type == "timestamp" and kind.unit is None and _INTEGER.fullmatch(value):
        unit = _UNITS.get(len(value.split(".")[0].lstrip("-")), "s")
        return f'Integers need a unit; write {place} = {{ type = "timestamp", unit = "{unit}" }}.'
    if kind.type in ("float64", "int64") and _GROUPED_NUMBER.fullmatch(value):
        return "Numbers with separators between thousands are not read; export them without, such as 1234.56."
    if kind.type in ("float64", "int64") and _COMMA_NUMBER.fullmatch(value):
        return f'Where numbers have a decimal comma, write [tables.{table}] decimal = ",".'
    if kind.type in ("list", "embedding") and kind.separator is None:
        found = next((mark for mark in _SEPARATORS if mark in value), "|")
        return f'Where values are separated, write {place} = {{ type = "{kind.type}", separator = "{found}" }}.'
    return None
