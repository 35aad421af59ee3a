"""Heads: which files the tables have and which columns these have, without reading rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema, TableName
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.readers import file_schema
from towerline.jobs.check.finding import Finding

TABLES: tuple[TableName, ...] = ("events", "items", "users")
# Heads that are read per table before a job begins; the job itself reads all.
_MOST_HEADS = 64


@dataclass
class Heads:
    """files: of each table that was found. columns: which any file of the table has. wrong: what cannot be read."""

    files: dict[TableName, tuple[SourceFile, ...]] = field(default_factory=dict)
    columns: dict[TableName, tuple[str, ...]] = field(default_factory=dict)
    wrong: list[Finding] = field(default_factory=list)

    @classmethod
    def read(cls, schema: DatasetSchema, most: int | None = _MOST_HEADS) -> Heads:
        """Lists the files and reads heads.

        Args:
            schema: the data set's.
            most: heads to read per table, evenly spaced; None reads all.
        """
        heads = cls()
        for table in TABLES:
            source = getattr(schema.tables, table)
            if source is None:
                continue
            try:
                files = find_files(source, table)
                heads.files[table] = files
                named = [file_schema(file, source, table).names for file in _spaced(files, most)]
            except SchemaError as err:
                heads.wrong.append(Finding.of(f"tables.{table}", err))
            else:
                heads.columns[table] = tuple(dict.fromkeys(name for names in named for name in names))
        return heads


def _spaced(files: Sequence[SourceFile], most: int | None) -> Sequence[SourceFile]:
    if most is None or len(files) <= most:
        return files
    return [files[place * (len(files) - 1) // (most - 1)] for place in range(most)]
