"""What is served to the panel: a retriever over a bundle answers every user, and its search is compared with exact
search.

Reads a bundle through ``Retriever``, with the bundle's own ``[retriever]`` settings. Pauses and other changes of the
registry's log are not applied: they come and go between nights.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from index.registry.bundle import Bundle
from index.retrieval.candidates import TOWERS
from index.retrieval.retriever import Retriever
from index.search.searcher import Rows, Vectors
from pipelines.contracts.arrays import Bools, Float64
from pipelines.contracts.vocabulary import ValueTable

K = 100
# Each call is timed this many times and the fastest counts: other load on the machine only adds.
_TIMINGS = 3
# Users are timed in turn until this much time is spent, but at least this many: exact search over a large catalogue
# takes about the same time for each user.
_TIMING_SECONDS = 5.0
_LEAST_TIMED = 30


@dataclass(frozen=True)
class Answers:
    """The served answers of a bundle.

    item_ids: the bundle's catalogue in row order. rows: ``[panel, 100] int32`` in it, best first, -1 after the end of
    an answer. from_towers: ``[panel, 100] bool``, the place went to the towers' candidates. searched: ``[panel] bool``,
    the user has a vector; the others are answered by popularity. by_profile: number of users known by features alone.
    """

    item_ids: pa.Array
    rows: Rows
    from_towers: Bools
    searched: Bools
    by_profile: int

    @classmethod
    def of(cls, retriever: Retriever, records: list[dict[str, Any]]) -> Answers:
        """Asks a retriever for all records.

        Raises:
            SchemaError: it cannot read a record.
        """
        rows = np.full((len(records), K), -1, np.int32)
        from_towers = np.zeros(rows.shape, np.bool_)
        # A tree's search for many at once finds a little else than single calls, which are what is served.
        exact = retriever.bundle.spec.engine == "exact"
        answers = retriever.retrieve_batch(records, K) if exact else [retriever.retrieve(one, K) for one in records]
        for place, answer in enumerate(answers):
            rows[place, : len(answer)] = answer.rows
            from_towers[place, : len(answer)] = answer.sources == TOWERS
        cold = np.array([answer.cold_start or "" for answer in answers], np.str_)
        item_ids = retriever.bundle.vocabulary.item_ids
        return cls(item_ids, rows, from_towers, cold != "popularity", int((cold == "profile").sum()))

    @classmethod
    def from_bundle(cls, bundle: Bundle, records: list[dict[str, Any]]) -> Answers:
        """Asks a retriever over a bundle, and closes it.

        Raises:
            ArtifactError: a part of the bundle cannot be read.
            SchemaError: its towers cannot read a record.
        """
        return cls.of(Retriever.open(bundle.dir, verify=False), records)

    def rows_in(self, catalogue: ValueTable) -> Rows:
        """``[panel, 100] int32``: the answers as rows of another catalogue, -1 for an item that it does not have."""
        places = np.append(catalogue.places(self.item_ids), np.int32(-1))
        rows: Rows = places[self.rows]
        return rows

    @property
    def users(self) -> str:
        """The number of users in words, with those that no search answers or whose features alone are known."""
        by_popularity = int((~self.searched).sum())
        parts = [(self.by_profile, "by profile"), (by_popularity, "by popularity")]
        cold = ", ".join(f"{count:,} {how}" for count, how in parts if count)
        return f"{len(self.rows):,} users" + (f" ({cold})" if cold else "")


@dataclass(frozen=True)
class Served:
    """A retriever, the panel's records, and its answers."""

    retriever: Retriever
    records: list[dict[str, Any]]
    answers: Answers

    @classmethod
    def of(cls, bundle: Bundle, records: list[dict[str, Any]]) -> Served:
        """Opens a retriever over a bundle and asks it.

        Raises:
            ArtifactError: a part of the bundle cannot be read.
            SchemaError: its towers cannot read a record.
        """
        retriever = Retriever.open(bundle.dir, verify=False)
        return cls(retriever, records, Answers.of(retriever, records))

    @property
    def bundle(self) -> Bundle:
        """The bundle that answers."""
        return self.retriever.bundle

    @functools.cached_property
    def vectors(self) -> Vectors:
        """``[searched, dim] float32``: vectors of the users whom a search answers."""
        places = np.flatnonzero(self.answers.searched)
        vectors = [self.retriever.embed(self.records[place]) for place in places]
        return np.stack(vectors) if vectors else np.zeros((0, self.bundle.dim), np.float32)

    @functools.cached_property
    def exact(self) -> Rows:
        """``[searched, k] int32``: the best rows for these users by exact search; k is at most 100."""
        return self.bundle.exact.search_batch(self.vectors, min(K, self.bundle.num_items)).rows

    @functools.cached_property
    def found(self) -> Rows:
        """``[searched, k] int32``: the same by the bundle's searcher, -1 where it finds fewer."""
        if self.bundle.spec.engine == "exact":
            return self.exact
        rows = np.full_like(self.exact, -1)
        for place, vector in enumerate(self.vectors):
            found = self.bundle.searcher.search(vector, rows.shape[1]).rows
            rows[place, : len(found)] = found
        return rows

    @functools.cached_property
    def with_exact_search(self) -> Rows:
        """``[panel, 100] int32``, in no order: the served answers with the towers' places filled by exact search."""
        rows = self.answers.rows.copy()
        for place, best in zip(np.flatnonzero(self.answers.searched), self.exact, strict=True):
            towers = self.answers.from_towers[place]
            others = rows[place][~towers]
            free = best[np.isin(best, others, invert=True)]
            rows[place, towers] = free[: int(towers.sum())]
        return rows

    @functools.cached_property
    def latencies(self) -> Float64:
        """``[timed] float64`` microseconds of whole served calls, each the fastest of three, of as many users as the
        time allows."""
        taken: list[float] = []
        started = time.perf_counter()
        for record in self.records:
            if len(taken) >= _LEAST_TIMED and time.perf_counter() - started > _TIMING_SECONDS:
                break
            taken.append(_fastest_us(functools.partial(self.retriever.retrieve, record, K)))
        return np.array(taken, np.float64)


def _fastest_us(call: Callable[[], object]) -> float:
    times = []
    for _ in range(_TIMINGS):
        start = time.perf_counter_ns()
        call()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1e3
