"""The panel: a fixed set of users with held-out events, for whom a new bundle and the live one are both queried.

Users without a history are left out: they are answered by popularity or as new users, which says nothing about the
tree. Reads features and bundles. Answers are rows of the new bundle's catalogue, so that two
versions can be compared.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index.inference.user_records import UserRecords
from index.registry.bundle import Bundle
from index.search.searcher import Rows, Vectors
from pipelines.contracts.arrays import Int64
from pipelines.contracts.schema import SPLITS
from pipelines.sequences.held_out import held_out_events

# The panel's own seed: the same users every night, different from the tuner's.
_SEED = 1789
K = 100
TEST = SPLITS.index("test")
# Each search is timed this many times and the fastest counts: other load on the machine only adds.
_TIMINGS = 3
# Users are timed in turn until this much time is spent, but at least this many: exact search over a large catalogue
# takes about the same time for each user.
_TIMING_SECONDS = 5.0
_LEAST_TIMED = 100


@dataclass(frozen=True)
class Panel:
    """users: ``[panel] int64`` places among all users. records: theirs, as of the start of the test part.

    without_history: number of users with held-out events who are left out because they had no event before.
    """

    users: Int64
    records: list[dict[str, Any]]
    without_history: int

    @classmethod
    def of(cls, users: UserRecords, bundle: Bundle, size: int) -> Panel:
        """Chooses users with a history by a stable hash: first those with held-out events, then others.

        Args:
            users: of the features the bundle was built from.
            bundle: names schema and catalogue.
            size: number of users; fewer if there are not enough.
        """
        truth = held_out_events(users.events, TEST, bundle.schema.action_weights)
        held_out = np.flatnonzero(truth.counts).astype(np.int64)
        judged = np.intersect1d(held_out, users.with_history)
        chosen = users.sample(size, _SEED, judged)
        if len(chosen) < size:
            others = np.setdiff1d(users.with_history, chosen)
            chosen = np.concatenate([chosen, users.sample(size - len(chosen), _SEED, others)])
        records = users.records(chosen, bundle.schema, bundle.vocabulary.item_ids)
        return cls(chosen, records, len(held_out) - len(judged))


@dataclass(frozen=True)
class Answers:
    """A bundle's answers for the panel.

    vectors: ``[panel, dim] float32``. found, exact: ``[panel, k] int32`` rows of its own catalogue, by its searcher and
    by exact search. latencies_us: ``[timed] float64``, one search per user that was timed, the fastest of three.
    """

    vectors: Vectors
    found: Rows
    exact: Rows
    latencies_us: npt.NDArray[np.float64]

    @classmethod
    def of(cls, bundle: Bundle, panel: Panel) -> Answers:
        """Queries the bundle.

        Raises:
            SchemaError: the bundle's tower cannot read the records.
        """
        vectors = bundle.record_embedder().vectors(panel.records)
        k = min(K, bundle.num_items)
        exact = bundle.exact.search_batch(vectors, k).rows
        found = exact if bundle.spec.engine == "exact" else bundle.searcher.search_batch(vectors, k).rows
        return cls(vectors, found, exact, _latencies(bundle, vectors, k))


def _latencies(bundle: Bundle, vectors: Vectors, k: int) -> npt.NDArray[np.float64]:
    latencies: list[float] = []
    started = time.perf_counter()
    for vector in vectors:
        if len(latencies) >= _LEAST_TIMED and time.perf_counter() - started > _TIMING_SECONDS:
            break
        latencies.append(min(_search_us(bundle, vector, k) for _ in range(_TIMINGS)))
    return np.array(latencies, np.float64)


def _search_us(bundle: Bundle, vector: Vectors, k: int) -> float:
    start = time.perf_counter_ns()
    bundle.searcher.search(vector, k)
    return (time.perf_counter_ns() - start) / 1e3


def in_catalogue_of(bundle: Bundle, rows: Rows, other: Bundle) -> Rows:
    """``rows`` of ``other``'s catalogue as rows of ``bundle``'s; -1 if it does not have the item."""
    places = bundle.vocabulary.item_rows(other.vocabulary.item_ids)
    return np.where(rows < 0, -1, places[rows]).astype(np.int32)
