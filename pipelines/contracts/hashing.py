"""Stable hashes of ids: the same on every machine, in every process and for any batch.

XXH64 with seed 0 of an id: of the eight little-endian bytes of an int64, of the UTF-8 bytes of a string.
Python's own hash differs by process and Polars' by version, so neither is used.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

UInt64 = npt.NDArray[np.uint64]

# The constants of XXH64 (Collet, xxHash specification 0.1.1, section "XXH64 algorithm description").
_PRIME_1 = np.uint64(0x9E3779B185EBCA87)
_PRIME_2 = np.uint64(0xC2B2AE3D27D4EB4F)
_PRIME_3 = np.uint64(0x165667B19E3779F9)
_PRIME_4 = np.uint64(0x85EBCA77C2B2AE63)
_PRIME_5 = np.uint64(0x27D4EB2F165667C5)


def _rotate(values: UInt64, bits: int) -> UInt64:
    return (values << np.uint64(bits)) | (values >> np.uint64(64 - bits))


def hash_integers(values: npt.NDArray[np.int64]) -> UInt64:
    """``[n] int64`` -> ``[n] uint64``: XXH64 of each value's eight bytes, vectorised."""
    mixed = values.view(np.uint64) * _PRIME_2
    mixed = _rotate(mixed, 31) * _PRIME_1
    mixed ^= _PRIME_5 + np.uint64(8)
    mixed = _rotate(mixed, 27) * _PRIME_1 + _PRIME_4
    mixed ^= mixed >> np.uint64(33)
    mixed *= _PRIME_2
    mixed ^= mixed >> np.uint64(29)
    mixed *= _PRIME_3
    mixed ^= mixed >> np.uint64(32)
    return mixed


def hash_ids(ids: pa.Array) -> UInt64:
    """``[n]`` ids, int64 or string without nulls -> ``[n] uint64``."""
    if pa.types.is_int64(ids.type):
        return hash_integers(np.ascontiguousarray(np.asarray(ids, np.int64)))
    encoded = ids.dictionary_encode()
    digests = [xxhash.xxh64_intdigest(text) for text in encoded.dictionary.to_pylist()]
    if not digests:
        return np.zeros(len(ids), np.uint64)
    hashes: UInt64 = np.asarray(digests, np.uint64)[np.asarray(encoded.indices)]
    return hashes


def partition_of(ids: pa.Array, partitions: int) -> npt.NDArray[np.uint16]:
    """``[n] uint16`` partition of each id; ``partitions`` is at most 65,536."""
    return (hash_ids(ids) % np.uint64(partitions)).astype(np.uint16)


def fractions_of(users: pa.Array, items: pa.Array, seed: int) -> npt.NDArray[np.float64]:
    """``[n]`` ids of both sides -> ``[n] float64`` in [0, 1): the same for the same pair and seed."""
    mixed = hash_ids(users) ^ _rotate(hash_ids(items), 32) ^ np.uint64(seed & 0xFFFFFFFFFFFFFFFF)
    return np.asarray((hash_integers(mixed.view(np.int64)) >> np.uint64(11)) * 2.0**-53)


def as_sorted(ids: pa.Array) -> npt.NDArray[np.int64]:
    """``[n] int64`` places that put the ids in ascending order."""
    return np.asarray(pc.array_sort_indices(ids), np.int64)
