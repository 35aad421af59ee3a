"""The registry's log of changes: upserts, removals, pauses and resumes of ads, in the order in which they were made.

    deltas/00000042.delta        one entry: the rows of one change feed
    deltas/00000040.paused       the ads paused up to that entry, from when older entries were removed; and a copy

There is one log for the registry, not one per version. A bundle records the sequence number of the last entry before
its tables were read; whoever opens it applies what came after. A pause is in force on every version, whenever it was
made. An entry is one file, created only if no other writer has taken its number: two machines that append at once get
two numbers. A damaged entry stays where it is, is named in the log and skipped.

A registry of the old format has the live version's own log instead. Its entries are the first ones of this log; the
first writer writes them into it, the last one first, so that a writer that is killed leaves entry 1 for the next.
"""

from __future__ import annotations

import itertools
import logging
import time
import uuid
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from index.registry.delta_entry import (
    CHANGE_COLUMN,
    CHANGES,
    ENTRY_SUFFIX,
    FORMAT_VERSION,
    ID_COLUMN,
    LOG_SUFFIXES,
    PAUSED_SUFFIXES,
    SAID_COLUMN,
    Entry,
    Pauses,
    packed,
    unpacked,
)
from index.registry.legacy_deltas import LegacyDeltas
from index.registry.storage.store import Store
from pipelines.contracts.errors import ArtifactError

__all__ = ["CHANGES", "CHANGE_COLUMN", "DELTAS", "ID_COLUMN", "SAID_COLUMN", "DeltaLog", "Entry", "Pauses"]

DELTAS = "deltas"
_DIGITS = 8
_LOG = logging.getLogger("towerline.registry")


class DeltaLog:
    """The log of a registry. Reading is safe at any time; ``append`` is safe from several machines at once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._legacy = LegacyDeltas(store)

    def has(self, sequence: int) -> bool | None:
        """Whether an entry is there, for about a microsecond; None on an object store, where it would be a request."""
        return self._store.has_file(_name(sequence))

    def last(self) -> int:
        """Number of the last entry ever written; 0 if there is none."""
        names = self._store.files(DELTAS)
        return max([*_numbers(names), 0 if _began(names) else self._legacy.last()])

    def at(self, sequence: int) -> Entry | None:
        """One entry; None if there is none or it is damaged, which is logged. Lists nothing."""
        return self._read(sequence)

    def after(self, sequence: int) -> list[Entry]:
        """The readable entries with larger numbers, in order. A damaged one is logged and left out."""
        names = self._store.files(DELTAS)
        numbers = set(_numbers(names, ENTRY_SUFFIX))
        entries = [self._read(number) for number in sorted(numbers) if number > sequence]
        older = [] if _began(names) else self._legacy.entries()
        found = [*(entry for entry in older if entry.sequence not in numbers), *entries]
        return sorted((entry for entry in found if entry and entry.sequence > sequence), key=lambda one: one.sequence)

    def take_over(self) -> None:
        """Writes the entries of a registry of the old format into the log, if that was not done to its end before.
        Every writer calls it before it changes anything else: CURRENT says which old entries count."""
        if _began(self._store.files(DELTAS)):
            return
        for entry in reversed(self._legacy.entries()):
            self._store.create(_name(entry.sequence), _content(entry.rows, entry.moment_us))

    def pauses(self) -> Pauses | None:
        """What the removed entries add up to; None if none was removed."""
        numbers = set(_numbers(self._store.files(DELTAS), *PAUSED_SUFFIXES))
        for number, suffix in itertools.product(sorted(numbers, reverse=True), PAUSED_SUFFIXES):
            name = _name(number, suffix)
            content = self._store.read_bytes(name)
            if content is None:
                continue
            try:
                table, _ = unpacked(content)
            except ArtifactError as err:
                _LOG.error("%s/%s: %s", self._store.url, name, err)
                continue
            return Pauses(number, table[ID_COLUMN].combine_chunks())
        return None

    def append(self, rows: pa.Table) -> Entry:
        """Writes one more entry (rows as in ``Entry``), whatever other writers do meanwhile."""
        names = self._store.files(DELTAS)
        if not _began(names):
            self.take_over()
            names = self._store.files(DELTAS)
        sequence = max(_numbers(names), default=0)
        while True:  # A number that another writer has taken meanwhile is passed.
            sequence, moment_us = sequence + 1, time.time_ns() // 1000
            if self._store.create(_name(sequence), _content(rows, moment_us)):
                return Entry(sequence, moment_us, rows)

    def prune(self, needed_after: int, written_before_us: int) -> list[int]:
        """Removes entries that nobody needs; the pauses that they left in force are kept.

        Args:
            needed_after: entries with larger numbers are needed by a version that is kept.
            written_before_us: entries written later stay too: a version that is being made may need them.

        Returns:
            The numbers of the entries removed.
        """
        self.take_over()
        old = self.pauses()
        paused = set() if old is None else set(old.item_ids.to_pylist())
        doomed: list[Entry] = []
        for entry in self.after(0 if old is None else old.sequence):
            if entry.sequence > needed_after or entry.moment_us >= written_before_us:
                break
            doomed.append(entry)
        if not doomed:
            return []
        for entry in doomed:
            paused = (paused - set(entry.ids("resume").to_pylist())) | set(entry.ids("pause").to_pylist())
        last = doomed[-1].sequence
        for suffix in PAUSED_SUFFIXES:
            self._store.create(_name(last, suffix), packed(_ids_table(paused), {"format_version": FORMAT_VERSION}))
        gone = [number for number in _numbers(self._store.files(DELTAS), ENTRY_SUFFIX) if number <= last]
        for number in gone:
            self._store.remove_file(_name(number))
        for number in _numbers(self._store.files(DELTAS), *PAUSED_SUFFIXES):
            for suffix in PAUSED_SUFFIXES if number < last else ():
                self._store.remove_file(_name(number, suffix))
        return sorted(gone)

    def _read(self, number: int) -> Entry | None:
        name = _name(number)
        content = self._store.read_bytes(name)
        if content is None:  # Removed meanwhile.
            return None
        try:
            rows, facts = unpacked(content)
            return Entry(number, int(facts["moment_us"]), rows)
        except (ArtifactError, KeyError) as err:
            _LOG.error("%s/%s: damaged, and left out (%s). Apply its changes again.", self._store.url, name, err)
            return None


def _content(rows: pa.Table, moment_us: int) -> bytes:
    facts = {"moment_us": moment_us, "format_version": FORMAT_VERSION}
    # No two entries are the same: a writer whose put was repeated, since its answer was lost, knows its own.
    return packed(rows, {**facts, "writer": uuid.uuid4().hex})


def _ids_table(item_ids: set[Any]) -> pa.Table:
    """Ids in order: integers, or texts where ids have become texts meanwhile."""
    numbers = all(isinstance(item_id, int) for item_id in item_ids)
    ids = sorted(item_ids) if numbers else sorted(map(str, item_ids))
    return pa.table({ID_COLUMN: pa.array(ids, pa.int64() if numbers else pa.string())})


def _began(names: Iterable[str]) -> bool:
    """Whether the log has its first entry, or had it: then nothing of an older format counts."""
    listed = list(names)
    return 1 in _numbers(listed, ENTRY_SUFFIX) or bool(_numbers(listed, *PAUSED_SUFFIXES))


def _name(sequence: int, suffix: str = ENTRY_SUFFIX) -> str:
    return f"{DELTAS}/{sequence:0{_DIGITS}d}{suffix}"


def _numbers(names: Iterable[str], *endings: str) -> list[int]:
    """Numbers of the files with one of these endings (default: any of a log's); other files are not the log's."""
    found = [name.partition(".") for name in names]
    wanted = endings or LOG_SUFFIXES
    return [int(stem) for stem, dot, ending in found if dot + ending in wanted and stem.isdecimal()]
