"""Day lists: a partition's events by day, so that a bound that moves by a day need not read all of them.

Next to a base file, ``part-00003-of-00020.parquet``, lies ``part-00003-of-00020.days.arrow``: the events of those days
that bounds will cross in the next ``NIGHTS`` nights, when the base is written again. It is an Arrow file with a record
batch for each day; its metadata say which days these are, and from which to which day the base has events. A row is an
event: ``place`` is that of the user in the base file, ``row`` that of the item in the base's catalogue, ``repeats``
says that it repeats another event in everything.

What later runs append is small and of few days: a segment is its own list.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Bools, Int8, Int32, Int64
from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.files import write_arrow
from pipelines.sequences.grouping import Grouped, places_of, union_ids

NIGHTS = 16
_META = b"days"


@dataclass(frozen=True)
class DayEvents:
    """Events of some days.

    ``user_ids`` [users] ascending; ``owners`` (places among them), ``rows``, ``actions``, ``days`` (since the epoch)
    and ``repeats`` are [events].
    """

    user_ids: pa.Array
    owners: Int64
    rows: Int32
    actions: Int8
    days: Int64
    repeats: Bools

    @classmethod
    def of(cls, grouped: Grouped, repeats: Bools, days: Collection[int]) -> DayEvents:
        """The events of these days; ``repeats`` is ``[events]``."""
        all_days = grouped.times // US_PER_DAY
        chosen = np.flatnonzero(np.isin(all_days, list(days)))
        return cls(
            grouped.user_ids,
            grouped.owners[chosen],
            grouped.rows[chosen],
            grouped.actions[chosen],
            all_days[chosen],
            repeats[chosen],
        )

    def users_of(self, chosen: Bools) -> pa.Array:
        """Ids of the users who have any of the chosen events (``[events]``), ascending."""
        if not chosen.any():
            return self.user_ids.slice(0, 0)
        counts = np.bincount(self.owners[chosen], minlength=len(self.user_ids))
        return self.user_ids.filter(pa.array(counts > 0))

    @classmethod
    def together(cls, pieces: Sequence[DayEvents]) -> DayEvents:
        """Several pieces as one."""
        if len(pieces) == 1:
            return pieces[0]
        ids = union_ids([piece.user_ids for piece in pieces])
        owners = [places_of(piece.user_ids, ids)[piece.owners] for piece in pieces]
        names = ("rows", "actions", "days", "repeats")
        columns = (np.concatenate([getattr(piece, name) for piece in pieces]) for name in names)
        return cls(ids, np.concatenate(owners), *columns)


def days_ahead(moments: Iterable[int]) -> frozenset[int]:
    """The days that bounds at these moments (midnights, in microseconds UTC) will cross in the next nights."""
    return frozenset(moment // US_PER_DAY + night for moment in moments for night in range(NIGHTS + 1))


def lists_name(base: str) -> str:
    """File name of the day lists of a base file."""
    return f"{base.removesuffix('.parquet')}.days.arrow"


def write_day_lists(grouped: Grouped, repeats: Bools, days: Collection[int], path: Path) -> None:
    """Writes the lists of a base file.

    Args:
        grouped: its events.
        repeats: ``[events]`` whether each repeats another.
        days: since the epoch, those to be listed.
        path: where to.
    """
    all_days = (grouped.times // US_PER_DAY).astype(np.int32)
    first, last = (int(all_days.min()), int(all_days.max())) if len(all_days) else (0, -1)
    listed = sorted(day for day in days if first <= day <= last)
    codes = np.full(last - first + 1, len(listed), np.uint16)
    codes[np.asarray(listed, np.int64) - first] = np.arange(len(listed))
    code = codes[all_days - first]
    chosen = np.flatnonzero(code < len(listed))
    chosen = chosen[np.argsort(code[chosen], kind="stable")]  # A radix sort for 16 bits.
    bounds = np.searchsorted(code[chosen], np.arange(len(listed) + 1))
    table = pa.table(
        {
            "place": pa.array(grouped.owners.astype(np.int32)[chosen]),
            "row": pa.array(grouped.rows[chosen]),
            "action": pa.array(grouped.actions[chosen]),
            "repeats": pa.array(repeats[chosen]),
        }
    ).replace_schema_metadata({_META: json.dumps({"first": first, "last": last, "listed": listed})})
    batches = [table.slice(low, high - low) for low, high in itertools.pairwise(bounds)]
    write_arrow(batches or table, path)


def read_day_lists(path: Path, user_ids: pa.Array, days: Collection[int]) -> DayEvents | None:
    """The events of these days; None if the lists do not have one of them, or there are no lists.

    Args:
        path: the lists.
        user_ids: of the base file.
        days: since the epoch.
    """
    if not path.exists():
        return None
    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        known = json.loads(reader.schema.metadata[_META])
        wanted = [day for day in sorted(days) if known["first"] <= day <= known["last"]]
        places = {day: place for place, day in enumerate(known["listed"])}
        if not places.keys() >= set(wanted):
            return None
        batches = [reader.get_batch(places[day]) for day in wanted]
        table = pa.Table.from_batches(batches, reader.schema)
        counts = [batch.num_rows for batch in batches]
        return DayEvents(
            user_ids,
            np.asarray(table["place"]).astype(np.int64),
            np.array(table["row"], np.int32),
            np.array(table["action"], np.int8),
            np.repeat(np.asarray(wanted, np.int64), counts),
            np.array(table["repeats"], np.bool_),
        )
