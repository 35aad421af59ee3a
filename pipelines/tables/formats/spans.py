"""Spans: a plain text file cut at ends of records, so that several workers read it with the row numbers of one.

The cuts are found in one pass that parses nothing: only quotes and line ends are looked at.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.tables.formats.blocks import BLOCK_BYTES, NO_QUOTES, Places, blocks, line_cut, quotes, record_cut

_LF, _CR = 10, 13
_THREADS = 4
# In place of the number of records of a piece that ends inside quotes.
_INSIDE = -1


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
    found = _spans_at_feeds(handle, start, size, delimiter, block_bytes)
    if found is not None:
        return found
    source = SpanSource(handle, Span(start, size, 0))
    pieces = blocks(source, lambda piece: record_cut(piece, delimiter), block_bytes)
    return list(_spans(((len(piece), records(piece, quotes(piece, delimiter))) for piece in pieces), start))


def _spans_at_feeds(handle: Any, start: int, size: int, delimiter: bytes, block_bytes: int) -> list[Span] | None:
    """Spans that end at line feeds, several looked at at once; None if a line feed turns out to be within quotes.

    Each piece is looked at as if it began outside quotes. The first does, and where one also ends outside quotes, so
    does the next.
    """

    def count(piece: bytes) -> tuple[int, int]:
        toggles = quotes(piece, delimiter)
        return len(piece), records(piece, toggles) if len(toggles) % 2 == 0 else _INSIDE

    found: list[tuple[int, int]] = []
    source = SpanSource(handle, Span(start, size, 0))
    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            pieces = blocks(source, lambda piece: piece.rfind(b"\n") + 1, block_bytes)
            # No more pieces are in memory than are looked at.
            while held := list(itertools.islice(pieces, _THREADS)):
                counted = list(pool.map(count, held))
                if any(number == _INSIDE for _, number in counted):
                    return None
                found += counted
    except ValueError:  # A piece without a line feed.
        return None
    return list(_spans(found, start))


def line_spans(handle: Any, start: int, size: int, block_bytes: int = BLOCK_BYTES) -> list[Span]:
    """Cuts a file of one record per line; see ``csv_spans``."""
    pieces = blocks(SpanSource(handle, Span(start, size, 0)), line_cut, block_bytes)
    return list(_spans(((len(piece), records(piece, NO_QUOTES)) for piece in pieces), start))


def _spans(counted: Iterable[tuple[int, int]], start: int) -> Iterator[Span]:
    """Spans of consecutive pieces, given the bytes and the records of each."""
    row = 0
    for length, number in counted:
        yield Span(start, start + length, row)
        start += length
        row += number


def records(block: bytes, toggles: Places) -> int:
    """Number of records in a block: of line ends outside quotes, apart from empty lines."""
    if has_feeds_alone(block) and block[:1] not in (b"", b"\n", b"\r"):
        feeds = np.flatnonzero(np.frombuffer(block, np.uint8) == _LF)
        least = 2 if b"\r" in block else 1
        if len(feeds) < 2 or int(np.diff(feeds).min()) > least:  # No line is empty.
            inside = int(np.count_nonzero(np.searchsorted(toggles, feeds) % 2)) if len(toggles) else 0
            return len(feeds) - inside + (not block.endswith(b"\n"))
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


def has_feeds_alone(block: bytes) -> bool:
    """Whether no line ends with a carriage return alone."""
    return b"\r" not in block or block.count(b"\r") == block.count(b"\r\n")


def line_ends(content: bytes) -> int:
    """Number of lines, by line feeds or, without any, by carriage returns."""
    sign = b"\n" if b"\n" in content else b"\r"
    return content.count(sign) + int(not content.endswith(sign))
