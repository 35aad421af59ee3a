"""The registry: published versions of the bundle, and which of them is live.

    versions/<version>/   a bundle, its manifest with the gates' verdicts
    unfinished/<version>  a version that is being published and not live yet, or is being removed
    CURRENT               the live version's name
    deltas/               changes of ads, for all versions (index/registry/delta_log.py)

Publishing means: take a name, write to a temporary place, verify by opening and querying, rename, move CURRENT if it
still names the version that the new one was compared with. A reader sees the old version or the new one, never a
mixture, and changes nothing. This holds for a folder and for an object store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from index.registry.bundle import Bundle
from index.registry.delta_log import DELTAS, DeltaLog
from index.registry.storage.sealed_copy import sealed_copy
from index.registry.storage.store import Store, open_store
from index.registry.storage.version_name import can_be_name, moment_of, new_name
from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.manifest import (
    MANIFEST_FILE,
    Manifest,
    parse_manifest,
)

VERSIONS = "versions"
UNFINISHED = "unfinished"
CURRENT = "CURRENT"
# No version's name: whatever is live may be replaced.
ANY_VERSION: Final = "*"
_LOG = logging.getLogger("towerline.registry")
# How often a reader retries when the version it was opening is removed meanwhile.
_OPEN_ATTEMPTS = 5
# How often a change of CURRENT is judged, if CURRENT moves each time before it is made.
_MOVE_ATTEMPTS = 3
# No upload takes this long: what is older and not finished was left by a killed publisher on any machine.
_UPLOAD_SECONDS = 86_400
# Entries of the log stay this long, in case a bundle that is being made needs them.
_LOG_SECONDS = 7 * 86_400

Result = TypeVar("Result")


class MovedError(TowerlineError):
    """CURRENT does not name the version any more that a change was judged against; nothing was changed."""


@dataclass(frozen=True)
class Version:
    """A published version. ``facts`` come from its manifest: what was built, measured and decided."""

    name: str
    live: bool
    created_at: str
    items: int
    fingerprint: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Opened:
    """A bundle from a registry, and its version's name."""

    version: str
    bundle: Bundle


def unless_moved(change: Callable[[], Result]) -> Result:
    """Makes a change that is judged against the live version; judges it again if CURRENT moves in between.

    Raises:
        MovedError: CURRENT moved each time.
    """
    for _ in range(_MOVE_ATTEMPTS - 1):
        with contextlib.suppress(MovedError):
            return change()
    return change()


class Registry:
    """The registry at a path or an fsspec URL; it need not exist yet."""

    def __init__(self, url: str | Path, *, store: Store | None = None) -> None:
        """Opens the registry; nothing is read.

        Raises:
            TowerlineError: the URL's protocol is unknown.
        """
        self._store = open_store(url) if store is None else store
        self._foreign: set[str] = set()

    @property
    def url(self) -> str:
        """The registry's location."""
        return self._store.url

    @property
    def store(self) -> Store:
        """The store that holds the registry."""
        return self._store

    def manifest_of(self, version: str) -> str:
        """Path or URL of a version's manifest."""
        return f"{self.url}/{VERSIONS}/{version}/{MANIFEST_FILE}"

    def current(self) -> str:
        """The live version's name.

        Raises:
            ArtifactError: nothing is live, or CURRENT holds no version's name.
        """
        name = self.current_or_none()
        if name is None:
            raise ArtifactError(
                f"{self.url}/{CURRENT}: missing: nothing has been published here. Run `towerline publish`, "
                "or correct the registry's path."
            )
        return name

    def current_or_none(self) -> str | None:
        """The live version's name; None if nothing is live.

        Raises:
            ArtifactError: CURRENT holds no version's name.
        """
        content = self._store.read_bytes(CURRENT)
        return None if content is None else self._named(content)

    def _named(self, content: bytes) -> str:
        text = content.decode(errors="replace")
        name = text.strip()
        if not can_be_name(name):
            raise ArtifactError(
                f"{self.url}/{CURRENT}: expected the name of a version, got {text[:80]!r}: it was edited or damaged. "
                "Run `towerline versions`, then `towerline rollback VERSION`."
            )
        return name

    def version_names(self) -> list[str]:
        """All complete versions, oldest first. One that is being published or removed is left out, also where its
        writer was killed; so is what is no version: a warning names it."""
        names = self._names()
        unfinished = set(self._store.files(UNFINISHED))
        if unfinished:
            unfinished.discard(self._live_name())
        return [name for name in names if name not in unfinished]

    def _names(self) -> list[str]:
        """All complete versions, oldest first, also those that are being published."""
        found = self._store.names(VERSIONS)
        for name in sorted({name for name in found if moment_of(name) is None} - self._foreign):
            self._foreign.add(name)
            _LOG.warning("%s/%s/%s: not a version: ignored. Move it out of the registry.", self.url, VERSIONS, name)
        return [name for name in found if moment_of(name) is not None and self._store.has_artifact(_place(name))]

    def _live_name(self) -> str | None:
        """The live version's name; None also where CURRENT is damaged."""
        with contextlib.suppress(ArtifactError):
            return self.current_or_none()
        return None

    def versions(self) -> list[Version]:
        """All complete versions, oldest first, with what their manifests say; a warning names a damaged one."""
        live = self._live_name()
        found = [(name, self._manifest(name)) for name in self.version_names()]
        return [_version(name, manifest, name == live) for name, manifest in found if manifest is not None]

    def _manifest(self, name: str) -> Manifest | None:
        """A version's manifest; None if it is damaged, or removed meanwhile."""
        try:
            return parse_manifest(self._store.manifest_bytes(_place(name)), self.manifest_of(name))
        except FileNotFoundError:
            return None
        except ArtifactError as err:
            _LOG.warning("%s", err)
            return None

    def open(self, version: str | None = None, *, verify: bool = True) -> Opened:
        """Opens a version; None opens the live one.

        If retention removes a version while it is being opened, that is not an error: the live one is looked up again.

        Raises:
            ArtifactError: nothing is live, there is no such version, or it is damaged.
        """
        for attempt in range(_OPEN_ATTEMPTS):
            name = self.current() if version is None else version
            try:
                return Opened(name, self._open(name, verify=verify))
            except (ArtifactError, FileNotFoundError):
                moved = version is None and self.current() != name
                if not moved or attempt == _OPEN_ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _open(self, name: str, *, verify: bool) -> Bundle:
        if not can_be_name(name):
            raise ArtifactError(f"{self.url}: expected the name of a version, got {name!r}. Run `towerline versions`.")
        held = self._store.hold(_place(name))
        directory = self._store.fetch(_place(name))
        if not directory.is_dir():
            known = ", ".join(self.version_names()[-5:]) or "none"
            raise ArtifactError(f"{self.url}: expected version {name!r}, found {known}. Run `towerline versions`.")
        try:
            bundle = Bundle.open(directory, verify=verify)
        except ArtifactError:
            if name not in self._store.copies(VERSIONS):
                raise
            _LOG.warning("%s: this machine's copy of %s is damaged: fetched again", self.url, name)
            bundle = Bundle.open(self._store.fetch(_place(name), again=True), verify=verify)
        self._trim_copies(name)
        return dataclasses.replace(bundle, held=held)

    def _trim_copies(self, name: str) -> None:
        """Of the copies on this machine stay the live version's, that of the one before it, and those in use."""
        copies = self._store.copies(VERSIONS)
        if copies:
            live = self._live_name() or name
            self._store.trim_copies(VERSIONS, {name, live, *[older for older in copies if older < live][-1:]})

    def publish(
        self,
        bundle: Path,
        *,
        facts: dict[str, Any] | None = None,
        keep: int | None = None,
        instead_of: str | None = ANY_VERSION,
    ) -> str:
        """Publishes a bundle and makes it live; returns the version's name.

        Args:
            bundle: the staged bundle; it stays where it is.
            facts: added to the bundle's own in the published manifest (verdicts, a reason).
            keep: how many versions to keep; None keeps all.
            instead_of: the version that must still be live, because the bundle was compared with it; None: nothing.

        Raises:
            ArtifactError: the bundle is damaged, does not answer its golden probes correctly, or is older than what the
                log of changes still has.
            MovedError: another version is live.
        """
        with self._store.lock(), sealed_copy(bundle, facts or {}) as staged:
            opened = Bundle.open(staged)
            check_answers(opened)
            DeltaLog(self._store).take_over()
            self._require_entries(opened)
            before = self._store.read_bytes(CURRENT)
            self._require_live(before, instead_of)
            self._settle()
            name = self._claim(opened.manifest)
            try:
                self._store.put(staged, _place(name))
                self._move(before, name)
            except BaseException:
                self._withdraw(name)
                raise
            self._clean(name, keep)
        return name

    def _require_live(self, content: bytes | None, expected: str | None) -> None:
        live = None if content is None else self._named(content)
        if expected not in (ANY_VERSION, live):
            raise self._moved(expected, live)

    def _move(self, before: bytes | None, name: str) -> None:
        """Makes a version live if CURRENT still has the content ``before``."""
        if not self._store.swap(CURRENT, before, f"{name}\n".encode()):
            expected = None if before is None else before.decode(errors="replace").strip()
            raise self._moved(expected, self._live_name())

    def _moved(self, expected: str | None, live: str | None) -> MovedError:
        return MovedError(
            f"{self.url}/{CURRENT}: expected {expected or 'nothing'} to be live still, found {live or 'nothing'}: "
            "somebody else published or rolled back meanwhile. Nothing was changed: run it again."
        )

    def _require_entries(self, bundle: Bundle) -> None:
        """Refuses a bundle whose tables were read before changes that the log does not have any more."""
        read_at, pauses = bundle.delta_sequence, DeltaLog(self._store).pauses()
        if pauses is not None and read_at < pauses.sequence:
            raise ArtifactError(
                f"{self.url}/{DELTAS}: the bundle's tables were read after change {read_at}, but changes up to "
                f"{pauses.sequence} have been removed from the log: those in between would be lost. Run "
                "`towerline features` again (or `towerline refresh`), which reads the tables as they are now."
            )

    def _claim(self, manifest: Manifest) -> str:
        """Takes a name for a version: UTC time and the start of the fingerprint.

        It is later than all existing ones, so that names sort by age, and nobody else has it, on any machine.
        """
        taken = [*self._names(), *self._store.files(UNFINISHED)]
        last = max((moment for name in taken if (moment := moment_of(name)) is not None), default=_EPOCH)
        moment = max(datetime.datetime.now(datetime.UTC), last + datetime.timedelta(seconds=1))
        while True:
            name = new_name(moment, manifest.fingerprint)
            if self._store.create(f"{UNFINISHED}/{name}", uuid.uuid4().hex.encode()):
                return name
            moment += datetime.timedelta(seconds=1)

    def _withdraw(self, name: str) -> None:
        """Removes a version that could not be made live. What cannot be removed now is removed by the next writer."""
        with contextlib.suppress(OSError, ArtifactError):
            if self.current_or_none() != name:
                self._store.remove(_place(name))
                self._store.remove_file(f"{UNFINISHED}/{name}")

    def _clean(self, name: str, keep: int | None) -> None:
        """What is left to do once a version is live. It is live whatever happens here."""
        try:
            self._store.remove_file(f"{UNFINISHED}/{name}")
            if keep is not None:
                self._prune(keep)
        except OSError as err:
            _LOG.warning("%s: %s is live, but old versions could not be removed: %s", self.url, name, err)

    def _settle(self) -> None:
        """Finishes what killed writers left: an unfinished version that is not live never was, and is removed."""
        live = self._live_name()
        unfinished = self._store.files(UNFINISHED)
        if not self._store.locks_all_machines:  # Killed while removing a version, or while uploading it.
            unfinished += [name for name in self._store.names(VERSIONS) if not self._store.has_artifact(_place(name))]
        for name in set(unfinished):
            if name == live:
                self._store.remove_file(f"{UNFINISHED}/{name}")
            elif moment_of(name) is not None and self._is_abandoned(name):
                self._store.remove(_place(name))
                self._store.remove_file(f"{UNFINISHED}/{name}")

    def _is_abandoned(self, name: str) -> bool:
        """Whether nobody is at work on an unfinished version. The caller holds the lock."""
        moment = moment_of(name)
        if self._store.locks_all_machines or moment is None:
            return True
        return (datetime.datetime.now(datetime.UTC) - moment).total_seconds() > _UPLOAD_SECONDS

    def rollback(self, version: str | None = None) -> str:
        """Makes an older version live; returns its name.

        Args:
            version: None is the newest one older than the live one.

        Raises:
            ArtifactError: there is no such version, none older, or it is damaged; the live one stays.
            MovedError: CURRENT moved again and again meanwhile.
        """
        with self._store.lock():
            DeltaLog(self._store).take_over()
            self._settle()
            return unless_moved(lambda: self._roll_back(version))

    def _roll_back(self, version: str | None) -> str:
        before = self._store.read_bytes(CURRENT)
        target = version if version is not None else self._before(self.current())
        bundle = self._open(target, verify=True)
        self._require_whole(target)
        check_answers(bundle)
        self._move(before, target)
        try:
            self._require_whole(target)  # Another machine that removes it looks at CURRENT after it has said so.
        except ArtifactError:
            if before is not None:
                self._store.swap(CURRENT, f"{target}\n".encode(), before)
            raise
        return target

    def _require_whole(self, name: str) -> None:
        """Refuses a version that is not in the store, or not whole: this machine's copy does not say so."""
        if name in self._store.files(UNFINISHED) or not self._store.has_artifact(_place(name)):
            raise ArtifactError(
                f"{self.url}: {name} is being published or removed, or was removed, by another machine. "
                "Run `towerline versions`."
            )

    def _before(self, live: str) -> str:
        older = [name for name in self.version_names() if name < live]
        if not older:
            raise ArtifactError(f"{self.url}: {live} is the oldest version: there is none to roll back to.")
        return older[-1]

    def prune(self, keep: int) -> list[str]:
        """Removes the oldest versions until ``keep`` are left; the live one always stays. Returns the removed names."""
        with self._store.lock():
            return self._prune(keep)

    def _prune(self, keep: int) -> list[str]:
        names, live = self.version_names(), self.current_or_none()
        doomed = [name for name in names[: max(0, len(names) - keep)] if name != live]
        removed = [name for name in doomed if self._remove(name)]
        self._prune_log([name for name in names if name not in removed])
        return removed

    def _remove(self, name: str) -> bool:
        """Removes a version unless it has become live: another machine may roll back to it just now. It looks whether
        the version is unfinished after it has moved CURRENT, and this looks at CURRENT after it has said so."""
        mark = f"{UNFINISHED}/{name}"
        self._store.create(mark, uuid.uuid4().hex.encode())
        gone = self.current_or_none() != name
        if gone:
            self._store.remove(_place(name))
            self._store.remove(f"{DELTAS}/{name}")  # Of earlier releases, which had a log for each version.
        self._store.remove_file(mark)
        return gone

    def _prune_log(self, kept: list[str]) -> None:
        """Removes entries of the log that no version needs."""
        found = [(name, self._manifest(name)) for name in kept]
        needed = [0 if one is None else Bundle(Path(_place(name)), one).delta_sequence for name, one in found]
        oldest = round((time.time() - _LOG_SECONDS) * 1_000_000)
        DeltaLog(self._store).prune(min(needed, default=0), oldest)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def _place(version: str) -> str:
    return f"{VERSIONS}/{version}"


def _version(name: str, manifest: Manifest, live: bool) -> Version:
    items = int(manifest.facts.get("items", 0))
    return Version(name, live, manifest.created_at, items, manifest.fingerprint, manifest.facts)


def check_answers(bundle: Bundle, *, score_error: float = 1e-4) -> None:
    """Checks the golden probes: exact search must give the stored answers, and the searcher must answer at all.

    Raises:
        ArtifactError: an answer differs; the probe is named.
        TowerlineError: the searcher cannot be loaded or fails.
    """
    probes = bundle.probes
    k = probes.neighbors.rows.shape[1]
    found = bundle.exact.search_batch(probes.vectors, k)
    # Compared by score: rows whose scores differ only by rounding may swap places between machines.
    error = np.abs(found.scores - probes.neighbors.scores).max(axis=1, initial=0.0)
    wrong = np.flatnonzero(~(error <= score_error))
    if wrong.size:
        raise ArtifactError(
            f"{bundle.dir}: golden probe {wrong[0]}: expected scores within {score_error:g} of the stored ones, "
            f"found a difference of {error[wrong[0]]:.3g}. Vectors and probes do not belong together: build again."
        )
    for probe, vector in enumerate(probes.vectors):
        rows = bundle.searcher.search(vector, k).rows
        if len(rows) != min(k, bundle.num_items) or rows.min() < 0 or rows.max() >= bundle.num_items:
            raise TowerlineError(
                f"{bundle.dir}: golden probe {probe}: the searcher returned {len(rows)} rows, expected {k}."
            )
