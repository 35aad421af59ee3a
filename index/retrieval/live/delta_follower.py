"""Applies the registry's changes to the version that answers: fresh ads join, dead ones leave, without waiting calls.

Reads the log of the registry, which is the same for every version. Each call asks for the next entry (a microsecond on
a disk). If there is one, its pauses and removals apply to that same call; the rest is laid out by a separate thread and
joins when it is done. An object store is too slow to be asked by a call: there the watcher reads at intervals.

What a call sees is one immutable object, ``_Progress``, replaced as a whole. One thread lays out, and the state only
moves forward, by sequence number: however fast entries are read, the state after n entries is the fold of n entries.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from dataclasses import dataclass

from index.forking import never_free
from index.inference.item_embedder import ItemEmbedder
from index.registry.delta_entry import Entry
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.retrieval.live.kills import as_entry, dead_rows
from index.retrieval.live.layout import with_dead, with_state
from index.retrieval.live.version import ServingVersion
from index.search.growing_vectors import GrowingVectors
from pipelines.contracts.errors import TowerlineError

_LOG = logging.getLogger("towerline.retriever")
# A log that cannot be read is asked again after this time.
_RETRY_SECONDS = 1.0
# So often a call reads the list of entries too: the next one may have been removed, unread, with the time.
_LIST_SECONDS = 600.0


@dataclass(frozen=True, eq=False)
class _Progress:
    """How far a version has come.

    read: number of the last entry read, damaged ones included. state: the entries applied. settled: the version with
    this state. waiting: entries read and not applied. live: what calls get: ``settled`` without the ads that they hide.
    """

    read: int
    state: DeltaState
    settled: ServingVersion
    waiting: tuple[Entry, ...]
    live: ServingVersion


class Unchanging:
    """A bundle that is in no registry: it has no log, so it stays as it was opened."""

    def __init__(self, base: ServingVersion) -> None:
        self.base = base

    def poll(self) -> ServingVersion:
        """The version."""
        return self.base


class DeltaFollower:
    """Keeps one version up to date with the registry's log. Safe to use from many threads."""

    def __init__(self, base: ServingVersion, log: DeltaLog) -> None:
        """Applies everything in the log.

        Args:
            base: the version as it was opened.
            log: of its registry.

        Raises:
            OSError: the log cannot be read.
        """
        self.base = base
        self._log = log
        self._lock = threading.Lock()
        self._embedder = ItemEmbedder(base.bundle)
        self._embedder.warm()
        self._growing = GrowingVectors(base.vectors)
        self._thread: threading.Thread | None = None
        self._look_at = time.monotonic() + _LIST_SECONDS
        self._retry_at = 0.0
        last = log.last()
        state = DeltaState.opened(base.bundle, log, self._embedder)
        settled = with_state(base, base, state, self._growing)
        self._now = _Progress(max(last, state.sequence), state, settled, (), settled)

    def after_fork(self, log: DeltaLog) -> None:
        """In a forked process: renews what a thread of the parent may have held.

        Args:
            log: of the same registry, over a connection of this process.
        """
        self._log = log
        self._lock = threading.Lock()
        self._thread = None
        # Its threads are the parent's.
        never_free(self._embedder)
        self._embedder = ItemEmbedder(self.base.bundle)
        if self._now.waiting:
            self._start()

    def poll(self) -> ServingVersion:
        """Returns the version to answer a call with, without the ads that the log pauses or removes.

        If the log cannot be read, the error is logged and the version continues as it is.
        """
        if self._log.has(self._now.read + 1) or time.monotonic() > self._look_at:
            self._read()
        # Read after the comparison: the thread that read the entry has replaced the version before.
        return self._now.live

    def look(self) -> None:
        """Reads the list of entries and what is new. Not to be used in a call: an object store is slow."""
        try:
            entries, read = self._listed(self._now)
        except (TowerlineError, OSError):
            _LOG.exception("the changes of ads cannot be read; version %s continues without them", self.base.version)
            return
        with self._lock:
            self._look_at = time.monotonic() + _LIST_SECONDS
            self._take_in(entries, read)

    def wait(self) -> None:
        """Returns when everything read so far is laid out."""
        with self._lock:  # Else it may be there and not started yet.
            thread = self._thread
        if thread is not None:
            thread.join()

    def _read(self) -> None:
        """Reads what is new, in a call."""
        with self._lock:
            now, moment = self._now, time.monotonic()
            if moment < self._retry_at:
                return
            due = moment > self._look_at
            try:
                entries, read = self._listed(now) if due else self._next(now.read)
            except (TowerlineError, OSError):
                _LOG.exception("the changes of ads cannot be read; version %s continues", self.base.version)
                self._retry_at = time.monotonic() + _RETRY_SECONDS
                return
            if due:
                self._look_at = moment + _LIST_SECONDS
            self._take_in(entries, read)

    def _next(self, read: int) -> tuple[list[Entry], int]:
        """The entries that follow one another, and the number of the last, damaged ones included."""
        entries: list[Entry] = []
        while self._log.has(read + 1):
            read += 1
            entry = self._log.at(read)
            if entry is not None:
                entries.append(entry)
        return entries, read

    def _listed(self, now: _Progress) -> tuple[list[Entry], int]:
        """All entries after ``now``, and the number of the last. If some were removed unread, their pauses."""
        last = self._log.last()
        if last <= now.read:
            return [], now.read
        entries = self._log.after(now.read)
        pauses = self._log.pauses()
        if pauses is not None and pauses.sequence > now.read:
            old = [entry for entry in entries if entry.sequence <= pauses.sequence]
            if len(old) < pauses.sequence - now.read:
                message = "of the changes %d to %d, version %s has not read all before they were removed; pauses apply"
                _LOG.error(message, now.read + 1, pauses.sequence, self.base.version)
                pausing = as_entry(pauses, now.state, [*now.waiting, *old])
                kept = [entry for entry in old if entry.sequence < pauses.sequence]
                entries = [*kept, pausing, *entries[len(old) :]]
        return entries, max([last, *(entry.sequence for entry in entries)])

    def _take_in(self, entries: list[Entry], read: int) -> None:
        """Takes what was read, hides what it hides, and has it laid out. The caller holds the lock."""
        now = self._now
        fresh = tuple(entry for entry in entries if entry.sequence > now.read)
        if fresh:
            waiting = now.waiting + fresh
            live = with_dead(now.settled, dead_rows(now.state, waiting))
            now = dataclasses.replace(now, waiting=waiting, live=live)
        self._now = dataclasses.replace(now, read=max(now.read, read))
        if now.waiting:
            self._start()

    def _start(self) -> None:
        """Starts the thread that lays out, unless it runs. The caller holds the lock."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._lay_out, name="towerline-deltas", daemon=True)
            self._thread.start()

    def _lay_out(self) -> None:
        try:
            while self._laid_out():
                pass
        except Exception:
            _LOG.exception("changes of ads cannot be laid out; version %s hides what they hide", self.base.version)
            with self._lock:
                self._thread = None

    def _laid_out(self) -> bool:
        """Applies what waits, outside the lock; returns whether more has come meanwhile."""
        before = self._now
        if not before.waiting:
            return not self._finished()
        state = before.state.after(before.waiting, self._embedder)
        settled = with_state(self.base, before.settled, state, self._growing)
        if settled.settings.new_items_share > 0.0:
            settled.new_items(None)
        with self._lock:
            now = self._now
            waiting = tuple(entry for entry in now.waiting if entry.sequence > state.sequence)
            live = with_dead(settled, dead_rows(state, waiting)) if waiting else settled
            self._now = _Progress(now.read, state, settled, waiting, live)
        return not self._finished()

    def _finished(self) -> bool:
        """Whether nothing waits; then this thread ends, and the next entry starts another."""
        with self._lock:
            if self._now.waiting:
                return False
            self._thread = None
            return True
