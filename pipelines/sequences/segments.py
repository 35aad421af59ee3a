"""Segments: the files of a partition's sequences, so that a new day is appended and nothing is rewritten.

A partition has one base file, ``part-00003-of-00020.parquet``, and next to it the events that later runs appended,
``part-00003-of-00020.0007.parquet`` (by the seventh run after the full one). ``layout.json`` records the catalogue that
the rows of each file refer to; ``rows-0002.arrow`` brings those of catalogue 2 into the artifact's own. Readers put the
pieces together; what they see is what a full run would have written. Without ``layout.json`` there are bases only. An
artifact holds all its files itself: those it shares with an earlier one are hard links.

A bound that moves by a day need not read all events: see ``pipelines.sequences.day_lists``.

With rolling windows the files may hold more than is used: events before ``history_from`` until the partition is next
rewritten, and events from ``end`` on, which a later window will reach. ``layout.json`` has the window; readers see what
lies inside it, of the users that ``users/`` has.

Reads and writes ``sequences/``. Imports neither Beam, TensorFlow nor ScaNN.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, ValidationError

from pipelines.contracts.arrays import Int64
from pipelines.contracts.configuration import Section
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import link, read_arrow, write_arrow, write_aside
from pipelines.contracts.schema import Window
from pipelines.sequences.day_lists import NIGHTS, DayEvents, lists_name, read_day_lists
from pipelines.sequences.grouping import (
    Grouped,
    gather,
    in_window,
    keep_users,
    merge,
    places_of,
    with_last_out,
    with_time_splits,
)
from pipelines.sequences.repeats import repeats

LAYOUT_FILE = "layout.json"
# A partition is rewritten after this many runs that appended to it, a different one each night: a reader merges at most
# this many segments, and a night rewrites that part of the data.
MAX_SEGMENTS = NIGHTS
_EVENT_COLUMNS = ("rows", "times", "actions", "values", "splits")
_COLUMN_TYPES = (np.int32, np.int64, np.int8, np.float32, np.int8)


class Layout(Section):
    """What is not in the files' names.

    ``generation`` counts the runs that appended since the full one; ``catalogue`` is the number of the artifact's own
    catalogue, ``files`` that of each file with another; ``bounds`` are the first moments of valid and test where they
    have moved since a file was written; ``last_out``: the splits depend on each user's last events; ``window`` is what
    is used of the files where the windows roll; ``days`` are by generation the days since the epoch that its segments
    may have events of.
    """

    generation: int = 0
    catalogue: int = 0
    files: dict[str, int] = Field(default_factory=dict)
    bounds: tuple[int, int] | None = None
    last_out: bool = False
    window: Window | None = None
    days: dict[int, list[int]] = Field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Layout:
        """The layout of ``sequences/`` at ``folder``; that of a full run where no file says otherwise.

        Raises:
            ArtifactError: the file is damaged.
        """
        path = folder / LAYOUT_FILE
        if not path.exists():
            return cls()
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as err:
            raise ArtifactError(f"{path}: damaged. Run `towerline features` again.") from err

    def write(self, folder: Path) -> None:
        """Writes ``layout.json`` below ``folder``."""
        write_aside(folder / LAYOUT_FILE, lambda aside: aside.write_text(self.model_dump_json()))


def part_name(part: int, parts: int) -> str:
    """File name of one part of several."""
    return f"part-{part:05d}-of-{parts:05d}.parquet"


def segment_name(part: int, parts: int, generation: int) -> str:
    """File name of what one run appended to a part."""
    return f"part-{part:05d}-of-{parts:05d}.{generation:04d}.parquet"


def generation_of(name: str) -> int:
    """The run that appended a segment."""
    return int(name.split(".")[1])


def rows_name(catalogue: int) -> str:
    """File name of an earlier catalogue's rows in the artifact's own."""
    return f"rows-{catalogue:04d}.arrow"


@dataclass(frozen=True)
class Partition:
    """The files of one partition below ``folder``, by name: the base, then its segments, oldest first."""

    folder: Path
    layout: Layout
    names: tuple[str, ...]

    @classmethod
    def list(cls, folder: Path) -> list[Partition]:
        """All partitions below ``folder``, in order.

        Raises:
            ArtifactError: the layout is damaged, or segments lack their base.
        """
        layout = Layout.read(folder)
        names: dict[str, list[str]] = defaultdict(list)
        for path in sorted(folder.glob("part-*.parquet")):
            names[path.name.split(".")[0]].append(path.name)
        found = []
        for stem in sorted(names):
            base = f"{stem}.parquet"
            if base not in names[stem]:
                raise ArtifactError(f"{folder / base}: missing. Run `towerline features` again.")
            segments = [name for name in names[stem] if name != base]
            found.append(cls(folder, layout, (base, *segments)))
        return found

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all its files: those with events, and the base's day lists if it has any."""
        lists = lists_name(self.names[0])
        return (*self.names, lists) if (self.folder / lists).exists() else self.names

    @property
    def segments(self) -> int:
        """How many runs have appended to it."""
        return len(self.names) - 1

    def read(self) -> Grouped:
        """All events of the partition that are used, as a full run would have grouped them.

        Raises:
            ArtifactError: a file cannot be read.
        """
        whole = self.stored()
        if self.layout.window is not None:
            return self._used(whole, self.layout.window)
        if self.layout.bounds is not None:
            return with_time_splits(whole, self.layout.bounds)
        return with_last_out(whole) if self.layout.last_out and self.segments else whole

    def stored(self) -> Grouped:
        """All events in the files, split as when each was written.

        Raises:
            ArtifactError: a file cannot be read.
        """
        with self._readable():
            pieces = [self._in_catalogue(read_part(self.folder / name), name) for name in self.names]
        return pieces[0] if self.segments == 0 else merge(pieces[0], gather(pieces[1:]))

    def events_of(self, days: Collection[int]) -> DayEvents | None:
        """The stored events of some days since the epoch, without reading the base.

        None where its day lists do not have one of them.

        Raises:
            ArtifactError: a file cannot be read.
        """
        base = self.names[0]
        with self._readable():
            ids = joined(pq.ParquetFile(self.folder / base).read(columns=["user_id"])["user_id"])
            listed = read_day_lists(self.folder / lists_name(base), ids, days)
            if listed is None:
                return None
            pieces = [dataclasses.replace(listed, rows=self._rows(listed.rows, base))]
            for name in self.names[1:]:
                known = self.layout.days.get(generation_of(name))
                if known is None or not set(days).isdisjoint(known):
                    piece = self._in_catalogue(read_part(self.folder / name), name)
                    pieces.append(DayEvents.of(piece, repeats(piece, by_split=False), days))
        return DayEvents.together(pieces)

    def _used(self, whole: Grouped, window: Window) -> Grouped:
        """The events inside the window, of the users in ``users/``."""
        with self._readable():
            table = pq.ParquetFile(self.folder.parent / "users" / self.names[0]).read(columns=["user_id"])
        inside = in_window(whole, window)
        return keep_users(inside, places_of(inside.user_ids, joined(table["user_id"])) >= 0)

    @contextlib.contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, pa.ArrowException) as err:
            raise ArtifactError(f"{self.folder}: cannot be read ({err}). Run `towerline features` again.") from err

    def _in_catalogue(self, piece: Grouped, name: str) -> Grouped:
        return dataclasses.replace(piece, rows=self._rows(piece.rows, name))

    def _rows(self, rows: npt.NDArray[np.int32], name: str) -> npt.NDArray[np.int32]:
        """Rows in a file's catalogue as rows in the artifact's own."""
        number = self.layout.files.get(name, self.layout.catalogue)
        return rows if number == self.layout.catalogue else _remap(self.folder / rows_name(number))[rows]


def _remap(path: Path) -> npt.NDArray[np.int32]:
    state = path.stat()
    return _remap_of(path, state.st_ino, state.st_mtime_ns)


@functools.lru_cache(maxsize=MAX_SEGMENTS)
def _remap_of(path: Path, *_: int) -> npt.NDArray[np.int32]:
    return np.asarray(read_arrow(path)["row"], np.int32)


def carry_rows(
    before: Path, after: Path, layout: Layout, remap: npt.NDArray[np.int32] | None, kept: list[str]
) -> tuple[int, dict[str, int]]:
    """Writes to ``after`` the rows of earlier catalogues that the files kept from ``before`` need.

    Args:
        before: ``sequences/`` of the previous artifact.
        after: that of the new one.
        layout: the previous artifact's.
        remap: each row of its catalogue in the new one; None where the two are the same.
        kept: names of the files taken over.

    Returns:
        The number of the new catalogue, and ``Layout.files`` for the files kept.
    """
    current = layout.catalogue if remap is None else layout.catalogue + 1
    numbers = {name: layout.files.get(name, layout.catalogue) for name in kept}
    for number in sorted(set(numbers.values()) - {current}):
        if remap is None:
            link(before / rows_name(number), after / rows_name(number))
            continue
        rows = remap if number == layout.catalogue else remap[_remap(before / rows_name(number))]
        write_arrow(pa.table({"row": rows}), after / rows_name(number))
    return current, {name: number for name, number in numbers.items() if number != current}


def write_part(grouped: Grouped, path: Path) -> None:
    """Writes one part of ``sequences/``: a base or a segment. A row is a user, a list for each property of an event."""
    offsets = pa.array(grouped.offsets.astype(np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(getattr(grouped, name))) for name in _EVENT_COLUMNS]
    table = pa.Table.from_arrays([grouped.user_ids, *lists], names=["user_id", *_EVENT_COLUMNS])
    pq.write_table(
        table,
        path,
        compression="lz4",
        use_dictionary=["actions.list.element", "splits.list.element"],
        write_statistics=False,
        row_group_size=max(len(table), 1),
    )


def read_part(path: Path) -> Grouped:
    """Reads back what ``write_part`` wrote."""
    table = pq.ParquetFile(path).read()
    columns = {
        name: flat(table[name]).astype(kind, copy=False)
        for name, kind in zip(_EVENT_COLUMNS, _COLUMN_TYPES, strict=True)
    }
    return Grouped(joined(table["user_id"]), list_offsets(table["rows"]), **columns)


def joined(column: pa.ChunkedArray) -> pa.Array:
    """The column as one array."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def list_offsets(lists: pa.ChunkedArray) -> Int64:
    """``[n + 1] int64``: where each list begins among all their values."""
    lengths = [np.diff(np.asarray(chunk.offsets)) for chunk in lists.chunks]
    return np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))]).astype(np.int64)


def flat(lists: pa.ChunkedArray) -> npt.NDArray[Any]:
    """All values of the lists, one after the other."""
    parts = [np.asarray(chunk.flatten()) for chunk in lists.chunks]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, np.int32)
