"""Tables given as frames: written once as Parquet below the run's folder, from there on files like any other.

A frame is anything with Arrow's capsule interface (``__arrow_c_stream__``): Arrow and Polars tables, pandas frames from
2.2 on. A frame with the rows of the file that is there already leaves the file alone, so that nothing runs again.
"""

from __future__ import annotations

import filecmp
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.conversion.plain import parquet_type
from pipelines.contracts.errors import SchemaError

TABLES = "tables"


def write_frames(frames: Mapping[str, Any], work: Path) -> dict[str, Path]:
    """Writes each frame and returns the files by the table's name.

    Args:
        frames: "events", "items", "users" to a frame.
        work: the run's folder; the files go to ``tables/`` below it.

    Raises:
        SchemaError: a value is no frame, or holds columns that Parquet cannot.
    """
    return {name: _write(name, frame, work / TABLES / f"{name}.parquet") for name, frame in frames.items()}


def _write(name: str, frame: Any, file: Path) -> Path:
    table = _as_table(name, frame)
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}")
    try:
        pq.write_table(table, draft)
        # By their bytes: a missing number equals itself there, and a damaged file is simply another one.
        if not (file.is_file() and filecmp.cmp(draft, file, shallow=False)):
            draft.replace(file)
    except pa.ArrowException as err:
        raise SchemaError(f"{name}: the frame cannot be written as Parquet: {err}. Convert the column.") from err
    finally:
        draft.unlink(missing_ok=True)
    return file


def _as_table(name: str, frame: Any) -> pa.Table:
    if not hasattr(frame, "__arrow_c_stream__"):
        raise SchemaError(
            f"{name}: expected an Arrow table, a Polars or pandas frame, or anything else with __arrow_c_stream__, got "
            f"{type(frame).__name__}. Give a path in the TOML instead, or convert it."
        )
    try:
        table = pa.RecordBatchReader.from_stream(frame).read_all()
        schema = pa.schema([pa.field(field.name, parquet_type(field.type), field.nullable) for field in table.schema])
        # Without metadata and in one piece: the same rows are the same bytes, whichever library they come from.
        return table.cast(schema).combine_chunks()
    except (pa.ArrowException, ValueError, TypeError) as err:
        raise SchemaError(f"{name}: the frame cannot be read through Arrow: {err}. Convert the column.") from err
