"""Distinct values in bounded memory: adaptive sampling (Flajolet 1990, "On adaptive sampling").

A sketch keeps the 64-bit hashes of all distinct values below a threshold. The threshold halves whenever there are too
many, so a count is exact up to the bound and an estimate with an error of about 1 / sqrt(bound) above it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import INT64
from pipelines.contracts.hashing import hash_ids, hash_integers

UInt64 = npt.NDArray[np.uint64]
BOUND = 1 << 21


def hashes_of(values: pa.Array) -> UInt64:
    """``[n]`` plain values without nulls -> ``[n] uint64``: an integer and its text have the same hash.

    ``5007``, ``"5007"`` and ``"5007.0"`` are one value, ``"05007"`` is another.
    """
    if pa.types.is_floating(values.type):
        numbers = np.asarray(values.cast(pa.float64()), np.float64) + 0.0
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**53)
        as_integers = np.where(whole, numbers, 0).astype(np.int64)
        return np.where(whole, hash_integers(as_integers), hash_integers(numbers.view(np.int64)))
    converted = convert(values, INT64)
    plain = ~(converted.wrong | converted.null)
    hashes = hash_ids(converted.values.fill_null(0))
    if not plain.all():
        other = pa.array(~plain)
        hashes[~plain] = hash_ids(values.filter(other).cast(pa.string()))
    return hashes


class Sketch:
    """The distinct values of a column, as hashes."""

    def __init__(self, bound: int = BOUND) -> None:
        self._bound = bound
        self._level = 0
        self._kept = np.zeros(0, np.uint64)
        self._waiting: list[UInt64] = []
        self._waiting_size = 0

    def add(self, hashes: UInt64) -> None:
        """Adds ``[n] uint64`` hashes; any may be there already."""
        fresh = hashes[self._below(hashes)]
        self._waiting.append(fresh)
        self._waiting_size += len(fresh)
        if self._waiting_size > self._bound:
            self._merge()

    @property
    def hashes(self) -> UInt64:
        """The kept hashes, sorted: all of them where the sketch is exact."""
        self._merge()
        return self._kept

    @property
    def exact(self) -> bool:
        """Whether every distinct value is kept."""
        self._merge()
        return self._level == 0

    @property
    def count(self) -> int:
        """Number of distinct values, an estimate where the sketch is not exact."""
        self._merge()
        return len(self._kept) << self._level

    def contains(self, hashes: UInt64) -> Bools:
        """``[n] bool``: the value is one of this column, as far as its hash is below the threshold."""
        kept = self.hashes
        if len(kept) == 0:
            return np.zeros(len(hashes), bool)
        places = np.minimum(np.searchsorted(kept, hashes), len(kept) - 1)
        return np.asarray(kept[places] == hashes, dtype=bool)

    def judged(self, hashes: UInt64) -> Bools:
        """``[n] bool``: ``contains`` can tell, because the hash is below the threshold."""
        self._merge()
        return self._below(hashes)

    def _below(self, hashes: UInt64) -> Bools:
        if self._level == 0:
            return np.ones(len(hashes), bool)
        return np.asarray((hashes >> np.uint64(64 - self._level)) == 0, dtype=bool)

    def _merge(self) -> None:
        if not self._waiting:
            return
        self._kept = np.unique(np.concatenate([self._kept, *self._waiting]))
        self._waiting, self._waiting_size = [], 0
        while len(self._kept) > self._bound:
            self._level += 1
            self._kept = self._kept[self._below(self._kept)]
