"""Spans: a plain text file cut at ends of records, so that several workers read it with the row numbers of one.

The cuts are those of ``blocks``, found in one pass that parses nothing: only quotes and line ends are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.tables.formats.blocks import BLOCK_BYTES, NO_QUOTES, Places, blocks, line_cut, quotes, record_cut

_LF, _CR = 10, 13


@dataclass(frozen=True)
class Span:
    """Bytes ``[start, end)`` of a file: whole records, the first of which is row ``first_row``."""

    start: int
    end: int
    first_row: int


@dataclass
class SpanSource:
    """The bytes of a span."""

    handle: Any
    span: Span
    _place: int = -1

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""
        if self._place < 0:
            self.handle.seek(self.span.start)
            self._place = self.span.start
        content: bytes = self.handle.read(min(size, self.span.end - self._place))
        self._place += len(content)
        return content


def csv_spans(handle: Any, start: int, size: int, delimiter: bytes, block_bytes: int = BLOCK_BYTES) -> list[Span]:
    """Cuts a CSV file into spans of about ``span_bytes``.

    Args:
        handle: the file.
        start: where its first record begins, after the header.
        size: bytes of the file.
        delimiter: one byte.
        block_bytes: bytes of a span, about.

    Raises:
        ValueError: a record is too long.
    """
    return list(
        _spans(
            blocks(SpanSource(handle, Span(start, size, 0)), lambda piece: record_cut(piece, delimiter), block_bytes),
            start,
            lambda block: records(block, quotes(block, delimiter)),
        )
    )


def line_spans(handle: Any, start: int, size: int, block_bytes: int = BLOCK_BYTES) -> list[Span]:
    """Cuts a file of one record per line; see ``csv_spans``."""
    source = SpanSource(handle, Span(start, size, 0))
    return list(_spans(blocks(source, line_cut, block_bytes), start, lambda block: records(block, NO_QUOTES)))


def _spans(found: Iterator[bytes], start: int, count: Callable[[bytes], int]) -> Iterator[Span]:
    row = 0
    for block in found:
        yield Span(start, start + len(block), row)
        start += len(block)
        row += count(block)


def records(block: bytes, toggles: Places) -> int:
    """Number of records in a block: of line ends outside quotes, apart from empty lines."""
    if len(toggles) == 0 and _is_simple(block):
        return block.count(b"\n") + (not block.endswith(b"\n"))
    if not block:
        return 0
    content = np.frombuffer(block, np.uint8)
    following = np.append(content[1:], 0)
    ends = np.flatnonzero((content == _LF) | ((content == _CR) & (following != _LF)))
    ends = ends[np.searchsorted(toggles, ends) % 2 == 0]
    if len(ends) == 0 or ends[-1] != len(content) - 1:
        ends = np.append(ends, len(content))
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts
    returns = (lengths == 1) & (content[np.minimum(starts, len(content) - 1)] == _CR)
    return int(((lengths > 0) & ~returns).sum())


def _is_simple(block: bytes) -> bool:
    """Whether all lines end alike and none is empty."""
    if not block or block[:1] in b"\r\n":
        return False
    if b"\r" not in block:
        return b"\n\n" not in block
    feeds = block.count(b"\n")
    return feeds == block.count(b"\r") == block.count(b"\r\n") and b"\r\n\r\n" not in block
