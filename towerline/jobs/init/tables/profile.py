"""A table's profile: evidence for each column, and how far the ids of events are those of another table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Int64
from pipelines.contracts.conversion import is_list, plain_array
from pipelines.contracts.errors import SchemaError
from pipelines.progress import Progress
from pipelines.tables.formats.batches import Malformed
from towerline.jobs.init.questions import Question, Questions
from towerline.jobs.init.tables.columns import ColumnEvidence
from towerline.jobs.init.tables.sketch import Sketch, UInt64, hashes_of
from towerline.jobs.init.tables.sources import Table
from towerline.jobs.init.tables.types import Typed, decimal_of, type_of

# Share of a key's rows that may repeat: such a column is still named, with the error that it repeats values.
_NEARLY_UNIQUE = 0.5


@dataclass(frozen=True)
class Joined:
    """How far a column of events has a key's values: in ``rows`` of ``judged`` rows, and ``covered`` of the key."""

    column: str
    key: str
    rows: int = 0
    judged: int = 0
    covered: float = 0.0

    @property
    def share(self) -> float:
        """Share of the events whose value is in the key."""
        return self.rows / self.judged if self.judged else 0.0


@dataclass(frozen=True)
class Profile:
    """A table read whole: ``rows``, and next to them ``malformed`` lines that give no row."""

    table: Table
    rows: int
    malformed: int
    columns: Mapping[str, ColumnEvidence]
    decimal: str = "."
    typed: Mapping[str, Typed] = field(default_factory=dict)

    def id_columns(self) -> list[str]:
        """Columns that could be the table's id: whole or textual, hardly missing, hardly repeated."""
        return [
            name
            for name, typed in self.typed.items()
            if typed.type.type in ("int64", "string")
            and typed.evidence.nulls <= 0.01 * self.rows
            and typed.distinct >= _NEARLY_UNIQUE * typed.evidence.present
        ]


def profile(table: Table, questions: Questions, progress: Progress, joins: Joins | None = None) -> Profile:
    """Reads a table whole.

    Args:
        table: the files.
        questions: asked where a comma may be a decimal mark or not.
        progress: says how many rows are read.
        joins: also counts the rows whose values are in these keys.

    Raises:
        SchemaError: a file cannot be read, or the table has no row.
    """
    columns = {name: ColumnEvidence(name) for name in table.columns}
    rows, malformed = 0, 0
    first: Malformed | None = None
    with progress.waiting(f"read {table.name}"):
        for batch in table.read(table.columns):
            rows += len(batch.table)
            malformed += len(batch.malformed)
            first = first or next(iter(batch.malformed), None)
            for name, evidence in columns.items():
                evidence.add(batch.table[name])
                if joins is not None:
                    joins.add(name, batch.table[name])
    if first is not None:
        _note_malformed(table, rows, malformed, first, questions)
    if rows == 0:
        raise SchemaError(f"{table.name}: expected rows, found an empty table in {table.files[0].url}.")
    progress.line(f"{table.name}: {rows:,} rows, {len(columns)} columns")
    decimal = _decimal(table, list(columns.values()), questions)
    found = {name: type_of(evidence, decimal) for name, evidence in columns.items() if name}
    typed = {name: one for name, one in found.items() if one is not None}
    return Profile(table, rows, malformed, columns, decimal, typed)


def _note_malformed(table: Table, rows: int, malformed: int, first: Malformed, questions: Questions) -> None:
    example = f"row {first.row}: expected {first.expected}, got {first.record:.100}"
    if rows == 0:
        raise SchemaError(f"{table.name}: expected rows, found {malformed:,} lines that give none; {example}.")
    questions.note(f"tables.{table.name}", f"{malformed:,} lines give no row and are rejected; the first is", example)


def _decimal(table: Table, columns: list[ColumnEvidence], questions: Questions) -> str:
    mark, doubt = decimal_of(columns) if table.is_text else (".", "")
    if not doubt:
        return mark
    text = f"Which is the decimal mark of {table.name}?"
    return questions.choose(Question(f"tables.{table.name}.decimal", text, doubt, (".", ","), mark))


# A key: its table and column.
Key = tuple[str, str]


class Joins:
    """Counts, for each column of events and each key of another table, the events whose value the key has."""

    def __init__(self, keys: Mapping[Key, Sketch]) -> None:
        self._keys = keys
        self._rows: dict[tuple[str, Key], int] = {}
        self._judged: dict[tuple[str, Key], int] = {}
        self._seen: dict[str, Sketch] = {}

    def add(self, name: str, column: pa.ChunkedArray) -> None:
        """Adds a batch of a column of events."""
        array = plain_array(column)
        array = array.drop_null() if array.null_count else array
        if len(array) == 0 or not _may_be_id(array.type):
            return
        encoded = array.dictionary_encode()
        hashes = hashes_of(encoded.dictionary)
        counts = np.bincount(np.asarray(encoded.indices), minlength=len(hashes))
        self._seen.setdefault(name, Sketch()).add(hashes)
        for key, sketch in self._keys.items():
            self._count((name, key), sketch, hashes, counts)

    def _count(self, pair: tuple[str, Key], sketch: Sketch, hashes: UInt64, counts: Int64) -> None:
        judged = sketch.judged(hashes)
        inside = sketch.contains(hashes) & judged
        self._rows[pair] = self._rows.get(pair, 0) + int(counts[inside].sum())
        self._judged[pair] = self._judged.get(pair, 0) + int(counts[judged].sum())

    def of(self, key: Key) -> list[Joined]:
        """Each column of events against one key."""
        return [
            Joined(column, key[1], self._rows[column, of], self._judged[column, of], self._covered(column, key))
            for column, of in self._rows
            if of == key
        ]

    def _covered(self, column: str, key: Key) -> float:
        values = self._keys[key].hashes
        seen = self._seen[column]
        judged = seen.judged(values)
        return float(seen.contains(values[judged]).mean()) if judged.any() else 0.0


def _may_be_id(kind: pa.DataType) -> bool:
    types = pa.types
    return not (is_list(kind) or types.is_nested(kind) or types.is_temporal(kind) or types.is_boolean(kind)) and not (
        types.is_binary(kind) or types.is_large_binary(kind)
    )
