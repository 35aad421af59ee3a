"""Opening: the bytes of a file, decompressed, and those of a text file as UTF-8 without a byte order mark."""

from __future__ import annotations

import codecs
import contextlib
import lzma
from collections.abc import Iterator
from typing import Any, Protocol, cast

import fsspec
import pyarrow as pa

from pipelines.contracts.errors import SchemaError
from pipelines.tables.files import SourceFile

UNREADABLE = (OSError, pa.ArrowException, EOFError, ValueError, lzma.LZMAError)
_UTF8_MARK = b"\xef\xbb\xbf"
_READ_BYTES = 1 << 20
_ERRORS = "towerline-marked"
# First bytes of what is no plain text, and how to say so.
_SIGNATURES = {
    b"\x1f\x8b": "gzip (name it .gz)",
    b"\x28\xb5\x2f\xfd": "Zstandard (name it .zst)",
    b"BZh": "bzip2 (name it .bz2)",
    b"\xfd7zXZ\x00": "xz (name it .xz)",
    b"PK\x03\x04": "a ZIP or Excel file (export it as CSV)",
    b"PAR1": 'Parquet (give format = "parquet")',
}


class ByteSource(Protocol):
    """What blocks are read from."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


@contextlib.contextmanager
def readable(url: str, name: str) -> Iterator[None]:
    """Turns what readers raise into one SchemaError that names the file."""
    try:
        yield
    except UNREADABLE as err:
        text = " ".join(str(err).split())
        raise SchemaError(
            f"tables.{name}: {url} cannot be read: {text:.300}. Correct or remove the file, or give the right format."
        ) from err


@contextlib.contextmanager
def opened(file: SourceFile) -> Iterator[Any]:
    """The file's bytes as they are: a local one by its path's own handle, others through fsspec."""
    if file.is_local:
        with pa.OSFile(file.url, "rb") as handle:
            yield handle
    else:
        with fsspec.open(file.url, "rb") as handle:
            yield handle


@contextlib.contextmanager
def unpacked(file: SourceFile) -> Iterator[ByteSource]:
    """The file's bytes, decompressed."""
    with opened(file) as raw, contextlib.ExitStack() as stack:
        source: Any = raw
        if file.compression == "xz":
            source = stack.enter_context(lzma.LZMAFile(raw))
        elif file.compression is not None and file.bytes:
            packed = raw if file.is_local else pa.PythonFile(raw, "r")
            source = stack.enter_context(pa.CompressedInputStream(packed, file.compression))
        yield source


@contextlib.contextmanager
def opened_text(file: SourceFile, encoding: str) -> Iterator[ByteSource]:
    """The text of a file as UTF-8.

    Bytes that are no text in ``encoding`` come out as bytes that are no UTF-8 either, so that they are found by cell.

    Raises:
        ValueError: the file is of another kind, as its first bytes show.
    """
    with unpacked(file) as source:
        yield _Utf8(source, encoding)


def is_utf8(encoding: str) -> bool:
    """Whether an encoding's name is one of UTF-8's."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def utf8_mark(handle: Any) -> int:
    """Length of the byte order mark that a UTF-8 file begins with."""
    return len(_UTF8_MARK) if handle.read(len(_UTF8_MARK)) == _UTF8_MARK else 0


class _Utf8:
    """A source of UTF-8 bytes."""

    def __init__(self, source: ByteSource, encoding: str) -> None:
        self._source = source
        head = source.read(_READ_BYTES)
        _require_text(head, encoding)
        plain = is_utf8(encoding)
        self._decoder = None if plain else codecs.getincrementaldecoder(encoding)(errors=_ERRORS)
        self._head = (head if plain else self._decoded(head)).removeprefix(_UTF8_MARK)
        self._ended = not head

    def _decoded(self, content: bytes) -> bytes:
        assert self._decoder is not None
        return self._decoder.decode(content, final=not content).encode("utf-8", "surrogatepass")

    def read(self, size: int, /) -> bytes:
        """About ``size`` bytes; none at the end."""
        if self._head:
            head, self._head = self._head, b""
            return head
        while not self._ended:
            content = self._source.read(size)
            self._ended = not content
            if self._decoder is not None:
                content = self._decoded(content)
            if content:
                return content
        return b""


def _require_text(head: bytes, encoding: str) -> None:
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            raise ValueError(f"expected text, got {kind}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and "16" not in encoding and "32" not in encoding:
        raise ValueError(f'expected {encoding}, got UTF-16 by its first bytes: give encoding = "utf-16"')


def _mark(err: UnicodeError) -> tuple[str, int]:
    """Each byte that is no text becomes a lone surrogate, which is no UTF-8."""
    if not isinstance(err, UnicodeDecodeError):
        raise err
    return "".join(chr(0xDC00 + byte) for byte in err.object[err.start : err.end]), err.end


codecs.register_error(_ERRORS, cast(Any, _mark))
