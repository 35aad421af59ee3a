"""The file scanner: which of the ids one file holds. Reads files by their bytes, not by their names alone.

Parquet, Arrow and entries of a registry's log are decoded column by column; JSON key by key; NumPy files by their type;
compressed files are unpacked; anything else is text, or bytes where it is no text.
"""

from __future__ import annotations

import bz2
import gzip
import html
import io
import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from index.registry.delta_entry import LOG_SUFFIXES, unpacked
from towerline.jobs.erasure.id_columns import IdColumns
from towerline.jobs.erasure.id_matcher import IdMatcher, Matches, is_number, is_short

_BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 1 << 26
# Blocks overlap by this much, the longest id that is found across a bound.
_OVERLAP_BYTES = 1 << 12
_PARQUET, _ARROW, _NUMPY = b"PAR1", b"ARROW1", b"\x93NUMPY"
_GZIP, _BZ2, _XZ, _ZSTD = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"
# Pictures of a report: letters and digits by chance.
_PICTURE = re.compile(r"base64,[A-Za-z0-9+/=\s]+")
# Columns of rejects that quote a line of the tables.
_QUOTES = ("record", "value")


@dataclass(frozen=True)
class FileScanner:
    """Looks for ids in a file of an artifact. ``name`` is its path there, ``columns`` are of the artifact's columns."""

    matcher: IdMatcher
    columns: IdColumns
    name: str

    def read(self, file: IO[bytes]) -> Matches:
        """What the file holds.

        Raises:
            OSError, ValueError, pyarrow.ArrowException, EOFError, lzma.LZMAError, ArtifactError: it cannot be read.
        """
        head = file.read(8)
        file.seek(0)
        if head.startswith(_PARQUET) or self._suffix == ".parquet":
            return self._parquet(file)
        if self._suffix in LOG_SUFFIXES:
            return self._columns(iter([unpacked(file.read())[0]]))
        if head.startswith(_ARROW) or self._suffix == ".arrow":
            return self._columns(pa.Table.from_batches([batch]) for batch in _batches(file))
        if head.startswith(_NUMPY):
            return self._numpy(file)
        content = _decompressed(file, head)
        if content is not None:
            inner = FileScanner(self.matcher, self.columns, str(PurePosixPath(self.name).with_suffix("")))
            return inner.read(io.BytesIO(content))
        if self._suffix in (".json", ".jsonl"):
            return self._json(file.read().decode("utf-8", "surrogateescape"))
        return self._blocks(file)

    @property
    def _suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def _file(self) -> str:
        return PurePosixPath(self.name).name

    @property
    def _are_lines(self) -> bool:
        """Whether its texts quote the tables."""
        return PurePosixPath(self.name).parent.name == "rejects"

    def _parquet(self, file: IO[bytes]) -> Matches:
        opened = pq.ParquetFile(file)
        return self._columns(pa.Table.from_batches([batch]) for batch in opened.iter_batches(_BATCH_ROWS))

    def _columns(self, tables: Iterator[pa.Table]) -> Matches:
        found = Matches()
        for table in tables:
            for name in table.column_names:
                for leaf, values in _leaves(name, table[name].combine_chunks()):
                    found |= self._column(leaf, values)
        return found

    def _column(self, name: str, values: pa.Array) -> Matches:
        is_value = name == "value" and self._suffix == ".arrow"
        if name in self.columns.users or (is_value and self._file in self.columns.user_values):
            return self.matcher.values(values)
        if name in self.columns.items or (is_value and self._file in self.columns.item_values):
            return Matches()
        if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
            texts = [raw.decode("utf-8", "replace") for raw in values.drop_null().to_pylist() if _is_text(raw)]
        elif pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            texts = values.drop_null().unique().to_pylist()
        else:
            return Matches()
        quotes = self._are_lines and name in _QUOTES
        if not quotes:
            return self.matcher.text("\n".join(texts), self.columns.users)
        found = Matches()
        for text in texts:
            found |= self._quoted(text)
        return found

    def _quoted(self, text: str) -> Matches:
        """A reject's record: the row as JSON, or the line as it was."""
        try:
            row = json.loads(text)
        except ValueError:
            row = text
        if isinstance(row, dict):
            return self._leaf(row, "", short=True)
        return self.matcher.text(text, self.columns.users, short=True)

    def _json(self, text: str) -> Matches:
        try:
            return self._leaf(json.loads(text), "", short=False)
        except (ValueError, RecursionError):
            pass
        found = Matches()
        for line in text.splitlines():
            try:
                found |= self._leaf(json.loads(line), "", short=False)
            except (ValueError, RecursionError):
                found |= self.matcher.text(line, self.columns.users)
        return found

    def _leaf(self, value: Any, key: str, *, short: bool) -> Matches:
        found = Matches()
        waiting = [(key, value)]
        while waiting:
            key, value = waiting.pop()
            if isinstance(value, dict):
                names = self.matcher.text("\n".join(value), self.columns.users)
                found |= Matches(names.certain, frozenset(one for one in names.possible if not is_number(one)))
                waiting.extend(value.items())
            elif isinstance(value, list):
                waiting.extend((key, one) for one in value)
            elif key in self.columns.users:
                found |= self.matcher.value(value)
            elif isinstance(value, int | float) and "user" in key.lower():
                certain = self.matcher.value(value).certain
                found |= Matches(possible=frozenset(one for one in certain if not is_short(one)))
            elif isinstance(value, str) and key not in self.columns.items:
                found |= self.matcher.text(value, self.columns.users, short=short)
        return found

    def _numpy(self, file: IO[bytes]) -> Matches:
        major = np.lib.format.read_magic(file)[0]
        header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
        kind: np.dtype[Any] = header(file)[2]
        if kind.kind in "fcb":
            return Matches()
        if kind.kind not in "iu" or kind.itemsize < 8:
            return self._blocks(file) if kind.kind not in "iu" else Matches()
        found = Matches()
        while block := file.read(_BLOCK_BYTES):
            found |= self.matcher.numbers(np.frombuffer(block, kind, len(block) // kind.itemsize))
        return found

    def _blocks(self, file: IO[bytes]) -> Matches:
        found, tail = Matches(), b""
        while block := file.read(_BLOCK_BYTES):
            block = tail + block
            found |= self.matcher.content(block) if b"\0" in block else self._text(block)
            tail = block[-_OVERLAP_BYTES:] if len(block) > _OVERLAP_BYTES else b""
        return found

    def _text(self, block: bytes) -> Matches:
        text = _PICTURE.sub("", block.decode("utf-8", "replace"))
        found = self.matcher.text(text, self.columns.users)
        plain = html.unescape(text) if "&" in text else text
        return found if plain == text else found | self.matcher.text(plain, self.columns.users)


def _batches(file: IO[bytes]) -> Iterator[pa.RecordBatch]:
    reader = pa.ipc.open_file(pa.PythonFile(file, "r"))
    for place in range(reader.num_record_batches):
        yield reader.get_batch(place)


def _leaves(name: str, values: pa.Array) -> Iterator[tuple[str, pa.Array]]:
    """The plain columns within a nested one. Values of a list have its name, fields of a struct their own."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        yield from _leaves(name, values.dictionary)
    elif pa.types.is_struct(kind):
        for place, field in enumerate(kind):
            yield from _leaves(field.name, values.field(place))
    elif pa.types.is_map(kind):
        yield from _leaves(name, values.keys)
        yield from _leaves(name, values.items)
    elif pa.types.is_nested(kind):
        yield from _leaves(name, values.flatten())
    else:
        yield name, values


def _is_text(raw: bytes) -> bool:
    try:
        return "\0" not in raw.decode()
    except UnicodeDecodeError:
        return False


def _decompressed(file: IO[bytes], head: bytes) -> bytes | None:
    """The content of a compressed file; None where it is none."""
    if head.startswith(_GZIP):
        return gzip.decompress(file.read())
    if head.startswith(_BZ2):
        return bz2.decompress(file.read())
    if head.startswith(_XZ):
        return lzma.decompress(file.read())
    if head.startswith(_ZSTD):
        return pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd").read()  # type: ignore[no-any-return]
    return None
