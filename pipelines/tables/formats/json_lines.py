"""JSON lines: parsed one by one, for blocks that Arrow does not read exactly or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.tables.formats.batches import Malformed, TableBatch, shown

_OBJECT = "one JSON object"
# Python refuses integers of more digits than these; such a number is no id and no count.
_MAX_DIGITS = 400


class _Repeated(dict[str, Any]):
    """An object that has a key more than once."""

    keys_twice: frozenset[str] = frozenset()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    repeated = _Repeated(found)
    names = [name for name, _ in pairs]
    repeated.keys_twice = frozenset(name for name in names if names.count(name) > 1)
    return repeated


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_int=_integer)


@dataclass(frozen=True)
class JsonLines:
    """Lines of a block that are not empty: ``objects`` with their ``places`` among them, ``bad`` ones by place."""

    texts: Sequence[bytes]
    objects: Sequence[Mapping[str, Any]]
    places: Sequence[int]
    bad: Mapping[int, str]

    @classmethod
    def parse(cls, block: bytes, wanted: Sequence[str]) -> JsonLines:
        """Parses a block of whole lines; one that has a ``wanted`` key twice is bad."""
        texts = [line for line in block.splitlines() if line]
        objects: list[Mapping[str, Any]] = []
        places: list[int] = []
        bad: dict[int, str] = {}
        for place, line in enumerate(texts):
            try:
                value = _DECODER.decode(line.decode("utf-8", "surrogateescape"))
            except (ValueError, RecursionError):
                value = None
            twice = sorted(value.keys_twice & set(wanted)) if isinstance(value, _Repeated) else []
            if not isinstance(value, dict):
                bad[place] = _OBJECT
            elif twice:
                bad[place] = f"each key once, found {twice[0]!r} several times"
            else:
                objects.append(value)
                places.append(place)
        return cls(texts, objects, places, bad)

    def batch(self, kinds: Mapping[str, ColumnType], decimal: str, url: str, row: int) -> TableBatch:
        """The lines as a batch that begins at ``row``."""
        lines = [Malformed.line(row + place, shown(self.texts[place]), why) for place, why in self.bad.items()]
        columns: dict[str, pa.Array] = {}
        wrong: dict[int, Malformed] = {}
        for name, kind in kinds.items():
            column = _column([value.get(name) for value in self.objects], kind, decimal)
            columns[name] = column.values
            for place in column.wrong:
                record = {own: self.objects[place].get(own) for own in kinds}
                wrong.setdefault(place, Malformed.cell(row + self.places[place], record, name, column.expected))
        table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(self.objects))}).select([])
        batch = TableBatch(table, url, row, tuple(lines))
        return batch.without(np.array(sorted(wrong), np.int64), [wrong[place] for place in sorted(wrong)])


@dataclass(frozen=True)
class _Column:
    """A column of lines; ``wrong`` are places of values that no type can hold, null in ``values``."""

    values: pa.Array
    wrong: Sequence[int]
    expected: str


def _column(values: Sequence[Any], kind: ColumnType, decimal: str) -> _Column:
    groups = [_group(value) for value in values]
    wrong = [place for place, group in enumerate(groups) if group == "wrong"]
    held = [None if group == "wrong" else value for group, value in zip(groups, values, strict=True)]
    found = set(groups) - {"null", "wrong"}
    if len(found) <= 1:
        array = _of_one_kind(held, next(iter(found), "null"), kind)
    else:
        array = pa.array([_text(value, decimal) for value in held], pa.string())
    return _Column(array, wrong, kind.type)


def _of_one_kind(values: Sequence[Any], group: str, kind: ColumnType) -> pa.Array:
    match group:
        case "null":
            return pa.nulls(len(values), kind.arrow)
        case "digits":
            return pa.array([None if value is None else str(value) for value in values], pa.string())
        case "list":
            return pa.array([None if value is None else [_text(one, ".") for one in value] for value in values])
        case _:
            return pa.array(values, _ARROW[group])


_ARROW = {"text": pa.string(), "bool": pa.bool_(), "int": pa.int64(), "float": pa.float64()}


def _group(value: object) -> str:
    """What a value is to Arrow; an integer beyond int64 goes by its digits."""
    match value:
        case None:
            return "null"
        case bool():
            return "bool"
        case int():
            return "int" if -(2**63) <= value < 2**63 else "digits"
        case float():
            return "float"
        case str():
            return "text" if _is_unicode(value) else "wrong"
        case list():
            return "list"
        case _:
            return "wrong"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text(value: object, decimal: str) -> str | None:
    match value:
        case None:
            return None
        case str():
            return value
        case float():
            return repr(value).replace(".", decimal)
        case _:
            return json.dumps(value)
