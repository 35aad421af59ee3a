"""Readers: the files of a table, whatever their format, as Arrow batches with exact row numbers.

Reads what ``files`` has found. Every failure is one SchemaError that names the file. A text file is one shard; a
Parquet file is as many as its row groups allow, so that workers share it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.conversion.column_type import STRING, ColumnType
from pipelines.contracts.conversion.plain import without_views
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableSource
from pipelines.tables.files import SourceFile
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.formats.blocks import BLOCK_BYTES
from pipelines.tables.formats.csv_file import read_csv, read_header
from pipelines.tables.formats.jsonl_file import read_jsonl, read_keys
from pipelines.tables.formats.opening import ByteSource, is_utf8, opened, opened_text, readable, utf8_mark
from pipelines.tables.formats.parquet_file import read_row_groups, row_group_sizes
from pipelines.tables.formats.spans import Span, SpanSource, csv_spans, line_spans

ROWS_PER_SHARD = 1_000_000
SPAN_BYTES = 16 << 20


@dataclass(frozen=True)
class Shard:
    """A part of a file that one worker reads: whole, or some row groups, or a span of a text file.

    first_row: its place in the file. rows: their number, where it is known.
    """

    table: str
    file: SourceFile
    row_groups: tuple[int, ...] | None
    first_row: int
    rows: int | None
    span: Span | None = None


def file_schema(file: SourceFile, source: TableSource, name: str, wanted: Sequence[str] = ()) -> pa.Schema:
    """Columns and types of a file, those that its folders give included.

    The columns of a text file are strings. A JSONL file's are the keys of its first lines, and those ``wanted`` that
    occur anywhere. A text file without a header or a line has no columns. A name that the file gives to several columns
    is left out.

    Raises:
        SchemaError: it cannot be read, or gives a wanted name to several columns.
    """
    fields = _own_fields(file, source, name, wanted)
    names = [field.name for field in fields]
    twice = sorted({column for column in names if names.count(column) > 1})
    named = [column for column in twice if column in wanted]
    if named:
        raise SchemaError(f"tables.{name}: {file.url} names a column twice: {', '.join(named)}. Rename one.")
    given = [pa.field(key, pa.string()) for key, _ in file.partitions if key not in names]
    return pa.schema([field for field in fields if field.name not in twice] + given)


def _own_fields(file: SourceFile, source: TableSource, name: str, wanted: Sequence[str]) -> list[pa.Field]:
    """The columns of the file itself, repeated names included."""
    with readable(file.url, name):
        if file.format == "parquet":
            with opened(file) as handle:
                schema = pq.read_schema(handle).remove_metadata()
            # Here, since a name that is no UTF-8 fails only when it is looked at.
            return [field.with_name(field.name) for field in schema]
        with opened_text(file, source.encoding) as text:
            if file.format == "jsonl":
                names = read_keys(text, wanted)
            else:
                names = tuple(column for column in read_header(text, delimiter_of(file, source)).names if column)
        return [pa.field(column, pa.string()) for column in names]


def delimiter_of(file: SourceFile, source: TableSource) -> str:
    """The character between the cells of a CSV or TSV file.

    Raises:
        SchemaError: it cannot be one.
    """
    delimiter = source.delimiter or ("\t" if file.format == "tsv" else ",")
    if not delimiter.isascii() or delimiter in '"\r\n\0':
        raise SchemaError(
            f"delimiter: expected an ASCII character other than a quote or a line end, got {delimiter!r}."
        )
    return delimiter


def require_columns(schema: pa.Schema, wanted: Sequence[str], file: SourceFile, name: str) -> None:
    """Checks that a file has the columns.

    Raises:
        SchemaError: one is missing; the message lists those the file has.
    """
    missing = [column for column in wanted if column not in schema.names]
    if missing:
        raise SchemaError(
            f"tables.{name}: expected column {missing[0]!r} in {file.url}, found only "
            f"{', '.join(schema.names) or 'none'}. Correct the schema or the table."
        )


def plan_shards(
    files: Sequence[SourceFile], source: TableSource, name: str, rows_per_shard: int = ROWS_PER_SHARD
) -> list[Shard]:
    """Cuts files into shards of about ``rows_per_shard`` rows, without splitting a row group.

    A large text file that is local, plain and UTF-8 is cut, too, at ends of records; other text files stay whole.

    Raises:
        SchemaError: a Parquet footer or a text file cannot be read.
    """
    shards: list[Shard] = []
    for file in files:
        if file.format == "parquet":
            shards.extend(_parquet_shards(file, name, rows_per_shard))
        elif _can_be_cut(file, source):
            shards.extend(Shard(name, file, None, span.first_row, None, span) for span in _spans(file, source, name))
        else:
            shards.append(Shard(name, file, None, 0, None))
    return shards


def _can_be_cut(file: SourceFile, source: TableSource) -> bool:
    plain = file.is_local and file.compression is None and is_utf8(source.encoding)
    return plain and file.bytes >= 2 * SPAN_BYTES


def _spans(file: SourceFile, source: TableSource, name: str) -> list[Span]:
    with readable(file.url, name), opened(file) as handle:
        mark = utf8_mark(handle)
        if file.format == "jsonl":
            return line_spans(handle, mark, file.bytes, SPAN_BYTES)
        delimiter = delimiter_of(file, source)
        handle.seek(mark)
        header = read_header(handle, delimiter)
        return csv_spans(handle, mark + header.end, file.bytes, delimiter.encode(), SPAN_BYTES)


def _parquet_shards(file: SourceFile, name: str, rows_per_shard: int) -> Iterator[Shard]:
    with readable(file.url, name), opened(file) as handle:
        sizes = row_group_sizes(handle)
    groups: list[int] = []
    first, rows = 0, 0
    for group, size in enumerate(sizes):
        if groups and rows + size > rows_per_shard:
            yield Shard(name, file, tuple(groups), first, rows)
            first, rows, groups = first + rows, 0, []
        groups.append(group)
        rows += size
    yield Shard(name, file, tuple(groups), first, rows)


def read_shard(
    shard: Shard,
    source: TableSource,
    columns: Sequence[str],
    types: Mapping[str, ColumnType],
    rows_per_batch: int = ROWS_PER_SHARD,
    *,
    with_keys: bool = False,
) -> Iterator[TableBatch]:
    """Reads a shard in batches: of a Parquet file at most ``rows_per_batch`` rows, of text about 16 MB.

    Args:
        shard: what to read.
        source: how its table's text files are written.
        columns: the columns wanted. One that the file does not have is null.
        types: what the columns will be converted to. A column comes in that type, or raw: as text from a text file, as
            the value's own type from JSONL, as the file's type from Parquet.
        rows_per_batch: the memory bound.
        with_keys: of JSONL, say which keys each row has.

    Raises:
        SchemaError: the file cannot be read, or not to its end.
    """
    file = shard.file
    with readable(file.url, shard.table):
        for batch in _batches(shard, source, columns, types, rows_per_batch, with_keys=with_keys):
            yield _completed(batch, file, columns, types)


def _batches(
    shard: Shard,
    source: TableSource,
    columns: Sequence[str],
    types: Mapping[str, ColumnType],
    rows_per_batch: int,
    *,
    with_keys: bool,
) -> Iterator[TableBatch]:
    file = shard.file
    if file.format == "parquet":
        with opened(file) as handle:
            groups = list(shard.row_groups or ())
            yield from read_row_groups(handle, file.url, columns, groups, shard.first_row, rows_per_batch)
        return
    with _opened_part(shard, source) as text:
        if file.format == "jsonl":
            kinds = {name: types.get(name, STRING) for name in _asked_of_json(file, source, shard.table, columns)}
            yield from read_jsonl(text, file.url, kinds, source.decimal, first_row=shard.first_row, with_keys=with_keys)
            return
        delimiter = delimiter_of(file, source)
        with opened_text(file, source.encoding) as head:
            header = read_header(head, delimiter)
        asked = [name for name in columns if name in header.usable]
        given = None if shard.span is None else header
        # A span is whole records, and one batch.
        size = BLOCK_BYTES if shard.span is None else shard.span.end - shard.span.start + 1
        yield from read_csv(text, file.url, delimiter, asked, header=given, first_row=shard.first_row, block_bytes=size)


@contextlib.contextmanager
def _opened_part(shard: Shard, source: TableSource) -> Iterator[ByteSource]:
    """The text of a shard."""
    if shard.span is None:
        with opened_text(shard.file, source.encoding) as text:
            yield text
    else:
        with opened(shard.file) as handle:
            yield SpanSource(handle, shard.span)


def _asked_of_json(file: SourceFile, source: TableSource, name: str, columns: Sequence[str]) -> list[str]:
    """The columns to look for in the lines: a key that the first lines do not have may come later."""
    given = dict(file.partitions)
    own = {field.name for field in _own_fields(file, source, name, ())} if given else set()
    return [column for column in columns if column in own or column not in given]


def _completed(
    batch: TableBatch, file: SourceFile, columns: Sequence[str], types: Mapping[str, ColumnType]
) -> TableBatch:
    """The batch with all columns wanted: those of the file, those its folders give, and nulls for the others."""
    given, rows = dict(file.partitions), batch.table.num_rows
    arrays: list[pa.Array | pa.ChunkedArray] = []
    for name in columns:
        if name in batch.table.column_names:
            arrays.append(without_views(batch.table[name]))
        elif given.get(name) is not None:
            arrays.append(pa.repeat(pa.scalar(given[name], pa.string()), rows))
        else:
            arrays.append(pa.nulls(rows, types[name].arrow if name in types else pa.null()))
    keys = batch.keys
    if keys is not None and given:
        own = [name for name in columns if name in given and name not in batch.table.column_names]
        keys = pa.array([[*found, *own] for found in keys.to_pylist()], keys.type)
    return dataclasses.replace(batch, table=pa.table(dict(zip(columns, arrays, strict=True))), keys=keys)
