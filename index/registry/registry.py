"""The registry: published versions of the bundle, and which of them is live.

    versions/<version>/   a bundle, its manifest with the gates' verdicts
    CURRENT               the live version's name
    deltas/               changes of ads, in force on every version (index/registry/delta_log.py)

Publishing means: write to a temporary place, verify by opening and querying, rename, move CURRENT. A reader sees the
old version or the new one, never a mixture. This holds for a folder and for an object store.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from index.registry.bundle import Bundle
from index.registry.delta_log import DELTAS, DeltaLog
from index.registry.store import Store, open_store
from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.manifest import MANIFEST_FILE, Manifest, fingerprint_of, read_manifest, write_durably

VERSIONS = "versions"
CURRENT = "CURRENT"
# How often a reader retries when the version it was opening is removed meanwhile.
_OPEN_ATTEMPTS = 5


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


class Registry:
    """The registry at a path or an fsspec URL; it need not exist yet."""

    def __init__(self, url: str | Path, *, store: Store | None = None) -> None:
        """Opens the registry; nothing is read.

        Raises:
            TowerlineError: the URL's protocol is unknown.
        """
        self._store = open_store(url) if store is None else store

    @property
    def url(self) -> str:
        """The registry's location."""
        return self._store.url

    @property
    def store(self) -> Store:
        """The store that holds the registry."""
        return self._store

    def current(self) -> str:
        """The live version's name.

        Raises:
            ArtifactError: nothing is live.
        """
        name = self.current_or_none()
        if name is None:
            raise ArtifactError(
                f"{self.url}/{CURRENT}: missing: nothing has been published here. Run `towerline publish`, "
                "or correct the registry's path."
            )
        return name

    def current_or_none(self) -> str | None:
        """The live version's name; None if nothing is live."""
        text = self._store.read_text(CURRENT)
        name = None if text is None else text.strip()
        return name or None

    def version_names(self) -> list[str]:
        """All complete versions, oldest first."""
        return self._store.artifacts(VERSIONS)

    def versions(self) -> list[Version]:
        """All complete versions, oldest first, with what their manifests say.

        Raises:
            ArtifactError: a manifest is damaged.
        """
        live = self.current_or_none()
        return [self._version(name, live) for name in self.version_names()]

    def _version(self, name: str, live: str | None) -> Version:
        try:
            manifest = Manifest.model_validate_json(self._store.manifest_text(f"{VERSIONS}/{name}"))
        except ValueError as err:
            raise ArtifactError(f"{self.url}/{VERSIONS}/{name}/{MANIFEST_FILE}: damaged ({err}).") from err
        items = int(manifest.facts.get("items", 0))
        return Version(name, name == live, manifest.created_at, items, manifest.fingerprint, manifest.facts)

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
        directory = self._store.fetch(f"{VERSIONS}/{name}")
        if not directory.is_dir():
            known = ", ".join(self.version_names()[-5:]) or "none"
            raise ArtifactError(f"{self.url}: expected version {name!r}, found {known}. Run `towerline versions`.")
        return Bundle.open(directory, verify=verify)

    def publish(self, bundle: Path, *, facts: dict[str, Any] | None = None, keep: int | None = None) -> str:
        """Publishes a bundle and makes it live; returns the version's name.

        Args:
            bundle: the staged bundle; it stays where it is.
            facts: added to the bundle's own in the published manifest (verdicts, a reason).
            keep: how many versions to keep; None keeps all.

        Raises:
            ArtifactError: the bundle is damaged, or does not answer its golden probes correctly.
        """
        with self._store.lock(), sealed_copy(bundle, facts or {}) as staged:
            DeltaLog(self._store).take_over()
            check_answers(Bundle.open(staged))
            name = self._new_name(read_manifest(staged))
            self._store.put(staged, f"{VERSIONS}/{name}")
            self._store.write_text(CURRENT, name + "\n")
            if keep is not None:
                self._prune(keep)
        return name

    def _new_name(self, manifest: Manifest) -> str:
        """UTC time and the start of the fingerprint; later than all existing versions, so that names sort by age."""
        moment = datetime.datetime.now(datetime.UTC)
        names = self.version_names()
        while names and f"{moment:%Y%m%dT%H%M%SZ}" <= names[-1].split("-")[0]:
            last = datetime.datetime.strptime(names[-1].split("-")[0], "%Y%m%dT%H%M%SZ").replace(tzinfo=datetime.UTC)
            moment = last + datetime.timedelta(seconds=1)
        return f"{moment:%Y%m%dT%H%M%SZ}-{manifest.fingerprint[:8]}"

    def rollback(self, version: str | None = None) -> str:
        """Makes an older version live; returns its name.

        Args:
            version: None is the newest one older than the live one.

        Raises:
            ArtifactError: there is no such version, none older, or it is damaged; the live one stays.
        """
        with self._store.lock():
            DeltaLog(self._store).take_over()
            live = self.current()
            target = version if version is not None else self._before(live)
            check_answers(self._open(target, verify=True))
            self._store.write_text(CURRENT, target + "\n")
        return target

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
        live = self.current_or_none()
        names = self.version_names()
        doomed = [name for name in names[: max(0, len(names) - keep)] if name != live]
        for name in doomed:
            self._store.remove(f"{VERSIONS}/{name}")
            # A version's own log, from before the registry had one.
            for entry in self._store.artifacts(f"{DELTAS}/{name}"):
                self._store.remove(f"{DELTAS}/{name}/{entry}")
        return doomed


@contextlib.contextmanager
def sealed_copy(bundle: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A view of the bundle whose manifest has more facts; the bundle itself stays as it is.

    The files are links to the bundle's own: only the manifest is written. What the fingerprint names (inputs,
    configuration, files) is unchanged. Call it with the registry's lock held: leftovers of killed publishers are
    removed.
    """
    for abandoned in bundle.parent.glob(f".{bundle.name}.publish.*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    manifest = read_manifest(bundle)
    fields = manifest.model_dump()
    fields["facts"] = json.loads(json.dumps({**manifest.facts, **facts}, default=str))
    del fields["seal"]
    sealed = Manifest.model_validate({**fields, "seal": fingerprint_of(fields)})
    with tempfile.TemporaryDirectory(dir=bundle.parent, prefix=f".{bundle.name}.publish.") as folder:
        staged = Path(folder) / "bundle"
        shutil.copytree(bundle, staged, copy_function=_link)
        # Its own manifest is written again; that of an artifact inside it is one of its files.
        (staged / MANIFEST_FILE).unlink()
        write_durably(staged / MANIFEST_FILE, sealed.model_dump_json(indent=2).encode())
        yield staged


def _link(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


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
