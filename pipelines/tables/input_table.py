"""Tables that a caller gives: a change feed, the users of a batch job. They are read as the nightly tables are.

A path is read in all formats that a table of the TOML may have, with the delimiter, encoding and decimal mark of that
table; a frame is anything with Arrow's capsule interface. What cannot be read is refused with examples of each kind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.conversion.plain import without_views
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import TableSource
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import file_schema, plan_shards, read_shard


@dataclass(frozen=True)
class InputTable:
    """A table that a caller gives.

    data: a path (file, folder, glob, URL) or a frame. like: the table of the TOML that it is written as; None is plain
    text formats. name: items or users, for errors.
    """

    data: Any
    like: TableSource | None
    name: Literal["items", "users"]

    @property
    def title(self) -> str:
        """The table as an error names it."""
        return str(self.data) if isinstance(self.data, str | Path) else f"the given {self.name}"

    def batches(
        self, kinds: Mapping[str, ColumnType], wanted: Collection[str], *, with_keys: bool = False
    ) -> Iterator[TableBatch]:
        """All rows with all columns, raw or in their type.

        Args:
            kinds: what columns will be converted to.
            wanted: columns that may occur anywhere in a JSONL file.
            with_keys: of JSONL, say which keys each row has.

        Raises:
            SchemaError: it cannot be read.
        """
        if not isinstance(self.data, str | Path):
            yield TableBatch(self._frame(), self.title, 0)
            return
        source, files = self._files(str(self.data))
        for shard in plan_shards(files, source, self.name):
            columns = file_schema(shard.file, source, self.name, tuple(wanted)).names
            yield from read_shard(shard, source, columns, kinds, with_keys=with_keys)

    def _files(self, path: str) -> tuple[TableSource, tuple[SourceFile, ...]]:
        """The files; those whose ending says nothing have the format of the table in the TOML."""
        source = TableSource(path=path) if self.like is None else self.like.at(path)
        try:
            return source, find_files(source, self.name)
        except SchemaError:
            if self.like is None or self.like.format == "auto":
                raise
            source = source.model_copy(update={"format": self.like.format})
            return source, find_files(source, self.name)

    def _frame(self) -> pa.Table:
        if not hasattr(self.data, "__arrow_c_stream__"):
            raise SchemaError(
                f"{self.title}: expected a path, an Arrow table, a Polars or pandas frame, or anything else with "
                f"__arrow_c_stream__, got {type(self.data).__name__}."
            )
        try:
            table = pa.RecordBatchReader.from_stream(self.data).read_all()
        except (pa.ArrowException, ValueError, TypeError) as err:
            raise SchemaError(f"{self.title}: cannot be read through Arrow: {err}. Convert the column.") from err
        twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if twice:
            raise SchemaError(f"{self.title}: names a column twice: {', '.join(twice)}. Rename one.")
        return pa.table({name: without_views(table[name]) for name in table.column_names})


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read. row: its place in the file, from 0. reason: ``rule:column``, as in ``rejects/``."""

    file: str
    row: int
    reason: str
    expected: str
    value: object

    def __str__(self) -> str:
        column = self.reason.partition(":")[2]
        where = f"{self.file} row {self.row}" + ("" if self.reason == "malformed:line" else f", column {column!r}")
        return f"{where}: expected {self.expected}, got {self.value!r:.80}"


def refusal(what: str, bad: Sequence[BadRow]) -> SchemaError:
    """One error for all bad rows: counted by reason, the most frequent first, with an example each."""
    by_reason: dict[str, list[BadRow]] = {}
    for row in bad:
        by_reason.setdefault(row.reason, []).append(row)
    lines = [what]
    for reason, rows in sorted(by_reason.items(), key=lambda entry: -len(entry[1])):
        count = "1 row" if len(rows) == 1 else f"{len(rows)} rows, the first"
        lines.append(f"  {reason}, {count}: {rows[0]}")
    return SchemaError("\n".join(lines))
