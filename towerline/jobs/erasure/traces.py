"""Erasure: which artifacts still hold a trace of users who asked to be forgotten.

Reads artifact directories of any kind (features, models, bundles, whole registries); writes nothing. New artifacts are
made without these users by ``features.run(forget=...)``; this report names what is retained and still has a trace.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import MANIFEST_FILE

_USER_COLUMN = "user_id"
_VALUE_COLUMN = "value"


@dataclass(frozen=True)
class Trace:
    """One file that holds one or more of the users. ``users`` are those found, as text, ascending."""

    artifact: Path
    file: str
    users: tuple[str, ...]


@dataclass(frozen=True)
class ErasureReport:
    """How many users were looked for, and the files that still hold one."""

    users: int
    traces: tuple[Trace, ...]


def read_forget_list(path: Path) -> tuple[str, ...]:
    """Reads user ids, one per line; empty lines and lines that begin with # do not count.

    Raises:
        SchemaError: the file cannot be read, or names nobody.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise SchemaError(f"{path}: the list of users to forget cannot be read: {err}") from err
    users = tuple(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not users:
        raise SchemaError(f"{path}: expected user ids, one per line, found none.")
    return users


def find_traces(folders: Sequence[Path], users: Sequence[int | str]) -> list[Trace]:
    """Looks through every artifact below the folders; an empty list says that there is no trace.

    Raises:
        SchemaError: a folder does not exist, or a file of an artifact cannot be read: no trace can be ruled out then.
    """
    wanted = pa.array(sorted({str(user) for user in users}), pa.string())
    traces = []
    for folder in folders:
        if not folder.is_dir():
            raise SchemaError(f"{folder}: expected a directory of artifacts, found none.")
        for manifest in sorted(folder.rglob(MANIFEST_FILE)):
            traces += [trace for trace in _of_artifact(manifest.parent, wanted) if trace.users]
    return traces


def _of_artifact(artifact: Path, wanted: pa.Array) -> Iterator[Trace]:
    columns = _user_columns(artifact)
    for file in sorted(path for path in artifact.rglob("*") if path.is_file()):
        try:
            found = _in_file(file, columns, wanted)
        except (OSError, pa.ArrowException, ValueError) as err:
            raise SchemaError(f"{file}: cannot be read ({err}), so that no trace can be ruled out.") from err
        yield Trace(artifact, str(file.relative_to(artifact)), tuple(sorted(found)))


def _user_columns(artifact: Path) -> frozenset[str]:
    """Names of the id columns of this data set's users."""
    names = {_USER_COLUMN}
    schema = artifact / "schema.json"
    if schema.is_file():
        tables: dict[str, Any] = json.loads(schema.read_text()).get("tables", {})
        for table in ("events", "users"):
            if tables.get(table):
                names.add(tables[table][_USER_COLUMN])
    return frozenset(names)


def _in_file(file: Path, columns: frozenset[str], wanted: pa.Array) -> set[str]:
    if file.suffix == ".parquet":
        names = [name for name in pq.read_schema(file).names if name in columns or name == "record"]
        table = pq.ParquetFile(file).read(columns=names)
    elif file.suffix == ".arrow":
        with pa.OSFile(str(file), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
    elif file.suffix in (".json", ".jsonl"):
        return _in_records([file.read_text()], columns, wanted)
    else:
        return set()
    found: set[str] = set()
    for name in table.column_names:
        is_value = name == _VALUE_COLUMN and file.name.removeprefix("user.").removesuffix(".arrow") in columns
        if name in columns or is_value:
            found |= _members(table[name], wanted)
        elif name == "record":
            found |= _in_records([text for text in table[name].to_pylist() if text], columns, wanted)
    return found


def _members(column: pa.ChunkedArray, wanted: pa.Array) -> set[str]:
    if pa.types.is_nested(column.type):
        return set()
    texts = column.cast(pa.string())
    return set(pc.unique(texts.filter(pc.is_in(texts, value_set=wanted))).to_pylist())


def _in_records(texts: Sequence[str], columns: frozenset[str], wanted: pa.Array) -> set[str]:
    """Users named under a user column anywhere in JSON texts; a text that is no JSON is searched word by word."""
    users = set(wanted.to_pylist())
    found: set[str] = set()
    for text in texts:
        try:
            parsed = [json.loads(text)]
        except ValueError:
            found |= {user for user in users if user in text}
            continue
        while parsed:
            value = parsed.pop()
            if isinstance(value, dict):
                found |= users & {str(value[name]) for name in columns if name in value}
                parsed.extend(value.values())
            elif isinstance(value, list):
                parsed.extend(value)
    return found
