"""Where a table is and how its files are read: their format, encoding, delimiter and columns, found by looking."""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableSource
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.formats.opening import opened_text, readable, unpacked
from pipelines.tables.readers import file_schema, plan_shards, read_shard

_HEAD_BYTES = 1 << 18
_HEAD_LINES = 50
_CHUNK_BYTES = 1 << 20
_DELIMITERS = (",", ";", "\t", "|")
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class Table:
    """A table's files. ``columns`` are those that every file has, ``partial`` those that some lack."""

    name: str
    source: TableSource
    files: tuple[SourceFile, ...]
    columns: tuple[str, ...]
    partial: tuple[str, ...]

    @property
    def is_text(self) -> bool:
        """Whether any file is of a format that declares no types."""
        return any(file.is_text for file in self.files)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The rows of ``read``."""
        return (batch.table for batch in self.read(columns))

    def read(self, columns: Sequence[str]) -> Iterator[TableBatch]:
        """Batches of these columns over all files, the cells as the files have them.

        Raises:
            SchemaError: a file cannot be read.
        """
        for shard in plan_shards(self.files, self.source, self.name):
            yield from read_shard(shard, self.source, columns, {})


def look_at(name: str, path: str | tuple[str, ...]) -> Table:
    """Finds a table's files and how they are read.

    Args:
        name: events, items or users.
        path: a file, a folder, a glob or a URL, or several.

    Raises:
        SchemaError: nothing is there, the files are of no known format, or have no common column.
    """
    files = find_files(TableSource(path=path), name)
    found = {}
    texts = [file for file in files if file.is_text]
    if texts:
        found["encoding"] = _encoding(texts, name)
        tables = [file for file in texts if file.format == "csv"]
        delimiters = {_delimiter(file, found["encoding"], name) for file in tables}
        if len(delimiters) > 1:
            raise SchemaError(
                f"{name}: its files have different delimiters: {', '.join(map(repr, sorted(delimiters)))}. Write them "
                "with one."
            )
        if delimiters - {","}:
            found["delimiter"] = delimiters.pop()
    source = TableSource(path=path, **{key: value for key, value in found.items() if value != "utf-8"})
    heads = [file_schema(file, source, name).names for file in files]
    common = [column for column in heads[0] if all(column in head for head in heads)]
    if not common:
        raise SchemaError(f"{name}: its {len(files)} files have no common column. Give the files of one table.")
    every = dict.fromkeys(column for head in heads for column in head)
    return Table(name, source, files, tuple(common), tuple(column for column in every if column not in common))


def _encoding(files: Sequence[SourceFile], name: str) -> str:
    """The first of utf-8, utf-16 (by its mark), Windows' Western European and latin-1 that reads all files whole."""
    found = {_encoding_of(file, name) for file in files}
    if found <= {"utf-8"} or len(found) == 1:
        return found.pop()
    if found <= {"utf-8", "latin-1", "cp1252"}:
        return "cp1252" if "cp1252" in found and "latin-1" not in found else "latin-1"
    raise SchemaError(f"{name}: its files have different encodings: {', '.join(sorted(found))}. Write them as UTF-8.")


def _encoding_of(file: SourceFile, name: str) -> str:
    decoders = {encoding: codecs.getincrementaldecoder(encoding)() for encoding in ("utf-8", "cp1252")}
    with readable(file.url, name), unpacked(file) as source:
        head = chunk = source.read(_CHUNK_BYTES)
        if head.startswith(_UTF16_MARKS):
            return "utf-16"
        while chunk and decoders:
            decoders = {encoding: decoder for encoding, decoder in decoders.items() if _decodes(decoder, chunk)}
            chunk = source.read(_CHUNK_BYTES)
    if "utf-8" in decoders and _decodes(decoders["utf-8"], b"", final=True):
        return "utf-8"
    return "cp1252" if "cp1252" in decoders else "latin-1"


def _decodes(decoder: codecs.IncrementalDecoder, chunk: bytes, *, final: bool = False) -> bool:
    try:
        decoder.decode(chunk, final)
    except UnicodeDecodeError:
        return False
    return True


def _delimiter(file: SourceFile, encoding: str, name: str) -> str:
    """The character that cuts the first lines into the same number of cells, as many as possible."""
    with readable(file.url, name), opened_text(file, encoding) as source:
        text = source.read(_HEAD_BYTES)[:_HEAD_BYTES].decode("utf-8", "replace")
    widths = {delimiter: _width(text, delimiter) for delimiter in _DELIMITERS}
    best = max(_DELIMITERS, key=lambda delimiter: widths[delimiter])
    rows = list(csv.reader(io.StringIO(text), delimiter=best))
    if rows and any(_is_data(cell) for cell in rows[0]):
        raise SchemaError(
            f"{name}: expected a first line with the columns' names in {file.url}, got {', '.join(rows[0])[:80]!r}. "
            "Add a line with names."
        )
    return best


def _width(text: str, delimiter: str) -> float:
    """Cells of the header where the lines after it have as many, weighed by the share of lines that do."""
    lines = csv.reader(io.StringIO(text), delimiter=delimiter)
    try:
        rows = [row for row, _ in zip(lines, range(_HEAD_LINES), strict=False) if row]
    except csv.Error:
        return 0.0
    if not rows or len(rows[0]) < 2:
        return 0.0
    return len(rows[0]) * sum(len(row) == len(rows[0]) for row in rows) / len(rows)


def _is_data(cell: str) -> bool:
    """Whether a cell of the first line is a number, and so no name."""
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
