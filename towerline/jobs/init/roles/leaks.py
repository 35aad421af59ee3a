"""Columns of items or users that know what happened later: counted from the events, or times after them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.arrays import Float64
from pipelines.contracts.conversion import convert, plain_array
from towerline.jobs.init.tables.profile import Profile
from towerline.jobs.init.tables.sample import Sample
from towerline.jobs.init.tables.sketch import UInt64, hashes_of
from towerline.jobs.init.tables.types import Typed

_LEAST_ROWS = 30
_MOST_CORRELATION = 0.95
_MOST_EARLIER = 0.05


@dataclass(frozen=True)
class _Own:
    """A side's rows by the hash of their id, sorted by it."""

    hashes: UInt64
    columns: dict[str, Float64]


def leaks(profile: Profile, key: str, event_ids: UInt64, sample: Sample, *, has_time: bool) -> dict[str, str]:
    """Columns that are no features, with the reason.

    Args:
        profile: the side's table.
        key: its id.
        event_ids: ``[n] uint64`` hashes of the side's ids in the sample's events.
        sample: the events.
        has_time: whether the sample has moments.
    """
    numbers = [typed for typed in profile.typed.values() if typed.is_number and typed.name != key]
    times = [typed for typed in profile.typed.values() if typed.type.type == "timestamp" and has_time]
    if not numbers and not times:
        return {}
    own = _read(profile, key, [*numbers, *times])
    places = np.minimum(np.searchsorted(own.hashes, event_ids), max(len(own.hashes) - 1, 0))
    known = own.hashes[places] == event_ids if len(own.hashes) else np.zeros(len(event_ids), bool)
    found = {}
    counts = np.bincount(places[known], minlength=len(own.hashes)).astype(np.float64)
    for typed in numbers:
        correlation = _rank_correlation(own.columns[typed.name], counts)
        if correlation > _MOST_CORRELATION:
            found[typed.name] = f"follows the number of events (rank correlation {correlation:.2f}), those held out too"
    for typed in times:
        at = own.columns[typed.name][places[known]]
        earlier = float(np.mean(sample.time[known] < at)) if known.any() else 0.0
        if earlier > _MOST_EARLIER:
            found[typed.name] = f"{earlier:.0%} of the events are before it: it knows what comes later"
    return found


def _read(profile: Profile, key: str, columns: Sequence[Typed]) -> _Own:
    hashes: list[UInt64] = []
    values: dict[str, list[Float64]] = {typed.name: [] for typed in columns}
    for batch in profile.table.batches([key, *values]):
        ids = plain_array(batch[key])
        kept = ids.is_valid()
        hashes.append(hashes_of(ids.filter(kept)))
        for typed in columns:
            converted = convert(batch[typed.name], typed.type, decimal=profile.decimal).values
            plain = converted.cast(pa.int64()) if pa.types.is_timestamp(converted.type) else converted
            numbers = plain.cast(pa.float64(), safe=False).fill_null(np.nan)
            values[typed.name].append(np.asarray(numbers.filter(kept), np.float64))
    joined = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    order = np.argsort(joined, kind="stable")
    return _Own(joined[order], {name: np.concatenate(parts)[order] for name, parts in values.items() if parts})


def _rank_correlation(values: Float64, counts: Float64) -> float:
    """Spearman's, over the rows that have events and a value; 0 for too few."""
    kept = (counts > 0) & ~np.isnan(values)
    if kept.sum() < _LEAST_ROWS:
        return 0.0
    one, other = _ranks(values[kept]), _ranks(counts[kept])
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def _ranks(values: Float64) -> npt.NDArray[np.float64]:
    """Ranks, the mean one for equal values."""
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2.0)[places]
