"""Events of a stable sample of users, all of their events: what the split, the history and leaks are judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Bools, Int64
from pipelines.contracts.conversion import convert, plain_array
from pipelines.contracts.conversion.column_type import STRING
from pipelines.progress import Progress
from towerline.jobs.init.tables.profile import Profile
from towerline.jobs.init.tables.sketch import Sketch, UInt64, hashes_of
from towerline.jobs.init.tables.types import Typed

MOST_ROWS = 2_000_000


@dataclass(frozen=True)
class Sample:
    """Events of ``share`` of the users.

    ``user`` and ``item`` are ``[n] uint64`` hashes of ids, ``time`` is ``[n] int64`` microseconds UTC (zeros where
    events have no time), ``orders`` has ``[n] int64`` for each candidate, ``split`` ``[n]`` words or None.
    """

    share: float
    user: UInt64
    item: UInt64
    time: Int64
    orders: Mapping[str, Int64]
    split: pa.Array | None

    @property
    def events_per_user(self) -> Int64:
        """``[users] int64``, sorted."""
        return np.sort(np.unique(self.user, return_counts=True)[1])


def read_sample(
    events: Profile,
    user: str,
    item: str,
    time: Typed | None,
    orders: Sequence[Typed],
    split: str | None,
    progress: Progress,
) -> Sample:
    """Reads the events again, for a sample of users of at most about ``MOST_ROWS`` events.

    Raises:
        SchemaError: a file cannot be read.
    """
    share = min(1.0, MOST_ROWS / max(events.rows, 1))
    below = np.uint64(min(int(share * 2.0**64), 2**64 - 1))
    named = dict.fromkeys([user, item, *(one.name for one in orders)])
    named |= dict.fromkeys(name for name in (None if time is None else time.name, split) if name is not None)
    parts: list[list[object]] = []
    with progress.waiting("read events of a sample of users"):
        for batch in events.table.batches(list(named)):
            users, items = _hashed(batch[user]), _hashed(batch[item])
            kept = users.known & items.known & (users.hashes <= below)
            moments, present = _integers(batch, time)
            kept &= present
            numbers = [_integers(batch, one)[0][kept] for one in orders]
            words = [] if split is None else [convert(batch[split], STRING).values.filter(pa.array(kept))]
            parts.append([users.hashes[kept], items.hashes[kept], moments[kept], *numbers, *words])
    columns = list(zip(*parts, strict=True)) if parts else []
    joined = [np.concatenate(column) for column in (columns[: 3 + len(orders)])]
    return Sample(
        share,
        joined[0],
        joined[1],
        joined[2],
        {one.name: numbers for one, numbers in zip(orders, joined[3:], strict=True)},
        None if split is None else pa.concat_arrays(columns[-1]),
    )


@dataclass(frozen=True)
class _Hashed:
    hashes: UInt64
    known: Bools


def _hashed(column: pa.ChunkedArray) -> _Hashed:
    array = plain_array(column)
    known = np.asarray(array.is_valid(), dtype=bool)
    encoded = (array.drop_null() if array.null_count else array).dictionary_encode()
    hashes = np.zeros(len(array), np.uint64)
    if len(encoded):
        hashes[known] = hashes_of(encoded.dictionary)[np.asarray(encoded.indices)]
    return _Hashed(hashes, known)


def _integers(batch: pa.Table, typed: Typed | None) -> tuple[Int64, Bools]:
    if typed is None:
        return np.zeros(len(batch), np.int64), np.ones(len(batch), bool)
    values = convert(batch[typed.name], typed.type).values
    present = np.asarray(values.is_valid(), dtype=bool)
    return np.asarray(values.cast(pa.int64()).fill_null(0), np.int64), present


def times_per_value(events: Profile, candidates: Sequence[Typed], time: Typed | None) -> dict[str, float]:
    """Mean number of different moments per value of each column: about 1 for a basket or an event, more for a user."""
    names = [one.name for one in candidates]
    values = {name: Sketch() for name in names}
    pairs = {name: Sketch() for name in names}
    rows = 0
    for batch in events.table.batches([*names, *([] if time is None else [time.name])]):
        moments = _integers(batch, time)[0] if time is not None else np.arange(rows, rows + len(batch))
        for name in names:
            hashed = _hashed(batch[name])
            known = hashed.hashes[hashed.known]
            values[name].add(known)
            pairs[name].add(_mixed(known, moments[hashed.known]))
        rows += len(batch)
        if rows >= MOST_ROWS:
            break
    return {name: pairs[name].count / max(values[name].count, 1) for name in names}


def _mixed(hashes: UInt64, numbers: Int64) -> UInt64:
    """Hashes of pairs."""
    other = hashes_of(pa.array(numbers))
    return hashes_of(pa.array((hashes ^ ((other << np.uint64(31)) | (other >> np.uint64(33)))).view(np.int64)))


def ordered_by(sample: Sample, name: str) -> float:
    """Share of the sample's events whose (user, order) no other event has."""
    pairs = _mixed(sample.user, sample.orders[name])
    return len(np.unique(pairs)) / max(len(pairs), 1)
