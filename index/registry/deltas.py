"""What changed since a version was built: the state of its catalogue after the entries of the registry's log.

Reads a bundle and entries. Upserts and removals with a sequence number above the bundle's ``delta_sequence`` apply to
it; pauses and resumes of the whole log do, whenever they were made. The state is the fold of the entries in order, and
does not depend on how many are read at a time. Needs neither TensorFlow nor ScaNN: fresh items are in a side segment
that is searched exactly, so ScaNN's own upsert and delete are never used.

Rows below the bundle's number of items are the bundle's; above are the fresh items in the order they came. A row never
moves: an item that changes gets a new row, and its old one is dead. What an upsert does not say stays as it was; one
that changes nothing gives no new row.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from index.inference.item_embedder import ItemEmbedder
from index.registry.bundle import Bundle
from index.registry.delta_entry import Entry, Pauses, merged
from index.registry.delta_log import DeltaLog
from index.registry.upserts import AdColumns, KnownAds, Overlaid, Said, known_of
from index.search.searcher import Rows, Scores, Vectors
from index.search.value_tree import said_log_values
from pipelines.contracts.arrays import Bools, Float64, Int64

# Fresh items that exact search scores in about the time of one ScaNN search (64 numbers each).
_MOST_FRESH = 5_000
# Share of the bundle's rows that may be dead before a search wastes a tenth of its neighbors on them.
_MOST_DEAD = 0.1
_LOG = logging.getLogger("towerline.registry")


@dataclass(frozen=True, eq=False)
class DeltaState:
    """A bundle with the entries of a log applied. Immutable: ``after`` returns the next state.

    sequence: of the last entry applied, 0 for none. fresh: what is known of the fresh items. fresh_vectors:
    ``[fresh, dim] float32``. fresh_frequency: ``[fresh] int64`` train events, those of the ad's row before.
    fresh_popularity: ``[fresh] float64``, likewise.
    fresh_log_values: ``[fresh] float32``, None where the bundle has no value. gone: ``[items + fresh] bool``, removed
    or replaced by a later row. paused: the same shape, rows of paused ads. paused_ids: all paused ads that the
    version's ids can be, known to it or not. An upsert does not end a pause; only a resume does.
    """

    bundle: Bundle
    sequence: int
    fresh: KnownAds
    fresh_vectors: Vectors
    fresh_frequency: Int64
    fresh_popularity: Float64
    fresh_log_values: Scores | None
    gone: Bools
    paused: Bools
    paused_ids: frozenset[Any]

    @classmethod
    def of(cls, bundle: Bundle) -> DeltaState:
        """The state before any entry."""
        columns = AdColumns.of(bundle)
        return cls(
            bundle=bundle,
            sequence=0,
            fresh=KnownAds(columns.items.empty_table(), columns.features.empty_table()),
            fresh_vectors=np.zeros((0, bundle.dim), np.float32),
            fresh_frequency=np.zeros(0, np.int64),
            fresh_popularity=np.zeros(0, np.float64),
            fresh_log_values=None if bundle.value is None else np.zeros(0, np.float32),
            gone=np.zeros(bundle.num_items, np.bool_),
            paused=np.zeros(bundle.num_items, np.bool_),
            paused_ids=frozenset(),
        )

    @classmethod
    def opened(cls, bundle: Bundle, log: DeltaLog, embedder: ItemEmbedder) -> DeltaState:
        """The state with everything in the log applied. What cannot be applied any more is logged."""
        while True:
            pauses = log.pauses()
            state = cls.of(bundle) if pauses is None else cls.of(bundle)._from(pauses)
            state = state.after(log.after(state.sequence), embedder)
            later = log.pauses()
            # Else entries were removed while they were read.
            if (later and later.sequence) == (pauses and pauses.sequence):
                return state

    def _from(self, pauses: Pauses) -> DeltaState:
        """The state after the entries that were removed from the log: their pauses are kept, other changes not."""
        if self.bundle.delta_sequence < pauses.sequence:
            _LOG.error(
                "%s: the bundle needs the log's entries after %d, and those up to %d were removed: changes of ads are "
                "missing. Publish a newer bundle.",
                self.bundle.dir,
                self.bundle.delta_sequence,
                pauses.sequence,
            )
        fold = Fold(self, ItemEmbedder(self.bundle))
        fold.pause(pauses.item_ids)
        fold.sequence = pauses.sequence
        return fold.state()

    def after(self, entries: Sequence[Entry], embedder: ItemEmbedder) -> DeltaState:
        """The state with more entries, in their order. One that was applied before is skipped.

        An ad that the version cannot embed is logged and stays as it was.

        Args:
            entries: of the registry's log.
            embedder: of the same bundle.
        """
        fold = Fold(self, embedder)
        new = [entry for entry in entries if entry.sequence > self.sequence]
        for entry in merged(new, self.bundle.delta_sequence):
            fold.apply(entry)
        return fold.state()

    @property
    def fresh_items(self) -> pa.Table:
        """The fresh items, columns as in the bundle's items table."""
        return self.fresh.items

    @property
    def base_items(self) -> int:
        """Rows of the bundle."""
        return self.bundle.num_items

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
    def frequency(self) -> Int64:
        """``[items + fresh] int64`` train events of each row."""
        return np.concatenate([self.bundle.vocabulary.item_frequency, self.fresh_frequency])

    @functools.cached_property
    def popularity(self) -> Float64:
        """``[items + fresh] float64`` popularity of each row."""
        return np.concatenate([self.bundle.popularity, self.fresh_popularity])

    @functools.cached_property
    def log_values(self) -> Scores | None:
        """``[items + fresh] float32``; None where the bundle has no value."""
        if self.bundle.value is None or self.fresh_log_values is None:
            return None
        return np.concatenate([self.bundle.value.log_values, self.fresh_log_values])

    @functools.cached_property
    def fresh_row(self) -> dict[Any, int]:
        """Latest fresh row of each item id."""
        ids = self.fresh_items["item_id"].to_pylist()
        return {item_id: self.base_items + place for place, item_id in enumerate(ids)}

    def rows_of(self, item_ids: pa.Array) -> Rows:
        """``[n] int32`` latest row of each item, dead or not; -1 where there never was one."""
        return _rows_of(self.bundle, self.fresh_row, item_ids)

    def item_ids(self) -> pa.Array:
        """``[items + fresh]`` item id of each row."""
        known = self.bundle.vocabulary.item_ids
        return pa.concat_arrays([known, self.fresh_items["item_id"].cast(known.type).combine_chunks()])

    def known(self, rows: Int64) -> KnownAds:
        """What is known of the ads in ``[n]`` rows."""
        return _known(self.bundle, self.fresh, rows)

    def why_rebuild(self) -> str | None:
        """Why the index should be rebuilt; None if it need not be."""
        if self.num_fresh > _MOST_FRESH:
            return f"{self.num_fresh:,} fresh items, above {_MOST_FRESH:,}: exact search over them takes too long"
        share = self.num_dead / max(1, len(self.dead))
        if share > _MOST_DEAD:
            return f"{share:.1%} of the rows are dead, above {_MOST_DEAD:.0%}: searches return too few live rows"
        return None


class Fold:
    """Applies entries to a state, one after the other. ``refused``: why ads could not be applied, by item id."""

    def __init__(self, state: DeltaState, embedder: ItemEmbedder) -> None:
        self._bundle = state.bundle
        self._embedder = embedder
        self._columns = AdColumns.of(state.bundle)
        self._fresh = state.fresh
        self._vectors = [state.fresh_vectors]
        self._frequency, self._popularity = state.frequency, state.popularity
        self._log_values = state.log_values
        self._gone, self._paused = state.gone.copy(), state.paused.copy()
        self._paused_ids = set(state.paused_ids)
        self._fresh_row = dict(state.fresh_row)
        self.sequence = state.sequence
        self.refused: dict[Any, str] = {}

    def state(self) -> DeltaState:
        """What has become of it."""
        items = self._bundle.num_items
        return DeltaState(
            bundle=self._bundle,
            sequence=self.sequence,
            fresh=self._fresh,
            fresh_vectors=np.concatenate(self._vectors),
            fresh_frequency=self._frequency[items:],
            fresh_popularity=self._popularity[items:],
            fresh_log_values=None if self._log_values is None else self._log_values[items:],
            gone=self._gone,
            paused=self._paused,
            paused_ids=frozenset(self._paused_ids),
        )

    def apply(self, entry: Entry) -> None:
        """Applies one entry, unless it was applied before."""
        if entry.sequence <= self.sequence:
            return
        if entry.sequence > self._bundle.delta_sequence:
            self._upsert(entry)
            self._mark(self._gone, self._ids(entry.ids("remove")))
        self._resume(entry.ids("resume"))
        self.pause(entry.ids("pause"))
        self.sequence = entry.sequence

    def pause(self, item_ids: pa.Array) -> None:
        """Pauses ads, whether the version knows them or not."""
        ids = self._ids(item_ids)
        self._paused_ids.update(ids.to_pylist())
        self._mark(self._paused, ids)

    def _resume(self, item_ids: pa.Array) -> None:
        ids = self._ids(item_ids)
        self._paused_ids.difference_update(ids.to_pylist())
        self._mark(self._paused, ids, flag=False)

    def _ids(self, item_ids: pa.Array) -> pa.Array:
        """Ids of any version in this one's type; those that it cannot have are left out."""
        return self._bundle.item_types.ids(item_ids).drop_null()

    def _mark(self, flags: Bools, item_ids: pa.Array, *, flag: bool = True) -> None:
        rows = _rows_of(self._bundle, self._fresh_row, item_ids)
        flags[rows[rows >= 0]] = flag

    def _upsert(self, entry: Entry) -> None:
        if entry.count("upsert") == 0:
            return
        said = Said.of(entry, self._columns.names(), self._bundle.item_types)
        rows = _rows_of(self._bundle, self._fresh_row, said.item_ids).astype(np.int64)
        known = rows >= 0
        laid = said.over(_known(self._bundle, self._fresh, rows[known]), known)
        refused = dict.fromkeys(np.flatnonzero(said.unfit).tolist(), "a cell does not fit its column's type")
        self._gone[rows[known & ~laid.changed & ~said.unfit]] = False
        places = np.flatnonzero(laid.changed & ~said.unfit)
        ads = laid.ads(said.item_ids, places, self._columns)
        embedded = self._embedder.embed(self._columns.raw(ads))
        refused |= {int(places[place]): str(err) for place, err in embedded.refused.items()}
        fits = np.setdiff1d(np.arange(len(places)), np.fromiter(embedded.refused, np.int64))
        self._grow(
            rows[places[fits]], ads.rows(fits), embedded.vectors[fits], self._logs(said, laid, rows, places[fits])
        )
        self._tell(entry, {said.item_ids[place].as_py(): why for place, why in refused.items()})

    def _logs(self, said: Said, laid: Overlaid, rows: Int64, places: Int64) -> Scores | None:
        """``[n] float32`` log values of the ads at ``places``: of the value said, else as before, else the mean."""
        value = self._bundle.value
        if value is None or self._log_values is None:
            return None
        known = rows[places] >= 0
        before = np.where(known, self._log_values[rows[places]], value.log_values.mean()).astype(np.float32)
        attribute = value.spec.attribute
        if attribute not in said.columns:
            return before
        own = said.said[attribute][places] & (laid.differing[attribute][places] | ~known)
        column = said.columns[attribute].take(pa.array(places))
        return np.where(own, said_log_values(column, float(value.log_values.min())), before)

    def _grow(self, before: Int64, ads: KnownAds, vectors: Vectors, log_values: Scores | None) -> None:
        """Adds rows at the end; ``before``: the ads' rows until now, -1 for a new ad."""
        if len(before) == 0:
            return
        known = before >= 0
        frequency = np.where(known, self._frequency[before], 0)
        popularity = np.where(known, self._popularity[before], 0.0)
        ids = ads.items["item_id"].to_pylist()
        first = len(self._gone)
        self._gone[before[known]] = True
        self._gone = np.concatenate([self._gone, np.zeros(len(before), np.bool_)])
        paused = np.fromiter((item_id in self._paused_ids for item_id in ids), np.bool_, len(ids))
        self._paused = np.concatenate([self._paused, paused])
        self._frequency = np.concatenate([self._frequency, frequency])
        self._popularity = np.concatenate([self._popularity, popularity])
        if self._log_values is not None and log_values is not None:
            self._log_values = np.concatenate([self._log_values, log_values])
        self._vectors.append(vectors)
        self._fresh = self._fresh.joined(ads)
        self._fresh_row.update({item_id: first + place for place, item_id in enumerate(ids)})

    def _tell(self, entry: Entry, refused: dict[Any, str]) -> None:
        self.refused |= refused
        if refused:
            first = next(iter(refused))
            message = "%s: up to entry %d: %d ads cannot be embedded here and stay as they were, the first is %r: %s"
            _LOG.warning(message, self._bundle.dir, entry.sequence, len(refused), first, refused[first])


def _rows_of(bundle: Bundle, fresh_row: dict[Any, int], item_ids: pa.Array) -> Rows:
    rows = bundle.vocabulary.item_rows(item_ids)
    if fresh_row:
        fresh = [fresh_row.get(item_id, -1) for item_id in item_ids.to_pylist()]
        rows = np.where(np.asarray(fresh, np.int32) >= 0, fresh, rows)
    return rows.astype(np.int32)


def _known(bundle: Bundle, fresh: KnownAds, rows: Int64) -> KnownAds:
    """What is known of the ads in ``[n]`` rows: the bundle's, and those of the fresh ones."""
    is_fresh = rows >= bundle.num_items
    own = known_of(bundle, rows[~is_fresh])
    if not is_fresh.any():
        return own
    both = own.joined(fresh.rows(rows[is_fresh] - bundle.num_items))
    order = np.argsort(np.argsort(is_fresh, kind="stable"), kind="stable")
    return both.rows(order)
