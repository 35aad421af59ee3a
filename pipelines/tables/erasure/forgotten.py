"""The users who were forgotten, kept without their ids: salted keyed digests, so that every later run can drop them.

Kept as one small Arrow file. Whoever has the file can ask of an id whether it is on the list, and cannot read an id
from it. BLAKE2b (Aumasson et al. 2013) keyed with a random salt decides; some bits of a salted XXH64 decide first,
vectorised, for almost all rows of a table.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from pipelines.contracts.arrays import Bools, Int64
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import read_arrow, write_arrow
from pipelines.contracts.hashing import UInt64, hash_ids, hash_integers

# One row per user and salt. A run has one salt; lists of two artifacts that are joined keep theirs. ``text_bits`` and
# ``number_bits`` are of the id as string and as int64 (null where it is none), so that the type of ids may change.
_COLUMNS = pa.schema(
    [
        ("salt", pa.binary()),
        ("digest", pa.binary()),
        ("text_bits", pa.uint32()),
        ("number_bits", pa.uint32()),
    ]
)
_SALT_BYTES = 16
_DIGEST_BYTES = 16
# Of a million users in a table one reaches the digests by chance for each user on the list.
_PREFILTER_BITS = 20
# 2^64 over the golden ratio (Knuth, TAOCP 3, section 6.4): spreads what the salt changes over the highest bits.
_ODD = np.uint64(0x9E3779B97F4A7C15)
# Pieces of a text times those of the longest id: about a tenth of a second.
_MAX_TRIES = 100_000
_PIECE = re.compile(r"\w+|\W")
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_WORDS_KEY, _SEAL_KEY = b"words", b"seal"


@dataclass(frozen=True)
class Forgotten:
    """Users who are to be dropped from every table.

    Args:
        table: in the columns of the file, unique, in the order of salt and digest.
        words: pieces (words, or single other characters) of the longest id.
    """

    table: pa.Table
    words: int = 0

    @classmethod
    def empty(cls) -> Forgotten:
        """An empty list."""
        return cls(_COLUMNS.empty_table())

    @classmethod
    def read(cls, path: Path) -> Forgotten:
        """Reads a file of ``write``.

        Raises:
            ArtifactError: it cannot be read, or its bytes are not those that were written.
        """
        try:
            table = read_arrow(path)
            metadata = table.schema.metadata or {}
            words, seal = int(metadata[_WORDS_KEY]), metadata[_SEAL_KEY].decode()
            table = table.select(_COLUMNS.names).cast(_COLUMNS)
        except (OSError, pa.ArrowException, KeyError, ValueError) as err:
            raise ArtifactError(f"{path}: the list of forgotten users cannot be read: {err}.") from err
        if seal != _seal(table, words):
            raise ArtifactError(f"{path}: the list of forgotten users is damaged: its content does not fit its seal.")
        return cls(table, words)

    def write(self, path: Path) -> None:
        """Writes the list as an Arrow file, whole or not at all."""
        metadata = {_WORDS_KEY: str(self.words).encode(), _SEAL_KEY: _seal(self.table, self.words).encode()}
        write_arrow(self.table.replace_schema_metadata(metadata).combine_chunks(), path)

    def __len__(self) -> int:
        return len(self.table)

    def places(self, ids: pa.Array) -> Int64:
        """``[n]`` ids, int64 or string -> ``[n] int64`` place of each on the list, -1 where it is not there or null."""
        if len(self) == 0 or len(ids) == 0:
            return np.full(len(ids), -1, np.int64)
        encoded = ids.dictionary_encode()
        bits = "number_bits" if pa.types.is_int64(ids.type) else "text_bits"
        found = self._places(hash_ids(encoded.dictionary), encoded.dictionary, bits)
        places: Int64 = np.append(found, -1)[np.asarray(encoded.indices.fill_null(len(found)))]
        return places

    def holds(self, ids: pa.Array) -> Bools:
        """``[n]`` ids -> ``[n] bool``: whether each is on the list."""
        return np.asarray(self.places(ids) >= 0)

    def _places(self, hashes: UInt64, ids: pa.Array, bits: str) -> Int64:
        found = np.full(len(hashes), -1, np.int64)
        for group in self._groups:
            for row in np.flatnonzero(group.filters[bits][_bits(hashes, group.salt)]):
                found[row] = max(found[row], group.place(str(ids[int(row)].as_py())))
        return found

    def holds_text(self, text: str) -> bool:
        """Whether an id on the list occurs in a text between characters that are no part of a word.

        Leading zeros of whole numbers do not count: 005007 holds the id 5007. A text too long to be searched counts as
        one that holds an id.
        """
        pieces = _PIECE.findall(text) if len(self) else []
        if len(pieces) * self.words > _MAX_TRIES:
            return True  # Not worth the time: what is not searched is not kept.
        return any(
            self._has("".join(pieces[start:end]))
            for start in range(len(pieces))
            for end in range(start + 1, min(start + self.words, len(pieces)) + 1)
        )

    def _has(self, text: str) -> bool:
        plain = text.lstrip("0") if text.isascii() and text.isdigit() else text
        return any(group.place(one) >= 0 for group in self._groups for one in {text, plain or "0"})

    def covers(self, other: Forgotten) -> bool:
        """Whether everyone on the other list is on this one, by the digests: under the same salts."""
        return other._keys <= self._keys

    def joined(self, other: Forgotten) -> Forgotten:
        """Everyone on either list."""
        if self.covers(other):
            return self
        if other.covers(self):
            return other
        new = [key not in self._keys for key in _keys(other.table)]
        return Forgotten(_ordered([self.table, other.table.filter(pa.array(new))]), max(self.words, other.words))

    def with_users(self, ids: pa.Array) -> Forgotten:
        """The list and these users (``[n]`` ids, int64 or string, no nulls), whom it may already have."""
        new = ids.filter(pa.array(~self.holds(ids)))
        if len(new) == 0:
            return self
        salt = self._groups[0].salt if self._groups else secrets.token_bytes(_SALT_BYTES)
        texts = [str(one) for one in dict.fromkeys(new.to_pylist())]
        words = max(len(_PIECE.findall(text)) for text in texts)
        return Forgotten(_ordered([self.table, _rows(texts, salt)]), max(self.words, words))

    def without_users(self, ids: pa.Array) -> Forgotten:
        """The list without these users."""
        gone = {(group.salt, group.digest(str(one))) for group in self._groups for one in ids.to_pylist()}
        if not gone & self._keys:
            return self
        return Forgotten(self.table.filter(pa.array([key not in gone for key in _keys(self.table)])), self.words)

    @functools.cached_property
    def _keys(self) -> frozenset[tuple[bytes, bytes]]:
        return frozenset(_keys(self.table))

    @functools.cached_property
    def _groups(self) -> list[_Group]:
        salts = self.table["salt"].to_pylist()
        return [_Group.of(self.table, salt, salts) for salt in dict.fromkeys(salts)]


@dataclass(frozen=True)
class _Group:
    """The users under one salt. ``filters``: by name of the bits, ``[2 ** _PREFILTER_BITS] bool`` of those set."""

    salt: bytes
    digest_to_place: dict[bytes, int]
    filters: dict[str, Bools]

    @classmethod
    def of(cls, table: pa.Table, salt: bytes, salts: Sequence[bytes]) -> _Group:
        places = np.flatnonzero([one == salt for one in salts])
        own = table.take(pa.array(places))
        filters = {}
        for name in ("text_bits", "number_bits"):
            filters[name] = np.zeros(1 << _PREFILTER_BITS, bool)
            filters[name][np.asarray(own[name].drop_null(), np.int64)] = True
        return cls(salt, dict(zip(own["digest"].to_pylist(), places.tolist(), strict=True)), filters)

    def digest(self, text: str) -> bytes:
        return _digest(text, self.salt)

    def place(self, text: str) -> int:
        return self.digest_to_place.get(self.digest(text), -1)


def _digest(text: str, salt: bytes) -> bytes:
    return hashlib.blake2b(text.encode(), key=salt, digest_size=_DIGEST_BYTES).digest()


def _bits(hashes: UInt64, salt: bytes) -> npt.NDArray[np.int64]:
    """``[n] int64``: some bits of each hash (``[n] uint64``), which another salt has differently."""
    salted = hashes ^ np.uint64(int.from_bytes(salt[:8], "little"))
    return ((salted * _ODD) >> np.uint64(64 - _PREFILTER_BITS)).astype(np.int64)


def _rows(texts: Sequence[str], salt: bytes) -> pa.Table:
    is_number = [_INTEGER.fullmatch(text) is not None and -(2**63) <= int(text) < 2**63 for text in texts]
    numbers = np.array([int(text) if whole else 0 for text, whole in zip(texts, is_number, strict=True)], np.int64)
    of_numbers, of_texts = (_bits(hashes, salt) for hashes in (hash_integers(numbers), hash_ids(pa.array(texts))))
    return pa.table(
        {
            "salt": [salt] * len(texts),
            "digest": [_digest(text, salt) for text in texts],
            "text_bits": of_texts.astype(np.uint32),
            "number_bits": pa.array(of_numbers.astype(np.uint32), mask=~np.array(is_number)),
        },
        schema=_COLUMNS,
    )


def _ordered(tables: Sequence[pa.Table]) -> pa.Table:
    """In the order of salt and digest, which says nothing of the order in which users were forgotten."""
    return pa.concat_tables(tables).sort_by([("salt", "ascending"), ("digest", "ascending")])


def _keys(table: pa.Table) -> list[tuple[bytes, bytes]]:
    return list(zip(table["salt"].to_pylist(), table["digest"].to_pylist(), strict=True))


def _seal(table: pa.Table, words: int) -> str:
    digest = xxhash.xxh3_128(str(words))
    for row in table.to_pylist():
        digest.update(repr(list(row.values())))
    return digest.hexdigest()
