"""JSONL: one JSON object per line, by Arrow where its result is exact, else line by line.

Numbers keep their digits. A key that a line does not have is missing. A line that is no object, or that has a wanted
key twice, gives no row. Empty lines are no rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.formats.blocks import BLOCK_BYTES, blocks, line_cut
from pipelines.tables.formats.json_lines import JsonLines
from pipelines.tables.formats.opening import ByteSource

# A file's keys are those of its first lines: this many bytes of them.
HEAD_BYTES = 4 << 20
_GUESS_LINES = 50
_EXACT_FLOAT = 2.0**53
_LF, _CR, _OPEN, _CLOSE = 10, 13, 123, 125


def read_keys(source: ByteSource, wanted: Sequence[str] = ()) -> tuple[str, ...]:
    """Keys of the first lines, in the order of their occurrence; those ``wanted`` are looked for in the whole file."""
    found: dict[str, None] = {}
    for place, block in enumerate(blocks(source, line_cut, HEAD_BYTES)):
        if place == 0:
            lines = JsonLines.parse(block[: line_cut(block) or len(block)], ())
            found.update(dict.fromkeys(key for value in lines.objects for key in value))
        missing = [name for name in wanted if name not in found]
        if not missing:
            break
        found.update(dict.fromkeys(name for name in missing if _names(block, name)))
    return tuple(found)


def _names(block: bytes, name: str) -> bool:
    return json.dumps(name).encode() in block or json.dumps(name, ensure_ascii=False).encode() in block


def read_jsonl(
    source: ByteSource,
    url: str,
    kinds: Mapping[str, ColumnType],
    decimal: str,
    *,
    first_row: int = 0,
    block_bytes: int = BLOCK_BYTES,
    with_keys: bool = False,
) -> Iterator[TableBatch]:
    """Reads a file, or a part of it.

    Args:
        source: UTF-8 bytes.
        url: name of the file.
        kinds: the columns wanted, and what they will be converted to.
        decimal: decimal mark of the numbers in texts.
        first_row: place in the file of the first line.
        block_bytes: bytes of a batch, about.
        with_keys: say which keys each row has; the lines are then read one by one.
    """
    reader = _Reader(url, kinds, decimal, with_keys)
    row = first_row
    for block in blocks(source, line_cut, block_bytes):
        batch = reader.read(block, row)
        row += batch.rows
        if batch.rows:
            yield batch


@dataclass
class _Reader:
    """Reads blocks; ``seen`` are the columns' types in the blocks before, with which Arrow may try the next."""

    url: str
    kinds: Mapping[str, ColumnType]
    decimal: str
    with_keys: bool
    seen: dict[str, pa.DataType] = field(default_factory=dict)

    def read(self, block: bytes, row: int) -> TableBatch:
        """One block of whole lines."""
        table = None if self.with_keys else self._by_arrow(block)
        if table is not None:
            return TableBatch(table, self.url, row)
        self.seen.clear()
        lines = JsonLines.parse(block, tuple(self.kinds))
        return lines.batch(self.kinds, self.decimal, self.url, row, with_keys=self.with_keys)

    def _by_arrow(self, block: bytes) -> pa.Table | None:
        """The rows, if Arrow reads them exactly."""
        rows = _object_lines(block)
        if rows is None or b"Inf" in block or b"NaN" in block or not self._guess(block):
            return None
        schema = pa.schema([(name, self.seen[name]) for name in self.kinds])
        try:
            table = pajson.read_json(
                pa.py_buffer(block),
                pajson.ReadOptions(use_threads=False, block_size=len(block) + 1),
                pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
            )
            table.validate(full=True)
        except pa.ArrowException:
            return None
        exact = all(
            _is_exact(column, self.kinds[name]) for name, column in zip(schema.names, table.columns, strict=True)
        )
        return table if table.num_rows == rows and exact else None

    def _guess(self, block: bytes) -> bool:
        """Finds the types of columns not seen before in the first lines; False if one has none in Arrow."""
        unknown = [name for name in self.kinds if name not in self.seen]
        if not unknown:
            return True
        end = 0
        for _ in range(_GUESS_LINES):
            end = (block.find(b"\n", end) + 1) or len(block)
        for name in unknown:
            objects = JsonLines.parse(block[:end], ()).objects
            value = next((line[name] for line in objects if line.get(name) is not None), None)
            guess = _arrow_type(value, self.kinds[name])
            if guess is None:
                return False
            self.seen[name] = guess
        return True


def _arrow_type(value: object, kind: ColumnType) -> pa.DataType | None:
    """The Arrow type in which a column with such a value is exact; by its kind where there is no value."""
    inner = ColumnType(type="float64" if kind.type == "embedding" else kind.of)
    match value:
        case None:
            return {
                "timestamp": pa.string(),
                "list": pa.list_(inner.arrow),
                "embedding": pa.list_(pa.float64()),
            }.get(kind.type, kind.arrow)
        case bool():
            return pa.bool_()
        case int() | float() if kind.type == "float64" or isinstance(value, float):
            return pa.float64()
        case int():
            return pa.int64()
        case str():
            return pa.string()
        case list():
            first = next((one for one in value if one is not None), None)
            found = _arrow_type(first, inner)
            return None if found is None or pa.types.is_nested(found) else pa.list_(found)
        case _:
            return None


def _is_exact(column: pa.ChunkedArray, kind: ColumnType) -> bool:
    """Whether no integer can have lost digits as a float."""
    if kind.type in ("float64", "embedding"):
        return True
    column = pc.list_flatten(column) if pa.types.is_list(column.type) else column
    if not pa.types.is_floating(column.type):
        return True
    largest = pc.max(pc.abs(column)).as_py()
    return largest is None or largest < _EXACT_FLOAT


def _object_lines(block: bytes) -> int | None:
    """Number of lines that are not empty, if each begins and ends with the braces of an object; else None."""
    content = np.frombuffer(block, np.uint8)
    ends = np.flatnonzero(content == _LF)
    if len(content) and (len(ends) == 0 or ends[-1] != len(content) - 1):
        ends = np.append(ends, len(content))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lasts = ends - 1
    lasts = lasts - ((lasts >= starts) & (content[lasts] == _CR))
    filled = lasts >= starts
    starts, lasts = starts[filled], lasts[filled]
    fits = (content[starts] == _OPEN) & (content[lasts] == _CLOSE)
    return len(starts) if fits.all() else None
