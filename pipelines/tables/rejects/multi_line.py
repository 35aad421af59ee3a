"""Cells over several lines: no rejects, but reported, since two stray quotes make one of all that is between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pipelines.contracts.schema import TableName
from pipelines.tables.formats.batches import MultiLine, TableBatch


@dataclass(frozen=True)
class MultiLineCells:
    """Cells of one column of a file that go over several lines: how many, the lines of the largest, and its row."""

    table: TableName
    column: str
    cells: int
    lines: int
    file: str | None = None
    row: int | None = None


class MultiLineCount:
    """Adds up the cells over several lines of a table's batches."""

    def __init__(self, table: TableName) -> None:
        self._table = table
        self._found: dict[tuple[str, str], MultiLine] = {}

    def add(self, batch: TableBatch) -> None:
        """Adds those of a batch."""
        for column, cells in batch.multi_line.items():
            key = (batch.file, column)
            self._found[key] = cells if key not in self._found else self._found[key].joined(cells)

    def __iter__(self) -> Iterator[MultiLineCells]:
        for (file, column), found in self._found.items():
            yield MultiLineCells(self._table, column, found.cells, found.lines, file, found.row)
