"""Tables: finds and reads Parquet, CSV and JSONL files, local or on any fsspec URL, as Arrow batches.

Reads the files named in ``[tables.*]`` of the schema. Every failure is one SchemaError that names the file.
A CSV or JSONL file is one shard; a Parquet file is as many as its row groups allow, so that workers share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq
import xxhash

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableSource

ROWS_PER_SHARD = 1_000_000
_EDGE_BYTES = 1 << 16
_CSV_BLOCK_BYTES = 16 << 20
_SUFFIX_TO_FORMAT = {"parquet": "parquet", "pq": "parquet", "csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}
_UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError, EOFError, ValueError)


@dataclass(frozen=True)
class SourceFile:
    """One file of a table. ``fingerprint`` covers its size and its first and last 64 KiB (a Parquet file's footer)."""

    url: str
    format: str
    bytes: int
    fingerprint: str


@dataclass(frozen=True)
class Shard:
    """A part of a file that one worker reads: whole, or some row groups. ``first_row`` is its place in the file."""

    table: str
    file: SourceFile
    row_groups: tuple[int, ...] | None
    first_row: int
    rows: int | None


@dataclass(frozen=True)
class TableBatch:
    """Rows of a shard; ``first_row`` is the place of the first in the file; ``malformed`` are lines without a row."""

    table: pa.Table
    file: str
    first_row: int
    malformed: tuple[str, ...] = ()


def find_files(table: TableSource, name: str) -> tuple[SourceFile, ...]:
    """Lists a table's files, by name.

    Raises:
        SchemaError: a path matches nothing, cannot be reached, or is of no known format.
    """
    found: dict[str, SourceFile] = {}
    for path in table.paths:
        for url in _expand(path, name):
            found[url] = _describe(url, table.format, name)
    return tuple(found[url] for url in sorted(found))


def _expand(path: str, name: str) -> list[str]:
    try:
        fs, root = fsspec.core.url_to_fs(path)
        if any(character in path for character in "*?["):
            matches = sorted(match for match in fs.glob(root) if fs.isfile(match))
        elif fs.isdir(root):
            matches = sorted(match for match in fs.ls(root, detail=False) if _suffix(match) in _SUFFIX_TO_FORMAT)
        else:
            matches = [root] if fs.exists(root) else []
    except (OSError, ValueError, ImportError) as err:
        raise SchemaError(f"tables.{name}.path: {path} cannot be reached: {err}. Check the path or URL.") from err
    if not matches:
        raise SchemaError(f"tables.{name}.path: expected at least one file at {path}, found none. Correct the path.")
    return [fs.unstrip_protocol(match) if "://" in path else match for match in matches]


def _suffix(url: str) -> str:
    parts = url.lower().rsplit("/", 1)[-1].split(".")
    if len(parts) > 2 and parts[-1] in ("gz", "bz2", "zst", "xz"):
        return parts[-2]
    return parts[-1] if len(parts) > 1 else ""


def _describe(url: str, declared: str, name: str) -> SourceFile:
    form = declared if declared != "auto" else _SUFFIX_TO_FORMAT.get(_suffix(url), "")
    if not form:
        raise SchemaError(
            f"tables.{name}: {url} has no known suffix (parquet, csv, jsonl). "
            'Give format = "parquet", "csv" or "jsonl".'
        )
    with _readable(url, name):
        fs, path = fsspec.core.url_to_fs(url)
        size = int(fs.size(path))
        digest = xxhash.xxh3_64(str(size))
        with fs.open(path, "rb") as file:
            digest.update(file.read(_EDGE_BYTES))
            if size > _EDGE_BYTES:
                file.seek(max(size - _EDGE_BYTES, 0))
                digest.update(file.read(_EDGE_BYTES))
    return SourceFile(url, form, size, digest.hexdigest())


@contextlib.contextmanager
def _readable(url: str, name: str) -> Iterator[None]:
    """Turns what readers raise into one SchemaError that names the file."""
    try:
        yield
    except _UNREADABLE as err:
        text = " ".join(str(err).split())
        raise SchemaError(
            f"tables.{name}: {url} cannot be read: {text:.300}. Correct or remove the file, or give the right format."
        ) from err


@contextlib.contextmanager
def _opened(file: SourceFile) -> Iterator[Any]:
    """The file as what Arrow reads: a local one by its path's own handle, others through fsspec; decompressed."""
    compression = "infer" if file.format != "parquet" else None
    if "://" not in file.url and file.format == "parquet":
        with pa.OSFile(file.url, "rb") as handle:
            yield handle
    else:
        with fsspec.open(file.url, "rb", compression=compression) as handle:
            yield handle


def arrow_schema(file: SourceFile, name: str) -> pa.Schema:
    """Columns and types of a file; those of CSV and JSONL as their first block suggests.

    Raises:
        SchemaError: it cannot be read, or names a column twice.
    """
    with _readable(file.url, name), _opened(file) as handle:
        if file.format == "parquet":
            schema = pq.read_schema(handle)
        elif file.format == "csv":
            schema = pacsv.open_csv(handle, parse_options=pacsv.ParseOptions(newlines_in_values=True)).schema
        else:
            schema = pajson.open_json(handle).schema
        # Here, since a name that is no UTF-8 fails only when it is looked at.
        twice = sorted({column for column in schema.names if schema.names.count(column) > 1})
    if twice:
        raise SchemaError(f"tables.{name}: {file.url} names a column twice: {', '.join(twice)}. Rename one.")
    return schema


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


def plan_shards(files: Sequence[SourceFile], name: str, rows_per_shard: int = ROWS_PER_SHARD) -> list[Shard]:
    """Cuts files into shards of about ``rows_per_shard`` rows, without splitting a row group.

    Raises:
        SchemaError: a Parquet footer cannot be read.
    """
    shards: list[Shard] = []
    for file in files:
        if file.format == "parquet":
            shards.extend(_parquet_shards(file, name, rows_per_shard))
        else:
            shards.append(Shard(name, file, None, 0, None))
    return shards


def _parquet_shards(file: SourceFile, name: str, rows_per_shard: int) -> Iterator[Shard]:
    with _readable(file.url, name), _opened(file) as handle:
        metadata = pq.read_metadata(handle)
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
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
    shard: Shard, columns: Sequence[str], types: Mapping[str, pa.DataType], rows_per_batch: int = ROWS_PER_SHARD
) -> Iterator[TableBatch]:
    """Reads a shard in batches of at most ``rows_per_batch`` rows.

    Args:
        shard: what to read.
        columns: the columns wanted, all of which the file must have.
        types: how to read a CSV file's columns; those not named as the file's first block suggests.
        rows_per_batch: the memory bound.

    Raises:
        SchemaError: the file cannot be read, or not to its end.
    """
    with _readable(shard.file.url, shard.table), _opened(shard.file) as handle:
        if shard.file.format == "parquet":
            batches = _parquet_batches(handle, shard, columns, rows_per_batch)
        elif shard.file.format == "csv":
            batches = _csv_batches(handle, shard, columns, types)
        else:
            batches = _jsonl_batches(handle, shard, columns)
        for batch in batches:
            batch.table.validate(full=True)  # Readers of JSON and Parquet accept bytes that are not text.
            yield batch


def _parquet_batches(handle: Any, shard: Shard, columns: Sequence[str], rows_per_batch: int) -> Iterator[TableBatch]:
    reader = pq.ParquetFile(handle)
    require_columns(reader.schema_arrow, columns, shard.file, shard.table)
    row = shard.first_row
    groups = list(shard.row_groups or ())
    if shard.rows is not None and shard.rows <= rows_per_batch:
        whole = reader.read_row_groups(groups, columns=list(columns)) if groups else reader.schema_arrow.empty_table()
        yield TableBatch(whole.select(list(columns)), shard.file.url, row)
        return
    for batch in reader.iter_batches(rows_per_batch, row_groups=groups, columns=list(columns)):
        yield TableBatch(pa.Table.from_batches([batch]).select(list(columns)), shard.file.url, row)
        row += batch.num_rows


def _csv_batches(
    handle: Any, shard: Shard, columns: Sequence[str], types: Mapping[str, pa.DataType]
) -> Iterator[TableBatch]:
    malformed: list[str] = []

    def note(row: pacsv.InvalidRow) -> str:
        malformed.append(row.text)
        return "skip"

    reader = pacsv.open_csv(
        handle,
        read_options=pacsv.ReadOptions(block_size=_CSV_BLOCK_BYTES, use_threads=False),
        parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pacsv.ConvertOptions(column_types=dict(types), strings_can_be_null=True),
    )
    require_columns(reader.schema, columns, shard.file, shard.table)
    row = 0
    for batch in reader:
        table = pa.Table.from_batches([batch]).select(list(columns))
        yield TableBatch(table, shard.file.url, row, tuple(malformed))
        row += batch.num_rows + len(malformed)
        malformed.clear()
    if malformed:
        yield TableBatch(reader.schema.empty_table().select(list(columns)), shard.file.url, row, tuple(malformed))


def _jsonl_batches(handle: Any, shard: Shard, columns: Sequence[str]) -> Iterator[TableBatch]:
    reader = pajson.open_json(
        handle, pajson.ReadOptions(block_size=_CSV_BLOCK_BYTES), pajson.ParseOptions(newlines_in_values=False)
    )
    require_columns(reader.schema, columns, shard.file, shard.table)
    row = 0
    for batch in reader:
        yield TableBatch(pa.Table.from_batches([batch]).select(list(columns)), shard.file.url, row)
        row += batch.num_rows
