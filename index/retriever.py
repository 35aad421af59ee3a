"""The retriever: a raw user record to the ads that may be shown, in a fraction of a millisecond.

Reads a registry or a bundle; writes nothing. Imports neither TensorFlow nor Beam. One object serves many threads.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.bundle import Bundle
from index.candidates import POPULARITY, TOWERS, Candidates, ColdStart, Plan, SourceLabels
from index.registry import Registry
from index.request import Clock, Request
from index.searcher import Neighbors, Vectors, check_query
from index.serving import ServingVersion
from pipelines.errors import ArtifactError, SchemaError
from pipelines.manifest import MANIFEST_FILE

# How often opening starts anew when the version being read is removed under its hands.
_OPEN_ATTEMPTS = 5


class Retriever:
    """Answers from one version at a time. Safe to call from many threads."""

    def __init__(self, live: ServingVersion, clock: Clock = time.time) -> None:
        """Takes an opened version; ``open`` is how one is made."""
        self._live = live
        self._clock = clock
        self._labels = SourceLabels()

    @classmethod
    def open(
        cls, path: str | Path, version: str | None = None, *, verify: bool = True, clock: Clock = time.time
    ) -> Retriever:
        """Opens a registry's CURRENT version (or the named one), or a bundle's own directory.

        Args:
            path: a registry (a folder or an fsspec URL) or a bundle's directory.
            version: of a registry: another one than CURRENT.
            verify: compare all checksums before anything is used.
            clock: seconds since the epoch, for records that do not tell their time.

        Raises:
            ArtifactError: there is no such registry, version or bundle, or it is damaged.
        """
        return cls(open_version(path, version, clock, verify=verify), clock)

    @property
    def version(self) -> str:
        """The version that answers now."""
        return self._live.version

    @property
    def space(self) -> str:
        """Names the vector space of the version that answers now."""
        return self._live.space

    def embed(self, record: Mapping[str, Any]) -> Vectors:
        """Returns the user's vector, ``[dim] float32``.

        Raises:
            SchemaError: the record does not fit the schema.
        """
        live = self._live
        return live.tower.embed(live.reader.read(record), record)

    def retrieve(self, record: Mapping[str, Any], k: int = 100) -> Candidates:
        """Returns the k best candidates for a raw user record.

        Raises:
            SchemaError: the record does not fit the schema, or k is below 1.
        """
        live = self._live
        k = _whole_number(k)
        request = live.reader.read(record)
        cold = cold_start(live, request, record)
        if cold == "popularity":
            return self._popular(live, k, request)
        found = live.searcher.search(live.tower.embed(request, record), k)
        return self._answer(live, found, k, cold, request.unknown)

    def retrieve_by_id(self, user_id: object, k: int = 100) -> Candidates:
        """Returns the k best candidates for a user of the bundle's own table; an unknown one starts cold.

        Raises:
            ArtifactError: the bundle was built without users.
            SchemaError: k is below 1.
        """
        return self.retrieve(self._live.user_record(user_id), k)

    def retrieve_batch(self, records: Sequence[Mapping[str, Any]], k: int = 100) -> list[Candidates]:
        """Returns the k best candidates for each record, as ``retrieve`` does, at a higher rate.

        Raises:
            SchemaError: as ``retrieve``; the message says which record.
        """
        live = self._live
        k = _whole_number(k)
        requests, colds, vectors = [], [], []
        for place, record in enumerate(records):
            try:
                request = live.reader.read(record)
                cold = cold_start(live, request, record)
                vectors.append(
                    np.zeros(live.tower.dim, np.float32) if cold == "popularity" else live.tower.embed(request, record)
                )
            except SchemaError as err:
                raise SchemaError(f"records[{place}]: {err}") from err
            requests.append(request)
            colds.append(cold)
        if not vectors:
            return []
        found = live.searcher.search_batch(np.stack(vectors), k)
        return [
            self._popular(live, k, request)
            if cold == "popularity"
            else self._answer(live, _unpadded(rows, scores), k, cold, request.unknown)
            for request, cold, rows, scores in zip(requests, colds, found.rows, found.scores, strict=True)
        ]

    def retrieve_vector(self, vector: npt.ArrayLike, space: str, k: int = 100) -> Candidates:
        """Returns the k best candidates for a user vector made elsewhere.

        Args:
            vector: ``[dim] float32``.
            space: the vector space it belongs to: ``towers.json`` of the model that made it.
            k: how many.

        Raises:
            SchemaError: another space than this version's, another length, NaN, or k below 1.
        """
        live = self._live
        if space != live.space:
            raise SchemaError(
                f"vector: expected one of space {live.space!r} (version {live.version}), got one of {space!r}. "
                "Embed the user with the model of this version."
            )
        k = _whole_number(k)
        found = live.searcher.search(check_query(_numbers(vector), live.tower.dim), k)
        return self._answer(live, found, k, None, 0)

    def _answer(
        self, live: ServingVersion, found: Neighbors, k: int, cold: ColdStart | None, unknown: int
    ) -> Candidates:
        n = len(found.rows)
        plan = Plan("search", live.num_items, n, 1, n < k)
        sources = self._labels.of(TOWERS, n)
        return Candidates(
            live.items.of(found.rows),
            found.scores,
            found.rows,
            sources,
            live.version,
            live.space,
            k,
            plan,
            cold,
            unknown,
        )

    def _popular(self, live: ServingVersion, k: int, request: Request) -> Candidates:
        rows = live.popularity_order[:k]
        n = len(rows)
        plan = Plan("popularity", live.num_items, n, 1, n < k)
        sources = self._labels.of(POPULARITY, n)
        scores = live.popularity_scores[rows]
        ids = live.items.of(rows)
        return Candidates(ids, scores, rows, sources, live.version, live.space, k, plan, "popularity", request.unknown)


def open_version(path: str | Path, version: str | None, clock: Clock, *, verify: bool) -> ServingVersion:
    """Opens a registry's version, or a bundle's own directory. See ``Retriever.open``."""
    directory = Path(path)
    if (directory / MANIFEST_FILE).is_file():
        if version is not None:
            raise ArtifactError(f"{path}: a bundle, not a registry: it has no version {version!r}. Leave version out.")
        bundle = Bundle.open(directory, verify=verify)
        return ServingVersion.open(bundle, bundle.manifest.fingerprint, clock)
    registry = Registry(path)
    for attempt in range(_OPEN_ATTEMPTS):
        opened = registry.open(version, verify=verify)
        try:
            return ServingVersion.open(opened.bundle, opened.version, clock)
        except (ArtifactError, OSError):
            # Retention may remove a version while it is read; then there is a newer one.
            moved = version is None and registry.current() != opened.version
            if not moved or attempt == _OPEN_ATTEMPTS - 1:
                raise
    raise AssertionError


def cold_start(live: ServingVersion, request: Request, record: Mapping[str, Any]) -> ColdStart | None:
    """Whether anything is known of the user: None where a history or a learned id is."""
    if len(request.rows):
        return None
    known_id, known_any = live.tower.knows(request, record)
    if known_id:
        return None
    return "profile" if known_any else "popularity"


def _unpadded(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> Neighbors:
    n = int(np.count_nonzero(rows >= 0))
    return Neighbors(rows[:n], scores[:n])


def _whole_number(k: object) -> int:
    try:
        number = operator.index(k)  # type: ignore[arg-type]
    except TypeError as err:
        raise SchemaError(f"k: expected a whole number of 1 or more, got {k!r:.80}") from err
    if isinstance(k, bool) or number < 1:
        raise SchemaError(f"k: expected 1 or more, got {k!r}. Ask for at least one item.")
    return number


def _numbers(vector: npt.ArrayLike) -> Vectors:
    try:
        return np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError) as err:
        raise SchemaError(f"vector: expected numbers, got {vector!r:.80}") from err
