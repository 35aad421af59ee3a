"""What changed since a version was published: new, changed, removed and paused ads, applied in order.

Reads ``deltas/<version>/<sequence>/`` of a registry: a write-ahead log in which each entry is an artifact,
complete or absent. Replaying the entries in order over the bundle gives the same state everywhere. Needs neither
TensorFlow nor ScaNN: fresh items are in a side segment that is searched exactly, so ScaNN's own upsert and delete are
never used.

Rows below the bundle's number of items are the bundle's; above are the fresh items in the order they came. A row never
moves: an item that changes gets a new row, and its old one is dead.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from index.registry.bundle import Bundle
from index.registry.store import Store
from index.search.exact import load_vectors
from index.search.searcher import (
    Rows,
    Vectors,
)
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import Artifact, open_artifact
from pipelines.contracts.vocabulary import Vocabulary

KIND = "delta"
FORMAT_VERSION = 1
DELTAS = "deltas"
RAW_FILE = "raw.parquet"
ROWS_FILE = "rows.parquet"
IDS_FILE = "ids.parquet"
VECTORS_FILE = "vectors.npy"
CHANGES = ("upsert", "remove", "pause", "resume")
_DIGITS = 8
# Fresh items that exact search scores in about the time of one ScaNN search (64 numbers each).
_MOST_FRESH = 5_000
# Share of the bundle's rows that may be dead before a search wastes a tenth of its neighbors on them.
_MOST_DEAD = 0.1


@dataclass(frozen=True)
class Delta:
    """One entry of the log.

    sequence: 1, 2, 3 ... within a version. rows: the fresh items' ``item_id`` and attributes, as in the bundle's items.
    vectors: ``[fresh, dim] float32``, their vectors. removed, paused, resumed: item ids.
    """

    sequence: int
    rows: pa.Table
    vectors: Vectors
    removed: pa.Array
    paused: pa.Array
    resumed: pa.Array

    @classmethod
    def read(cls, artifact: Artifact) -> Delta:
        """Reads an open entry.

        Raises:
            ArtifactError: a file cannot be read.
        """
        try:
            rows = pq.read_table(artifact.dir / ROWS_FILE)
            ids = pq.read_table(artifact.dir / IDS_FILE)
        except (OSError, pa.ArrowException) as err:
            raise ArtifactError(f"{artifact.dir}: the delta cannot be read ({err}). Apply it again.") from err
        change = ids["change"].to_numpy(zero_copy_only=False)
        item_ids = ids["item_id"].combine_chunks()
        of = {name: item_ids.filter(pa.array(change == name)) for name in CHANGES}
        sequence = int(artifact.manifest.facts["sequence"])
        vectors = np.array(load_vectors(artifact.dir / VECTORS_FILE))
        return cls(sequence, rows, vectors, of["remove"], of["pause"], of["resume"])


class DeltaLog:
    """The log of one version in a registry."""

    def __init__(self, store: Store, version: str) -> None:
        self._store = store
        self._name = f"{DELTAS}/{version}"

    @property
    def name(self) -> str:
        """The log's directory in the registry."""
        return self._name

    def stamp(self) -> int | None:
        """A number that changes with every entry, from one stat. None on an object store: use ``sequences`` there."""
        return self._store.changed_at(self._name)

    def sequences(self) -> list[int]:
        """Sequence numbers of all complete entries, ascending."""
        return [int(name) for name in self._store.artifacts(self._name)]

    def after(self, sequence: int) -> list[Delta]:
        """The entries after ``sequence``, in order.

        Raises:
            ArtifactError: an entry is damaged, or one in between is missing.
        """
        found: list[Delta] = []
        for number in self.sequences():
            if number <= sequence:
                continue
            if number != sequence + 1 + len(found):
                raise ArtifactError(
                    f"{self._store.url}/{self._name}: entry {sequence + 1 + len(found)} is missing. Publish again."
                )
            found.append(Delta.read(self.open(number)))
        return found

    def open(self, sequence: int) -> Artifact:
        """Opens one entry, verified.

        Raises:
            ArtifactError: it is missing or damaged.
        """
        place = self._store.fetch(f"{self._name}/{entry_name(sequence)}")
        return open_artifact(place, kind=KIND, format_version=FORMAT_VERSION)


def entry_name(sequence: int) -> str:
    """The directory name of an entry; names sort by number."""
    return f"{sequence:0{_DIGITS}d}"


@dataclass(frozen=True)
class DeltaState:
    """A bundle with deltas applied. Immutable: ``apply`` returns the next state.

    sequence: of the last delta applied, 0 for none. fresh_items: columns as in the bundle's items table. fresh_vectors:
    ``[fresh, dim] float32``. gone: ``[items + fresh] bool``, removed or replaced by a later row. paused: the same
    shape, rows on the kill list. An upsert does not end a pause; only a resume does.
    """

    vocabulary: Vocabulary
    sequence: int
    fresh_items: pa.Table
    fresh_vectors: Vectors
    gone: npt.NDArray[np.bool_]
    paused: npt.NDArray[np.bool_]
    paused_ids: frozenset[Any]

    @classmethod
    def of(cls, bundle: Bundle) -> DeltaState:
        """The state before any delta."""
        return cls(
            vocabulary=bundle.vocabulary,
            sequence=0,
            fresh_items=bundle.items_schema.empty_table(),
            fresh_vectors=np.zeros((0, bundle.dim), np.float32),
            gone=np.zeros(bundle.num_items, np.bool_),
            paused=np.zeros(bundle.num_items, np.bool_),
            paused_ids=frozenset(),
        )

    @property
    def base_items(self) -> int:
        """Rows of the bundle."""
        return len(self.vocabulary.item_ids)

    @property
    def num_fresh(self) -> int:
        """Rows of the side segment, including dead ones."""
        return len(self.fresh_vectors)

    @functools.cached_property
    def dead(self) -> npt.NDArray[np.bool_]:
        """``[items + fresh] bool``: rows that must not be returned."""
        return self.gone | self.paused

    @functools.cached_property
    def num_dead(self) -> int:
        """How many rows are dead."""
        return int(self.dead.sum())

    @functools.cached_property
    def _fresh_row(self) -> dict[Any, int]:
        """Latest fresh row of each item id."""
        ids = self.fresh_items["item_id"].to_pylist()
        return {item_id: self.base_items + place for place, item_id in enumerate(ids)}

    def rows_of(self, item_ids: pa.Array) -> Rows:
        """``[n] int32`` latest row of each item, dead or not; -1 where there never was one."""
        rows = self.vocabulary.item_rows(item_ids)
        if self.num_fresh:
            fresh = [self._fresh_row.get(item_id, -1) for item_id in item_ids.to_pylist()]
            rows = np.where(np.asarray(fresh, np.int32) >= 0, fresh, rows)
        return rows.astype(np.int32)

    def apply(self, delta: Delta) -> DeltaState:
        """Returns the state with one more delta: upserts, then removals, then resumes, then pauses.

        Raises:
            ArtifactError: the delta is not the next one, or its vectors have another length.
        """
        if delta.sequence != self.sequence + 1:
            raise ArtifactError(f"delta {delta.sequence}: expected the next one, {self.sequence + 1}. Replay in order.")
        if delta.vectors.shape[1:] != self.fresh_vectors.shape[1:]:
            raise ArtifactError(
                f"delta {delta.sequence}: expected vectors of {self.fresh_vectors.shape[1]} numbers, got "
                f"{delta.vectors.shape[1]}. It belongs to another version."
            )
        fresh = len(delta.vectors)
        ids = delta.rows["item_id"].combine_chunks()
        paused_ids = (self.paused_ids - set(delta.resumed.to_pylist())) | set(delta.paused.to_pylist())
        gone = np.concatenate([self.gone, np.zeros(fresh, np.bool_)])
        _mark(gone, self.rows_of(ids))
        grown = DeltaState(
            vocabulary=self.vocabulary,
            sequence=delta.sequence,
            fresh_items=pa.concat_tables([self.fresh_items, delta.rows]) if fresh else self.fresh_items,
            fresh_vectors=np.concatenate([self.fresh_vectors, delta.vectors]) if fresh else self.fresh_vectors,
            gone=gone,
            paused=np.concatenate([self.paused, np.zeros(fresh, np.bool_)]),
            paused_ids=frozenset(paused_ids),
        )
        _mark(gone, grown.rows_of(delta.removed))
        _mark(grown.paused, grown.rows_of(delta.resumed), dead=False)
        _mark(grown.paused, grown.rows_of(delta.paused))
        still = [item_id for item_id in ids.to_pylist() if item_id in paused_ids]
        _mark(grown.paused, grown.rows_of(pa.array(still, ids.type)))
        return grown

    def item_ids(self) -> pa.Array:
        """``[items + fresh]`` item id of each row."""
        fresh = self.fresh_items["item_id"].cast(self.vocabulary.item_ids.type).combine_chunks()
        return pa.concat_arrays([self.vocabulary.item_ids, fresh])

    def why_rebuild(self) -> str | None:
        """Why the index should be rebuilt; None if it need not be."""
        if self.num_fresh > _MOST_FRESH:
            return f"{self.num_fresh:,} fresh items, above {_MOST_FRESH:,}: exact search over them takes too long"
        share = self.num_dead / max(1, len(self.dead))
        if share > _MOST_DEAD:
            return f"{share:.1%} of the rows are dead, above {_MOST_DEAD:.0%}: searches return too few live rows"
        return None


def _mark(flags: npt.NDArray[np.bool_], rows: Rows, *, dead: bool = True) -> None:
    """Sets the flags of a state being made; unknown items (-1) are skipped."""
    flags[rows[rows >= 0]] = dead


def replay(bundle: Bundle, log: DeltaLog) -> DeltaState:
    """The bundle with all deltas of its log applied.

    Raises:
        ArtifactError: an entry is damaged or missing.
    """
    state = DeltaState.of(bundle)
    for delta in log.after(0):
        state = state.apply(delta)
    return state
