"""Undecodable: cells that are declared to be text and hold bytes that are none. Their rows are given as malformed."""

from __future__ import annotations

import json
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.tables.formats.batches import Malformed, TableBatch, shown

DECODABLE = "text in the table's encoding"


def is_text(content: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    if len(content) >= 2**31:
        return _is_text(content)
    offsets = pa.py_buffer(np.array([0, len(content)], np.int32))
    try:
        pa.StringArray.from_buffers(1, offsets, pa.py_buffer(content)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def marked(content: bytes) -> tuple[bytes, str]:
    """The bytes as UTF-8, each that is no text as a mark and two hexadecimal digits; and the mark."""
    text = content.decode("utf-8", "surrogateescape")
    mark = next(chr(code) for code in range(0x10FFFD, 0x100000, -1) if chr(code) not in text)
    plain = re.sub("[\udc80-\udcff]", lambda found: f"{mark}{ord(found[0]) - 0xDC00:02x}", text)
    return plain.encode(), mark


def without_undecodable(batch: TableBatch) -> TableBatch:
    """The batch without rows that hold bytes that are no text.

    Raises:
        ArrowInvalid: the data are damaged in another way.
    """
    batch.table.validate()
    lines: dict[int, Malformed] = {}
    for name, column in zip(batch.table.column_names, batch.table.columns, strict=True):
        array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
        for place, value in _undecodable(array):
            row = int(batch.rows_of(np.array([place]))[0])
            lines.setdefault(place, Malformed(row, json.dumps({name: value}), DECODABLE, name, value))
    places: npt.NDArray[np.int64] = np.array(sorted(lines), np.int64)
    return batch.without(places, [lines[place] for place in places.tolist()]) if lines else batch


def _undecodable(array: pa.Array) -> list[tuple[int, str]]:
    """Place and content of each cell with bytes that are no text; of a list's the first."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        pass
    else:
        return []
    if pa.types.is_dictionary(array.type):
        values = dict(_undecodable(array.dictionary))
        indices = array.indices.to_pylist()
        return [(place, values[index]) for place, index in enumerate(indices) if index in values]
    if pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
        parents = pc.list_parent_indices(array).to_pylist()
        return [(parents[place], value) for place, value in _undecodable(array.flatten())]
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
        binary = array.view(pa.binary() if pa.types.is_string(array.type) else pa.large_binary())
        return [
            (place, shown(value))
            for place, value in enumerate(binary.to_pylist())
            if value is not None and not _is_text(value)
        ]
    array.validate(full=True)
    return []


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True
