"""Blocks: a text file in pieces of about 16 MB that each hold whole records.

The end of a CSV record is a line end outside quotes. What opens and closes quotes is decided as Arrow's parser does: a
quote opens a cell only at the cell's beginning, a doubled one inside is a quote of the text, and all others are text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from pipelines.tables.formats.opening import ByteSource

BLOCK_BYTES = 16 << 20
_QUOTE, _LF, _CR = 34, 10, 13
Places = npt.NDArray[np.int64]
NO_QUOTES: Places = np.zeros(0, np.int64)


def blocks(source: ByteSource, cut: Callable[[bytes], int], size: int = BLOCK_BYTES) -> Iterator[bytes]:
    """Pieces of at most about twice ``size`` bytes, cut where records end; the last ends with the file.

    Args:
        source: UTF-8 bytes.
        cut: length of the whole records that a piece begins with, 0 where it holds no end of a record.
        size: bytes of a piece.

    Raises:
        ValueError: a record is longer than ``size``.
    """
    kept: list[bytes] = []
    held = 0
    while content := source.read(size):
        kept.append(content)
        held += len(content)
        if held < size:
            continue
        piece = b"".join(kept)
        end = cut(piece)
        if end == 0:
            raise ValueError(
                f"a record is longer than {size >> 20} MB: {piece[:80].decode('utf-8', 'backslashreplace')!r}... "
                "Look for a quote that is never closed."
            )
        yield piece[:end]
        kept, held = [piece[end:]], len(piece) - end
    if held:
        yield b"".join(kept)


def line_cut(piece: bytes) -> int:
    """Where the last whole line ends; 0 if none does."""
    end = piece.rfind(b"\n") + 1
    # A carriage return at the very end may be the first half of a line end.
    return end or piece.rfind(b"\r", 0, len(piece) - 1) + 1


def record_cut(piece: bytes, delimiter: bytes) -> int:
    """Where the last whole CSV record ends; 0 if none does."""
    toggles = quotes(piece, delimiter)
    return _last_outside(piece, toggles, b"\n", len(piece)) or _last_outside(piece, toggles, b"\r", len(piece) - 1)


def unclosed(piece: bytes, toggles: Places) -> int:
    """Where the record begins whose quote, the last of ``toggles``, is never closed; the length if all are closed."""
    if len(toggles) % 2 == 0:
        return len(piece)
    quote = int(toggles[-1])
    return max(_last_outside(piece, toggles, sign, quote) for sign in (b"\n", b"\r"))


def _last_outside(piece: bytes, toggles: Places, sign: bytes, before: int) -> int:
    """The place after the last ``sign`` outside quotes."""
    while True:
        place = piece.rfind(sign, 0, before)
        opened = int(np.searchsorted(toggles, place))
        if place < 0 or opened % 2 == 0:
            return place + 1
        before = int(toggles[opened - 1])


def quotes(piece: bytes, delimiter: bytes) -> Places:
    """Places of the quotes that open (even) and close (odd), in a piece that begins outside quotes.

    Args:
        piece: bytes of a CSV file, from the beginning of a record.
        delimiter: one byte.

    Returns:
        ``[n] int64``, ascending; a doubled quote closes and opens.
    """
    if b'"' not in piece:
        return NO_QUOTES
    content = np.frombuffer(piece, np.uint8)
    places = np.flatnonzero(content == _QUOTE)
    opening = places[::2]
    before = np.where(opening > 0, content[opening - 1], _LF)
    fits = (before == delimiter[0]) | (before == _LF) | (before == _CR) | (before == _QUOTE)
    if opening[0] > 0 and before[0] == _QUOTE:
        fits[0] = False
    if fits.all():
        return places
    first = 2 * int(np.flatnonzero(~fits)[0])
    return np.concatenate([places[:first], _toggles(content, places[first:], delimiter[0])])


def _toggles(content: npt.NDArray[np.uint8], places: Places, delimiter: int) -> Places:
    """The same, quote by quote, from a place outside quotes on."""
    before = content[places - 1].tolist()
    starts = (delimiter, _LF, _CR)
    found: list[int] = []
    inside, closed = False, -1
    for place, previous in zip(places.tolist(), before, strict=True):
        if inside:
            inside, closed = False, place
        elif place == 0 or previous in starts or closed == place - 1:
            inside = True
        else:
            continue
        found.append(place)
    return np.array(found, np.int64)
