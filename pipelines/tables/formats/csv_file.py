"""CSV and TSV: blocks of whole records, parsed by Arrow, every column as text.

In a cell that is not quoted an empty text is missing; all else is text as it is. A line with another number of cells
than the header, or with bytes that are no text in a column that is read, gives no row. Blank lines are no rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from pipelines.tables.formats.batches import Malformed, MultiLine, TableBatch, shown
from pipelines.tables.formats.blocks import BLOCK_BYTES, blocks, quotes, record_cut, unclosed
from pipelines.tables.formats.opening import ByteSource
from pipelines.tables.formats.spans import has_feeds_alone, line_ends
from pipelines.tables.formats.undecodable import DECODABLE, is_text, marked

# In place of a column's name: lines with another number of cells than the header.
MALFORMED = "(malformed lines)"
_HEAD_BYTES = 1 << 20
_UNCLOSED = "a quote that is closed before the file ends"


@dataclass(frozen=True)
class Header:
    """The first record of a file.

    names: of its columns, blanks around them removed; none if the file has no record. end: where it ends, in bytes of
    UTF-8 from the beginning, a byte order mark not counted.
    """

    names: tuple[str, ...]
    end: int = 0

    def place(self, column: str) -> int:
        """The place of a column."""
        return self.names.index(column)

    @property
    def repeated(self) -> tuple[str, ...]:
        """Names that several columns have."""
        return tuple(name for name, count in Counter(self.names).items() if count > 1 and name)

    @property
    def usable(self) -> tuple[str, ...]:
        """Names of one column each."""
        return tuple(name for name, count in Counter(self.names).items() if count == 1 and name)


def read_header(source: ByteSource, delimiter: str) -> Header:
    """The header of a file."""
    before = 0
    for block in blocks(source, functools.partial(record_cut, delimiter=delimiter.encode()), _HEAD_BYTES):
        header = _header(block, delimiter)
        if header.names:
            return dataclasses.replace(header, end=before + header.end)
        before += len(block)
    return Header((), before)


def _header(block: bytes, delimiter: str) -> Header:
    start, end = _first_record(block, delimiter.encode())
    return Header(_names(block[start:end], delimiter), end) if end > start else Header((), end)


def read_csv(
    source: ByteSource,
    url: str,
    delimiter: str,
    columns: Sequence[str],
    *,
    header: Header | None = None,
    first_row: int = 0,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[TableBatch]:
    """Reads a file, or a part of it.

    Args:
        source: UTF-8 bytes.
        url: name of the file.
        delimiter: one ASCII character.
        columns: those wanted, each of which the header names once.
        header: the file's, where the source begins after it; None where the source begins with it.
        first_row: place in the file of the first record.
        block_bytes: bytes of a batch, about.

    Raises:
        ValueError: a record is too long.
    """
    row = first_row
    for block in blocks(source, functools.partial(record_cut, delimiter=delimiter.encode()), block_bytes):
        if header is None:
            found = _header(block, delimiter)
            if not found.names:
                continue
            header, block = found, block[found.end :]
        if _is_blank(block):
            continue
        batch = _Block(block, url, delimiter, header, row).read(columns)
        row += batch.rows
        yield batch


def _first_record(block: bytes, delimiter: bytes) -> tuple[int, int]:
    """Where the first record that is not blank begins and ends, its line end included."""
    start = len(block) - len(block.lstrip(b"\r\n"))
    toggles = quotes(block[start:], delimiter)
    place = 0
    while True:
        ends = [found for found in (block.find(b"\n", start + place), block.find(b"\r", start + place)) if found >= 0]
        if not ends:
            return start, len(block)
        end = min(ends)
        opened = int(np.searchsorted(toggles, end - start))
        if opened % 2 == 0:
            return start, end + 1
        if opened >= len(toggles):
            return start, len(block)
        place = int(toggles[opened])


def _names(record: bytes, delimiter: str) -> tuple[str, ...]:
    record = record if record.endswith((b"\n", b"\r")) else record + b"\n"
    table = pacsv.read_csv(
        pa.py_buffer(record),
        pacsv.ReadOptions(use_threads=False, block_size=len(record) + 1, autogenerate_column_names=True),
        pacsv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        pacsv.ConvertOptions(
            column_types={f"f{place}": pa.binary() for place in range(record.count(delimiter.encode()) + 1)},
            strings_can_be_null=False,
        ),
    )
    return tuple(shown(column[0].as_py()).strip() for column in table.columns)


@dataclass(frozen=True)
class _Ragged:
    """A line with another number of cells than the header: its place among the records of a block, and its text."""

    place: int
    text: str
    expected: str


@dataclass(frozen=True)
class _Block:
    """Whole records of a file, the first of which is its row ``row``."""

    content: bytes
    url: str
    delimiter: str
    header: Header
    row: int

    def read(self, columns: Sequence[str]) -> TableBatch:
        """The wanted columns as texts."""
        plain = self._of_lines(columns)
        return self._of_any(columns) if plain is None else plain

    def _of_lines(self, columns: Sequence[str]) -> TableBatch | None:
        """The batch if each line of the block is one record of text; then quotes need not be looked for."""
        if b'"' not in self.content or not has_feeds_alone(self.content) or not is_text(self.content):
            return None
        last = self.content[self.content.rfind(b"\n", 0, -1) + 1 :]
        if len(quotes(last, self.delimiter.encode())) % 2:
            return None
        try:
            table, ragged = self._parsed(self.content, [self.header.place(name) for name in columns])
        except pa.ArrowInvalid:
            return None
        if table.num_rows + len(ragged) < line_ends(self.content):
            return None
        lines = tuple(Malformed.line(self.row + line.place, line.text, line.expected) for line in ragged)
        return TableBatch(table.rename_columns(list(columns)), self.url, self.row, lines)

    def _of_any(self, columns: Sequence[str]) -> TableBatch:
        """The batch, whatever is in the block."""
        toggles = quotes(self.content, self.delimiter.encode())
        whole = unclosed(self.content, toggles)
        content, mark = self.content[:whole], None
        if not is_text(content):
            content, mark = marked(content)
        table, ragged = self._parsed(content, [self.header.place(name) for name in columns])
        lines = [Malformed.line(self.row + line.place, _plain(line.text, mark), line.expected) for line in ragged]
        table = table.rename_columns(list(columns))
        batch = TableBatch(table, self.url, self.row, tuple(lines))
        if mark is not None:
            batch = _without_marked(batch, mark)
        rest = enumerate(self.content[whole:].splitlines(), self.row + batch.rows)
        swallowed = [Malformed.line(row, shown(line), _UNCLOSED) for row, line in rest]
        several = self._multi_line(content) if len(toggles) and batch.rows < line_ends(content) else {}
        return dataclasses.replace(batch, malformed=(*batch.malformed, *swallowed), multi_line=several)

    def _parsed(self, content: bytes, places: Sequence[int]) -> tuple[pa.Table, list[_Ragged]]:
        """Parses UTF-8; the columns' names are their places."""
        names = [str(place) for place in range(len(self.header.names))]
        asked = [str(place) for place in places]
        ragged: list[_Ragged] = []

        def note(line: pacsv.InvalidRow) -> str:
            expected = f"{line.expected_columns} cells as in the header, found {line.actual_columns}"
            ragged.append(_Ragged(line.number - 1, line.text, expected))
            return "skip"

        if _is_blank(content):  # Arrow refuses a file without a byte.
            return pa.table({name: pa.array([], pa.string()) for name in asked}), []
        if not content.endswith((b"\n", b"\r")):  # Arrow takes an empty last cell for quoted if the one before is.
            content += b"\n"
        table = pacsv.read_csv(
            pa.py_buffer(content),
            pacsv.ReadOptions(use_threads=False, block_size=len(content) + 1, column_names=names),
            pacsv.ParseOptions(delimiter=self.delimiter, newlines_in_values=True, invalid_row_handler=note),
            pacsv.ConvertOptions(
                check_utf8=False,
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                include_columns=asked,
            ),
        )
        return table, ragged

    def _multi_line(self, content: bytes) -> dict[str, MultiLine]:
        """Cells over several lines, by column, whether it is read or not."""
        table, ragged = self._parsed(content, range(len(self.header.names)))
        lines = tuple(Malformed.line(self.row + line.place, "", "") for line in ragged)
        batch = TableBatch(table, self.url, self.row, lines)
        found: dict[str, MultiLine] = {}
        for name, column in zip(self.header.names, table.columns, strict=True):
            ends = np.asarray(pc.fill_null(pc.count_substring(column, "\n"), 0), np.int64)
            if ends.any():
                largest = int(ends.argmax())
                row = int(batch.rows_of(np.array([largest]))[0])
                found[name] = MultiLine(int((ends > 0).sum()), int(ends[largest]) + 1, row)
        for line in ragged:
            if "\n" in line.text:
                one = MultiLine(1, line.text.count("\n") + 1, self.row + line.place)
                found[MALFORMED] = found[MALFORMED].joined(one) if MALFORMED in found else one
        return found


def _is_blank(content: bytes) -> bool:
    """Whether there are line ends alone."""
    return content[:1] in b"\r\n" and not content.strip(b"\r\n")


def _without_marked(batch: TableBatch, mark: str) -> TableBatch:
    """The batch without the rows that hold a byte that is no text, which ``mark`` shows."""
    wrong: dict[int, Malformed] = {}
    for name, column in zip(batch.table.column_names, batch.table.columns, strict=True):
        bad = np.flatnonzero(np.asarray(pc.fill_null(pc.match_substring(column, mark), False), bool))
        for place, row in zip(bad.tolist(), batch.rows_of(bad).tolist(), strict=True):
            record = {key: _plain(text, mark) for key, text in batch.table.slice(place, 1).to_pylist()[0].items()}
            wrong.setdefault(place, Malformed.cell(row, record, name, DECODABLE))
    places = sorted(wrong)
    return batch.without(np.array(places, np.int64), [wrong[place] for place in places])


def _plain(text: str | None, mark: str | None) -> str | None:
    """The text, its marked bytes as ``\\x..``."""
    return text if text is None or mark is None else text.replace(mark, "\\x")
