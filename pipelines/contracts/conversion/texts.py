"""Cells of text, looked at byte by byte for a whole column at once."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools, Int32
from pipelines.contracts.conversion.plain import bools, without

# Cells that mean "no value" in every type but string; compared after trimming, in any case.
MISSING_TEXTS = ("", "na", "n/a", "#n/a", "nan", "null", "none", r"\n")
# Few bytes are looked up one by one, others counted by a running sum over all.
_SPARSE = 4
_TRIED = 64
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
        if np.count_nonzero(chosen) * _SPARSE < len(self.starts):
            owners = np.searchsorted(self.ends, np.flatnonzero(chosen), side="right")
            return np.bincount(owners, minlength=len(self.starts)).astype(np.int32)
        sums = np.zeros(len(self.data) + 1, np.int32)
        np.cumsum(chosen, out=sums[1:])
        return sums[self.ends] - sums[self.starts]

    def contain(self, characters: str) -> Bools:
        """``[cells] bool``: whether a cell has any of these ASCII characters."""
        wanted = np.zeros(256, bool)
        wanted[np.frombuffer(characters.encode(), np.uint8)] = True
        return self.count(wanted[self.data]) > 0

    def at(self, place: int | Int32) -> npt.NDArray[np.uint8]:
        """``[cells] uint8`` byte of each cell at a place from its start; 0 where the cell is shorter."""
        if not len(self.data):
            return np.zeros(len(self.starts), np.uint8)
        found = self.data[np.minimum(self.starts + place, len(self.data) - 1)]
        return np.where(place < self.lengths, found, 0).astype(np.uint8)

    @functools.cached_property
    def digits(self) -> Int32:
        """``[cells] int32`` number of decimal digits of ASCII in each cell."""
        return self.lengths - self.count((self.data - np.uint8(ord("0"))) > 9)

    def are(self, character: str) -> Bools:
        """``[bytes] bool``: the bytes that are this ASCII character."""
        return np.asarray(self.data == np.uint8(ord(character)))


def cast_all(texts: pa.Array, target: pa.DataType) -> pa.Array | None:
    """The texts read by Arrow's own parser; None if it cannot read one of them.

    Arrow writes an error for each such text, which is slow: a few are tried first.
    """
    try:
        texts.slice(0, _TRIED).cast(target)
        return texts.cast(target)
    except pa.ArrowInvalid:
        return None


def trimmed(texts: pa.Array) -> pa.Array:
    """The texts without blanks around them."""
    visible = (Cells(texts).data - np.uint8(33)) < 94
    return texts if visible.all() else pc.utf8_trim_whitespace(texts)


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
