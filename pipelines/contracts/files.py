"""Files: written to a temporary name and renamed, so that a reader never sees half of one.

Arrow files between the steps of a job, Parquet and JSON. A retried or doubled task writes the same file again.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

# Bytes that file systems allow in one part of a name.
_LONGEST_NAME = 255


def file_name(name: str) -> str:
    """The name of a file below a folder, read from outside, if it is one: relative, with ``/``, and not hidden.

    Raises:
        ValueError: it is empty or absolute, goes up (``..``), or has a backslash, a control character, an empty part or
            one that begins with a dot.
    """
    parts = name.split("/")
    if "\\" in name or any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError(f"{name!r}: expected the name of a file, got a backslash or a control character in it")
    if any(not part or part.startswith(".") or len(os.fsencode(part)) > _LONGEST_NAME for part in parts):
        raise ValueError(
            f"{name!r}: expected the name of a file below the folder, such as 'scann/config.pbtxt': relative, without "
            "'..', empty or hidden parts"
        )
    return name


def write_aside(path: Path, write: Callable[[Path], Any]) -> None:
    """Lets ``write`` fill a file next to ``path``, then renames it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.parent / f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_arrow(table: pa.Table | Sequence[pa.Table], path: Path) -> None:
    """Writes tables of one schema as one Arrow file, a record batch for each table."""
    tables = [table] if isinstance(table, pa.Table) else list(table)

    def write(aside: Path) -> None:
        with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, tables[0].schema) as writer:
            for one in tables:
                batches = one.combine_chunks().to_batches()
                writer.write_batch(batches[0] if batches else pa.RecordBatch.from_pylist([], schema=one.schema))

    write_aside(path, write)


def read_arrow(path: Path, batch: int | None = None) -> pa.Table:
    """Reads a file of ``write_arrow``: all of it, or one of its batches."""
    with pa.OSFile(str(path), "rb") as source:
        reader = pa.ipc.open_file(source)
        if batch is None:
            return reader.read_all()
        return pa.Table.from_batches([reader.get_batch(batch)])


def write_parquet(table: pa.Table, path: Path) -> None:
    """Writes a Parquet file aside and renames it. Only texts get a dictionary: numbers mostly differ."""
    texts = [
        field.name for field in table.schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    ]
    write_aside(path, lambda aside: pq.write_table(table, aside, use_dictionary=texts))


def write_json(value: object, path: Path) -> None:
    """Writes a JSON file aside and renames it."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(value)))


def link(source: Path, target: Path) -> None:
    """A hard link to a file that is no longer changed; a durable copy if the file system has no links."""

    def make(aside: Path) -> None:
        try:
            os.link(source, aside)
        except OSError:
            shutil.copyfile(source, aside)
            with aside.open("rb") as copy:
                os.fsync(copy.fileno())

    write_aside(target, make)
