"""The retriever: finds the ads to show for a raw user record, in a fraction of a millisecond.

Reads a registry or a bundle. Imports neither TensorFlow nor Beam. One object serves many threads.
"""

from __future__ import annotations

import dataclasses
import operator
import time
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from prometheus_client import CollectorRegistry

from index.forking import renew_after_fork
from index.inference.records import Clock
from index.registry.bundle import Bundle
from index.registry.delta_log import DeltaLog
from index.retrieval.answer import NO_RULES, answer, answer_record, search_depth
from index.retrieval.batch import answer_batch
from index.retrieval.begun_batch import answer_begun, searches_at_once
from index.retrieval.candidates import Candidates
from index.retrieval.live.delta_follower import DeltaFollower, Unchanging
from index.retrieval.live.source import Source
from index.retrieval.live.version import ServingVersion
from index.retrieval.live.watcher import Watcher
from index.retrieval.prometheus import RetrieverMetrics
from index.retrieval.refusals import refusing, without_frames
from index.retrieval.sources.call_rules import Rules
from index.search.searcher import Vectors, check_query
from index.settings import RetrieverSettings
from pipelines.contracts.errors import ArtifactError, SchemaError, TowerlineError

_NO_EXCLUSION: tuple[Any, ...] = ()
_ZERO = 0.0


class Retriever:
    """Answers from one version at a time. Safe to call from many threads."""

    def __init__(self, source: Source, live: ServingVersion, metrics: RetrieverMetrics) -> None:
        """Takes an opened version; use ``open`` to make a retriever."""
        self._source = source
        self._follower = self._followed(live)
        self._watcher: Watcher | None = None
        self._live_since = time.monotonic()
        self.metrics = metrics
        metrics.went_live(live.version, time.time(), swapped=False)
        renew_after_fork(self, threads=True)

    @classmethod
    def open(
        cls,
        path: str | Path,
        version: str | None = None,
        *,
        verify: bool = True,
        settings: RetrieverSettings | None = None,
        metrics: CollectorRegistry | None = None,
        clock: Clock = time.time,
    ) -> Retriever:
        """Opens a registry's CURRENT version (or the named one), or a bundle's own directory.

        Args:
            path: a registry (a folder or an fsspec URL) or a bundle's directory.
            version: a version of the registry to use instead of CURRENT.
            verify: compare all checksums before anything is used.
            settings: None takes those the bundle was built with, or the defaults.
            metrics: the Prometheus registry to use; None creates one (``retriever.metrics.registry``).
            clock: seconds since the epoch, for records without a time.

        Raises:
            ArtifactError: there is no such registry, version or bundle, or it is damaged.
        """
        source = Source(path, clock, settings, verify=verify)
        return cls(source, source.open(version), RetrieverMetrics(metrics))

    @property
    def version(self) -> str:
        """The version that answers now."""
        return self._follower.base.version

    @property
    def space(self) -> str:
        """Name of the vector space of the version that answers now."""
        return self._follower.base.space

    @property
    def bundle(self) -> Bundle:
        """The bundle of the version that answers now; fresh ads and removals of deltas are not in it."""
        return self._follower.base.bundle

    @property
    def num_items(self) -> int:
        """Ads that the version that answers now may show."""
        return self._serving().num_alive

    @property
    def age_seconds(self) -> float:
        """How long the version has been live in this process."""
        return time.monotonic() - self._live_since

    @property
    def last_error(self) -> Exception | None:
        """Why the watcher's latest attempt to move failed; None if it did not."""
        return None if self._watcher is None else self._watcher.last_error

    @refusing
    def embed(self, record: Mapping[str, Any]) -> Vectors:
        """Returns the user's vector, ``[dim] float32``.

        Raises:
            SchemaError: the record does not fit the schema.
        """
        live = self._serving()
        return live.tower.embed(live.reader.read(record), record)

    def retrieve(
        self,
        record: Mapping[str, Any],
        k: int = 100,
        *,
        where: str | None = None,
        exclude: Sequence[Any] | AbstractSet[Any] = _NO_EXCLUSION,
        max_per: Mapping[str, int] | None = None,
        value_weight: float = _ZERO,
        diversity: float = _ZERO,
        explain: bool = False,
    ) -> Candidates:
        """Returns the k best candidates for a raw user record.

        The answer for a smaller k is the beginning of the answer for a larger one under the same rules.

        Args:
            record: ``history`` (item ids, oldest first), ``history_time``, ``history_action``, ``time``, ``user_id``,
                and the schema's user features by column. An id may be a number or its text. A time is a datetime, ISO
                text, or a NumPy, pandas or Arrow value; an integer only in the unit that the schema declares.
            k: how many; if fewer may be shown, all of those are returned.
            where: only items that pass; see ``index.rules.where``.
            exclude: ids of items that must not be returned, numbers or their text; unknown ones are ignored.
            max_per: maximum number of items per value of an attribute, ``{"advertiser_id": 2}``.
            value_weight: rank by score + value_weight · log value.
            diversity: 0 ranks by score alone, 1 by difference from the items before alone.
            explain: keep what ``candidates.explanation.of(item_id)`` needs.

        Raises:
            SchemaError: the record or a rule does not fit the schema, or k is below 1.
        """
        started = time.perf_counter()
        try:
            # Compared by identity, not equality: an argument may be of any type here.
            plain = where is None and max_per is None and value_weight is _ZERO and diversity is _ZERO
            if plain and exclude is _NO_EXCLUSION:
                rules = NO_RULES
            else:
                rules = Rules(where, exclude, max_per, value_weight, diversity)
            candidates = answer_record(self._serving(), record, _whole_number(k), rules, explain=explain)
        except TowerlineError as err:
            self.metrics.refused()
            raise without_frames(err)  # noqa: B904
        self.metrics.answered(candidates, time.perf_counter() - started)
        return candidates

    @refusing
    def retrieve_by_id(self, user_id: object, k: int = 100, **rules: Any) -> Candidates:
        """Returns the k best candidates for a user of the bundle's own table.

        A user who is in no table is answered as a new one, and ``known_user`` of the answer is False.

        Args:
            user_id: as in the tables; a number and its text are the same id.
            k: how many.
            rules: as ``retrieve``.

        Raises:
            ArtifactError: the bundle was built without users.
            SchemaError: it is neither a text nor an id of the users' type, or as ``retrieve``.
        """
        record = self._serving().user_record(user_id)
        candidates = self.retrieve({} if record is None else record, k, **rules)
        return dataclasses.replace(candidates, known_user=record is not None)

    @refusing
    def retrieve_batch(self, records: Sequence[Mapping[str, Any]], k: int = 100, **rules: Any) -> list[Candidates]:
        """Returns the k best candidates for each record, as ``retrieve`` does; faster if there are no rules.

        Raises:
            SchemaError: as ``retrieve``; the message names the record.
        """
        live = self._serving()
        k = _whole_number(k)
        depth = search_depth(live, k)
        if rules or (live.settings.blends and not searches_at_once(live)):
            return self._one_by_one(live, records, k, **rules)
        if live.settings.blends or depth is None:
            return answer_begun(live, records, k)
        return answer_batch(live, records, k, depth)

    def _one_by_one(
        self, live: ServingVersion, records: Sequence[Mapping[str, Any]], k: int, **rules: Any
    ) -> list[Candidates]:
        explain = bool(rules.pop("explain", False))
        try:
            read = Rules(**rules)
        except TypeError as err:
            raise SchemaError(f"retrieve_batch: {err}") from err
        answers = []
        for place, record in enumerate(records):
            try:
                answers.append(answer_record(live, record, k, read, explain=explain))
            except SchemaError as err:
                raise SchemaError(f"records[{place}]: {err}") from err
        return answers

    @refusing
    def retrieve_vector(self, vector: npt.ArrayLike, space: str, k: int = 100, **rules: Any) -> Candidates:
        """Returns the k best candidates for a user vector made elsewhere.

        A vector that gives all items the same score, such as zeros, is answered by popularity.

        Args:
            vector: ``[dim] float32``.
            space: the vector space it belongs to: ``towers.json`` of the model that made it.
            k: how many.
            rules: as ``retrieve``.

        Raises:
            SchemaError: another space than this version's, another length, NaN, or as ``retrieve``.
        """
        live = self._serving()
        if space != live.space:
            raise SchemaError(
                f"vector: expected one of space {live.space!r} (version {live.version}), got one of {space!r}. "
                "Embed the user with the model of this version."
            )
        started = time.perf_counter()
        k = _whole_number(k)
        query = check_query(_numbers(vector), live.tower.dim)
        explain = bool(rules.pop("explain", False))
        try:
            read = Rules(**rules)
        except TypeError as err:
            raise SchemaError(f"retrieve_vector: {err}") from err
        says = live.tells(query)
        candidates = answer(
            live, query if says else None, k, read, explain=explain, cold=None if says else "popularity"
        )
        self.metrics.answered(candidates, time.perf_counter() - started)
        return candidates

    @refusing
    def describe(self, candidates: Candidates) -> pa.Table:
        """Returns the catalogue's columns for each candidate, in their order: title, advertiser, attributes.

        Raises:
            ArtifactError: the candidates come from another version than the live one.
        """
        live = self._serving()
        if candidates.version != live.version:
            raise ArtifactError(
                f"candidates of version {candidates.version}, but {live.version} is live. Retrieve again, or open that "
                "version."
            )
        return live.describe(candidates.rows)

    def watch(self, interval_seconds: float = 10.0) -> Watcher:
        """Starts to follow CURRENT: a new version is opened, verified and warmed in the background, then answers.

        Calls continue meanwhile and never wait. A version that cannot be opened is counted and logged, and the live one
        stays; it is tried again after longer and longer waits. On an object store new changes of ads are read at the
        same interval; on a disk every call sees them.
        Returns the watcher; a second call returns the same.

        Raises:
            ArtifactError: the retriever was opened on a bundle, which has no CURRENT.
        """
        if self._watcher is None:
            self._watcher = Watcher(
                self._source, self._move, lambda: self.version, self._look, self.metrics, interval_seconds
            )
            self._watcher.start()
        return self._watcher

    @property
    def delta_sequence(self) -> int:
        """Number of the last change in the registry's log that is laid out in the version that answers; 0 for none."""
        return self._serving().delta_sequence

    def _serving(self) -> ServingVersion:
        """The version to answer a call with, new changes included."""
        return self._follower.poll()

    def _look(self) -> None:
        if isinstance(self._follower, DeltaFollower):
            self._follower.look()

    def _followed(self, live: ServingVersion) -> DeltaFollower | Unchanging:
        """The version with all changes in its registry's log applied."""
        registry = self._source.registry
        return Unchanging(live) if registry is None else DeltaFollower(live, DeltaLog(registry.store))

    def _move(self, live: ServingVersion) -> object:
        """Makes a version live. Returns what the last one consists of."""
        follower, old = self._followed(live), self._follower
        self._follower = follower
        self._live_since = time.monotonic()
        self.metrics.went_live(live.version, time.time(), swapped=True)
        return old

    def after_fork(self) -> None:
        """In a forked process: renews locks and connections, and goes on watching if the parent did."""
        self._source.after_fork()
        if self._source.registry is not None and isinstance(self._follower, DeltaFollower):
            self._follower.after_fork(DeltaLog(self._source.registry.store))
        self.metrics.after_fork()
        if self._watcher is not None:
            self._watcher.after_fork()

    def close(self) -> None:
        """Stops watching. The live version continues to answer."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def __enter__(self) -> Retriever:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _whole_number(k: object) -> int:
    if type(k) is int and k > 0:
        return k
    try:
        number = operator.index(k)  # type: ignore[arg-type]
    except TypeError as err:
        raise SchemaError(f"k: expected a whole number of 1 or more, got {k!r:.80}") from err
    if isinstance(k, bool) or number < 1:
        raise SchemaError(f"k: expected 1 or more, got {k!r:.80}. Ask for at least one item.")
    return number


def _numbers(vector: npt.ArrayLike) -> Vectors:
    try:
        # Numbers beyond float32 become infinite, and are refused as such.
        with np.errstate(over="ignore"):
            return np.asarray(vector, np.float32)
    except (TypeError, ValueError, OverflowError) as err:
        raise SchemaError(f"vector: expected numbers, got {vector!r:.80}") from err
