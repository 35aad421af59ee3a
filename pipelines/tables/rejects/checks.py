"""Checks: what is wrong with the rows of one batch, and the rejects that say so.

A reason is ``rule:column``: null, type, range, length, allowed, late, malformed, dimension, nan, zero, duplicate. The
first rule that a row breaks is its reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import plain_array
from pipelines.tables.formats.batches import TableBatch

# row: place in the file, from 0. value: the cell as text. expected: what it should have been.
REJECTS = pa.schema(
    [
        ("table", pa.string()),
        ("file", pa.string()),
        ("row", pa.int64()),
        ("reason", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),
        ("expected", pa.string()),
        ("record", pa.string()),
    ]
)
# Maximum number of rejects per batch that carry their cell and their whole record; all are counted and listed.
RECORDS_PER_BATCH = 1_000
_RECORD_CHARACTERS = 4_096
_VALUE_CHARACTERS = 256
_HIDDEN = -1


@dataclass(frozen=True)
class _Rule:
    reason: str
    column: str | None
    expected: str | None


class Checks:
    """Collects what is wrong with the rows of one batch of ``table``."""

    def __init__(self, batch: TableBatch, table: str) -> None:
        self._batch = batch
        self._table = table
        self._broken: npt.NDArray[np.int16] = np.zeros(len(batch.table), np.int16)
        self._rules: list[_Rule] = []

    def reject(self, bad: Bools, rule: str, column: str, expected: str | None = None) -> None:
        """Marks the rows of ``bad`` (``[rows] bool``) that no earlier rule has marked.

        Args:
            bad: rows that break the rule.
            rule: its name, the first half of the reason.
            column: whose cell breaks it.
            expected: what the cell should have been.
        """
        if not bad.any():
            return
        self._rules.append(_Rule(f"{rule}:{column}", column, expected))
        self._broken = np.where((self._broken == 0) & bad, len(self._rules), self._broken).astype(np.int16)

    @property
    def accepted(self) -> Bools:
        """``[rows] bool``: rows that broke no rule."""
        return np.asarray(self._broken == 0)

    def hide(self, rows: Bools) -> None:
        """Drops rows (``[rows] bool``) without a trace: neither accepted nor among the rejects."""
        if not rows.any():
            return
        self._broken = np.where(rows, _HIDDEN, self._broken).astype(np.int16)

    def rejects(self) -> pa.Table:
        """The marked rows as a table of ``REJECTS``, in the order of the file."""
        if not self._rules:
            return REJECTS.empty_table()
        rows = np.flatnonzero(self._broken > 0)
        broken = pa.array(self._broken[rows] - 1)
        return pa.table(
            {
                "table": pa.repeat(self._table, len(rows)),
                "file": pa.repeat(self._batch.file, len(rows)),
                "row": self._batch.rows_of(rows),
                "reason": pa.array([rule.reason for rule in self._rules]).take(broken),
                "column": pa.array([rule.column for rule in self._rules], pa.string()).take(broken),
                "value": self._values(rows),
                "expected": pa.array([rule.expected for rule in self._rules], pa.string()).take(broken),
                "record": self._records(rows),
            },
            schema=REJECTS,
        )

    def _values(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        """The cells that broke the rules, as text."""
        shown = rows[:RECORDS_PER_BATCH]
        texts: list[str | None] = [None] * len(rows)
        for number, rule in enumerate(self._rules, start=1):
            places = np.flatnonzero(self._broken[shown] == number)
            if rule.column not in self._batch.table.column_names or not len(places):
                continue
            cells = _objects(plain_array(self._batch.table[rule.column].take(pa.array(shown[places]))))
            for place, cell in zip(places.tolist(), cells, strict=True):
                texts[place] = cell_text(cell)
        return pa.array(texts, pa.string())

    def _records(self, rows: npt.NDArray[np.int64]) -> pa.Array:
        kept = self._batch.table.take(pa.array(rows[:RECORDS_PER_BATCH]))
        columns = [_objects(plain_array(column)) for column in kept.columns]
        records = [dict(zip(kept.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
        texts = [json.dumps(record, default=str, ensure_ascii=False)[:_RECORD_CHARACTERS] for record in records]
        return pa.array(texts + [None] * (len(rows) - len(texts)), pa.string())


def cell_text(cell: object) -> str | None:
    """A cell as text, cut short; None where it is missing."""
    if cell is None:
        return None
    text = json.dumps(cell, default=str, ensure_ascii=False) if isinstance(cell, list | dict) else str(cell)
    # Bytes that are no text come as lone surrogates.
    return text[:_VALUE_CHARACTERS].encode("utf-8", "backslashreplace").decode()


def _objects(column: pa.Array) -> list[object]:
    """The values as Python objects; a moment outside Python's calendar as the number in the table."""
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):
        if not pa.types.is_temporal(column.type):  # A list or a struct of such moments.
            return [None] * len(column)
        return list(column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64()).to_pylist())


def malformed_rejects(batch: TableBatch, table: str) -> pa.Table:
    """Rejects for lines that give no row (another number of cells than the header, no JSON object)."""
    lines = batch.malformed
    return pa.table(
        {
            "table": [table] * len(lines),
            "file": [batch.file] * len(lines),
            "row": [line.row for line in lines],
            "reason": [line.reason for line in lines],
            "column": [line.column for line in lines],
            "value": [cell_text(line.value) for line in lines],
            "expected": [line.expected for line in lines],
            "record": [line.record for line in lines],
        },
        schema=REJECTS,
    )


def counts_by_reason(rejects: pa.Table) -> dict[str, int]:
    """Number of rejects of each reason."""
    counts = pc.value_counts(rejects["reason"].combine_chunks())
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))
