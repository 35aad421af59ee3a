"""Batches: what every reader delivers. Rows of a file as Arrow, and next to them the lines that are no rows."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

# Characters of a line or a cell that are kept of what could not be read.
KEPT_CHARACTERS = 4_096


@dataclass(frozen=True)
class Malformed:
    """A line that gives no row.

    row: its place in the file, from 0. record: the line as JSON: a text, or an object of the columns read where
    one cell is at fault. expected: what it should have been. column, value: that cell.
    """

    row: int
    record: str
    expected: str
    column: str | None = None
    value: str | None = None

    @classmethod
    def line(cls, row: int, text: str | None, expected: str) -> Malformed:
        """A line that is none of the file's format."""
        return cls(row, json.dumps((text or "")[:KEPT_CHARACTERS], ensure_ascii=False), expected)

    @classmethod
    def cell(cls, row: int, record: Mapping[str, Any], column: str, expected: str) -> Malformed:
        """A row that one cell makes unusable."""
        value = record[column]
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        return cls(row, _record(record), expected, column, text[:KEPT_CHARACTERS])

    @property
    def reason(self) -> str:
        """``type:COLUMN`` where one cell is at fault, else ``malformed:line``."""
        return "malformed:line" if self.column is None else f"type:{self.column}"


@dataclass(frozen=True)
class MultiLine:
    """Cells of one CSV column that hold line ends: how many, the largest number of lines of one, and its row."""

    cells: int
    lines: int
    row: int

    def joined(self, other: MultiLine) -> MultiLine:
        """Both together."""
        largest = self if self.lines >= other.lines else other
        return MultiLine(self.cells + other.cells, largest.lines, largest.row)


@dataclass(frozen=True)
class TableBatch:
    """Consecutive rows of a file.

    table: the rows that could be read. file: its URL. first_row: place in the file (from 0, the header is not counted)
    of the first row or malformed line. malformed: lines that give no row, in order. multi_line: CSV columns (those that
    are not read, too) with cells over several lines. keys: ``[rows]`` lists of the keys that each row of a JSONL file
    has, where they were asked for; in other formats every row has every column.
    """

    table: pa.Table
    file: str
    first_row: int
    malformed: tuple[Malformed, ...] = ()
    multi_line: Mapping[str, MultiLine] = field(default_factory=dict)
    keys: pa.Array | None = None

    @property
    def rows(self) -> int:
        """Number of rows of the file that the batch covers, malformed lines included."""
        return int(self.table.num_rows) + len(self.malformed)

    def rows_of(self, places: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """``[n] int64`` places in ``table`` -> ``[n] int64`` rows of the file."""
        lines = np.array([line.row for line in self.malformed], np.int64)
        before = np.searchsorted(lines - self.first_row - np.arange(len(lines)), places, side="right")
        return np.asarray(self.first_row + places + before, np.int64)

    def without(self, places: npt.NDArray[np.int64], lines: Sequence[Malformed]) -> TableBatch:
        """The batch with some rows (``[n] int64`` places in ``table``, ascending) given as ``lines`` instead."""
        kept = np.ones(self.table.num_rows, bool)
        kept[places] = False
        malformed = sorted((*self.malformed, *lines), key=lambda line: line.row)
        keys = None if self.keys is None else self.keys.filter(pa.array(kept))
        return dataclasses.replace(self, table=self.table.filter(pa.array(kept)), malformed=tuple(malformed), keys=keys)


def _record(record: Mapping[str, Any]) -> str:
    return json.dumps(record, default=str, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def shown(content: bytes) -> str:
    """A line or a cell as text for a report: cut short, bytes that are no text escaped."""
    return content[: 4 * KEPT_CHARACTERS].decode("utf-8", "backslashreplace")[:KEPT_CHARACTERS]
