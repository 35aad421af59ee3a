"""Cells of text, looked at byte by byte for a whole column at once."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools, Int32
from pipelines.contracts.conversion.plain import bools, without

# Cells that mean "no value" in every type but string; compared after trimming, in any case.
MISSING_TEXTS = ("", "na", "n/a", "#n/a", "nan", "null", "none", r"\n")
_LONGEST = max(len(text) for text in MISSING_TEXTS)


class Cells:
    """The bytes of a text column.

    ``data`` (``[bytes] uint8``) are those of all cells, cell ``i`` is ``data[starts[i]:ends[i]]``.
    """

    def __init__(self, texts: pa.Array) -> None:
        _, offsets, data = texts.buffers()
        count = len(texts)
        places = np.zeros(1, np.int32)
        if offsets is not None and offsets.size:
            places = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + count + 1]
        first, last = int(places[0]), int(places[-1])
        self.data: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        if data is not None and last > first:
            self.data = np.frombuffer(data, np.uint8)[first:last]
        self.starts: Int32 = places[:-1] - first
        self.ends: Int32 = places[1:] - first
        self.lengths: Int32 = self.ends - self.starts

    def count(self, chosen: Bools) -> Int32:
        """``[cells] int32`` number of ``chosen`` (``[bytes] bool``) bytes in each cell."""
        sums = np.zeros(len(self.data) + 1, np.int32)
        np.cumsum(chosen, out=sums[1:])
        return sums[self.ends] - sums[self.starts]

    def at(self, place: int | Int32) -> npt.NDArray[np.uint8]:
        """``[cells] uint8`` byte of each cell at a place from its start; 0 where the cell is shorter."""
        if not len(self.data):
            return np.zeros(len(self.starts), np.uint8)
        found = self.data[np.minimum(self.starts + place, len(self.data) - 1)]
        return np.where(place < self.lengths, found, 0).astype(np.uint8)

    @property
    def digits(self) -> Bools:
        """``[bytes] bool``: the decimal digits of ASCII."""
        return (self.data - np.uint8(ord("0"))) < 10

    def are(self, character: str) -> Bools:
        """``[bytes] bool``: the bytes that are this ASCII character."""
        return np.asarray(self.data == np.uint8(ord(character)))


def trimmed(texts: pa.Array) -> pa.Array:
    """The texts without blanks around them."""
    data = Cells(texts).data
    has_blanks = len(data) and bool(((data <= 32) | (data >= 127)).any())
    return pc.utf8_trim_whitespace(texts) if has_blanks else texts


def missing(texts: pa.Array) -> Bools:
    """``[n] bool``: the trimmed texts that mean "no value", nulls among them."""
    lengths = Cells(texts).lengths
    found = np.asarray(texts.is_null(), dtype=bool)
    short = np.flatnonzero((lengths <= _LONGEST) & ~found)
    if len(short):
        lower = pc.ascii_lower(texts.take(pa.array(short)))
        found[short] = bools(pc.is_in(lower, value_set=pa.array(MISSING_TEXTS)))
    return found


def present(texts: pa.Array) -> pa.Array:
    """The texts trimmed, with nulls where they mean "no value"."""
    texts = trimmed(texts)
    return without(texts, missing(texts))
