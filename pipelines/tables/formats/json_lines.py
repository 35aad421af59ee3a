"""JSON lines: parsed one by one, for blocks that Arrow does not read exactly or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import expected
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.tables.formats.batches import Malformed, TableBatch, shown
from pipelines.tables.formats.json_column import json_column

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

    def batch(
        self, kinds: Mapping[str, ColumnType], decimal: str, url: str, row: int, *, with_keys: bool = False
    ) -> TableBatch:
        """The lines as a batch that begins at ``row``."""
        lines = [Malformed.line(row + place, shown(self.texts[place]), why) for place, why in self.bad.items()]
        columns: dict[str, pa.Array] = {}
        wrong: dict[int, Malformed] = {}
        for name, kind in kinds.items():
            column = json_column([value.get(name) for value in self.objects], kind, decimal)
            columns[name] = column.values
            for place in column.wrong:
                record = {own: self.objects[place].get(own) for own in kinds}
                wrong.setdefault(place, Malformed.cell(row + self.places[place], record, name, expected(kind)))
        table = pa.table(columns) if columns else pa.table({"": pa.nulls(len(self.objects))}).select([])
        keys = self._keys(kinds) if with_keys else None
        batch = TableBatch(table, url, row, tuple(lines), keys=keys)
        return batch.without(np.array(sorted(wrong), np.int64), [wrong[place] for place in sorted(wrong)])

    def _keys(self, kinds: Mapping[str, ColumnType]) -> pa.Array:
        """The keys wanted that each object has."""
        return pa.array([[name for name in kinds if name in value] for value in self.objects], pa.list_(pa.string()))
