"""The job: what every worker of the features job knows, and the small tables that lie next to its output for them.

Written by the process that submits; read by workers on a file system that all see.
"""

from __future__ import annotations

import datetime
import functools
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.files import read_arrow, write_arrow
from pipelines.contracts.manifest import read_manifest
from pipelines.contracts.schema import DatasetSchema, Side, Window
from pipelines.contracts.schema.window import midnight_after, midnight_before, moment
from pipelines.sequences.day_lists import days_ahead
from pipelines.sequences.segments import Partition
from pipelines.tables.column_types import TableTypes
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.erasure.kept_list import FORGOTTEN_FILE
from pipelines.tables.event_checks import ItemLookup

# Below ``work``: what each shard's task counted.
SHARDS_FOLDER = "shards"
# The end of a window that has none.
NEVER = 2**62
SIDES: tuple[Side, ...] = ("user", "item")
_CATALOGUE_FILE = "catalogue.arrow"
_TO_FORGET_FILE = "to_forget.arrow"
_REMAP_FILE = "remap.arrow"


@dataclass(frozen=True)
class Base:
    """What a worker knows of the previous run that this one appends to.

    ``dir`` is its artifact, ``generation`` the number of this run since the last full one; events up to ``last_time``
    may be there already; ``as_of_us`` is the moment after its last event. ``recount`` says that what is counted must be
    counted over all events again, not over the new ones only; ``forgets`` that it may have users whom this run forgets;
    ``bounds`` are the moments of the split where they have moved. ``days`` are its accepted events by day since the
    epoch, those of users whom this run forgets left out. ``window`` is what it used and held out, where days that
    bounds have crossed since are counted again from day lists; None where nothing but new events is.
    ``same_features``: they are configured as in this run.
    """

    dir: str
    generation: int
    last_time: int | None
    as_of_us: int
    recount: bool
    forgets: bool
    bounds: tuple[int, int] | None
    days: dict[int, int]
    window: Window | None = None
    same_features: bool = False

    @property
    def sequences(self) -> Path:
        """Its folder of sequences."""
        return Path(self.dir) / "sequences"


@dataclass(frozen=True)
class Roll:
    """How a run finds the end of its rolling windows.

    ``end_us`` is the midnight that was asked for; None is the first midnight after the newest accepted event.
    ``clock_us`` is the first midnight after the run began: an event from then on has a wrong clock and does not move
    the windows. ``whole``: all events up to the end are train.
    """

    end_us: int | None
    clock_us: int
    whole: bool = False

    def end_after(self, days: Iterable[int]) -> int | None:
        """The end for events of these days since the epoch; None where none of them counts."""
        if self.end_us is not None:
            return self.end_us
        past = [day for day in days if (day + 1) * US_PER_DAY <= self.clock_us]
        return (max(past) + 1) * US_PER_DAY if past else None

    def is_met_by(self, facts: Mapping[str, Any]) -> bool:
        """Whether the windows of a run with these facts end where those of this one would, without new events."""
        window = Window.of(facts)
        return window is not None and window.end == self.end_after(int(day) for day in facts["days"])


def roll_of(
    schema: DatasetSchema,
    as_of: datetime.datetime | None,
    now: datetime.datetime | None,
    *,
    whole: bool = False,
    previous: Path | None = None,
) -> Roll | None:
    """Where the rolling windows of a run end, arguments as of ``run``; None where the windows do not roll.

    Raises:
        ConfigError: ``as_of`` or ``whole`` is given and the windows do not roll.
    """
    if not schema.split.rolls:
        if as_of is not None or whole:
            raise ConfigError(
                "as-of moves rolling windows, and [split] has none. Write valid_days and test_days in place of "
                "valid_from, test_from, test_until, column or leave_last_out, or leave --as-of out."
            )
        return None
    clock = datetime.datetime.now(datetime.UTC) if now is None else now
    end = None if as_of is None else midnight_before(moment(_in_utc(as_of)))
    if end is None and whole and previous is not None:
        window = Window.of(read_manifest(previous).facts)
        end = None if window is None else window.end
    return Roll(end, midnight_after(moment(_in_utc(clock))), whole)


def _in_utc(given: datetime.datetime) -> datetime.datetime:
    """A moment; one without a zone is UTC."""
    return given.replace(tzinfo=datetime.UTC) if given.tzinfo is None else given


@dataclass(frozen=True)
class Job:
    """What every worker knows. ``out`` and ``work`` must be on a file system that all workers see.

    ``events_types`` and ``users_types`` (None without a users table) are those of the columns that are read;
    ``fixed_as_of_us`` is ``as_of_us`` where the schema says it, else None; ``first_shard`` is the number of the first
    shard, above those of the runs before; events before ``late_before_us`` are late; ``roll``: the windows roll.
    """

    schema_json: str
    out: str
    work: str
    partitions: int
    events_types: TableTypes
    users_types: TableTypes | None
    fixed_as_of_us: int | None
    first_shard: int = 0
    late_before_us: int | None = None
    base: Base | None = None
    roll: Roll | None = None

    @property
    def schema(self) -> DatasetSchema:
        """The data set's schema."""
        return _schema(self.schema_json)

    @property
    def id_type(self) -> pa.DataType:
        """Arrow type of the user ids."""
        return self.events_types.kinds[self.schema.tables.events.user_id].arrow

    @functools.cached_property
    def as_of_us(self) -> int:
        """The moment from which ``time_since`` and ``count`` features look back, known once all shards are ingested.

        It is where the test window begins; where no moment splits the events, the one after the last accepted event.
        """
        if self.window is not None:
            return self.window.test_from
        if self.fixed_as_of_us is not None:
            return self.fixed_as_of_us
        folder = Path(self.work) / SHARDS_FOLDER
        last: list[int | None] = [json.loads(path.read_text())["last"] for path in folder.glob("events-*.json")]
        before = 0 if self.base is None else self.base.as_of_us
        return max([before, *(time + 1 for time in last if time is not None)])

    @functools.cached_property
    def days(self) -> dict[int, int]:
        """All accepted events by day since the epoch, known once all shards are ingested."""
        found: Counter[int] = Counter({} if self.base is None else self.base.days)
        for path in (Path(self.work) / SHARDS_FOLDER).glob("events-*.json"):
            found.update({int(day): count for day, count in json.loads(path.read_text())["days"].items()})
        return dict(sorted(found.items()))

    @functools.cached_property
    def window(self) -> Window | None:
        """The rolling windows, known once all shards are ingested; None where the windows do not roll."""
        if self.roll is None:
            return None
        end = self.roll.end_after(self.days)
        # Without any event the job is refused later, by what the tables lack.
        return self.schema.split.window(self.roll.clock_us if end is None else end, whole=self.roll.whole)

    @functools.cached_property
    def bounded(self) -> Window | None:
        """What is used and held out where moments split the events, known once all shards are ingested."""
        return self.window or bounded_by(self.schema)

    @functools.cached_property
    def listed_days(self) -> frozenset[int]:
        """The days since the epoch that bounds will cross in the next nights; none where they lie within days."""
        moments = [] if self.bounded is None else moments_of(self.schema, self.bounded)
        known = [moment for moment in moments if moment not in (None, NEVER)]
        return frozenset() if any(moment % US_PER_DAY for moment in known) else days_ahead(known)

    @functools.cached_property
    def crossed_days(self) -> frozenset[int]:
        """The days since the epoch that bounds have crossed since the previous run."""
        if self.base is None or self.base.window is None or self.bounded is None:
            return frozenset()
        first = min(self.base.days, default=0) * US_PER_DAY
        pairs = zip(moments_of(self.schema, self.base.window), moments_of(self.schema, self.bounded), strict=True)
        spans = [sorted(first if moment is None else moment for moment in pair) for pair in pairs]
        return frozenset(day for low, high in spans for day in range(low // US_PER_DAY, high // US_PER_DAY))

    @functools.cached_property
    def catalogue(self) -> ItemLookup:
        """The item ids in row order."""
        return _catalogue(str(Path(self.work) / _CATALOGUE_FILE))

    @functools.cached_property
    def forgotten(self) -> Forgotten:
        """The users whom this run drops."""
        path = Path(self.out) / FORGOTTEN_FILE
        return Forgotten.read(path) if path.exists() else Forgotten.empty()

    @functools.cached_property
    def to_forget(self) -> Forgotten:
        """The users whom this run's forget list names, and what it may have meant: who of them is found is counted."""
        path = Path(self.work) / _TO_FORGET_FILE
        return Forgotten.read(path) if path.exists() else Forgotten.empty()

    def found(self, ids: Iterable[pa.Array]) -> set[int]:
        """Places in ``to_forget`` of the users whom these arrays of ids name."""
        if len(self.to_forget) == 0:
            return set()
        return {place for one in ids for place in self.to_forget.places(one).tolist() if place >= 0}

    @functools.cached_property
    def remap(self) -> npt.NDArray[np.int32] | None:
        """Each row of the previous run's catalogue in this one's; None where the two are the same."""
        path = Path(self.work) / _REMAP_FILE
        return np.asarray(read_arrow(path)["row"], np.int32) if path.exists() else None

    @functools.cached_property
    def users_layout(self) -> pa.Schema:
        """Columns and types of the users as they are stored: those of the users table, its id called user_id."""
        own = self.schema.id_column("user")
        if self.users_types is None:
            return pa.schema([("user_id", self.id_type)])
        layout = self.users_types.arrow_schema
        return pa.schema([field.with_name("user_id") if field.name == own else field for field in layout])

    @functools.cached_property
    def base_partitions(self) -> list[Partition]:
        """The partitions of the previous run."""
        return [] if self.base is None else Partition.list(self.base.sequences)


def bounded_by(schema: DatasetSchema) -> Window | None:
    """What is used and held out by the split's own moments; None where it has none, or the events have no time."""
    bounds = schema.split.bounds(None)
    if bounds is None or schema.tables.events.time is None:
        return None
    return Window(valid_from=bounds[0], test_from=bounds[1], end=NEVER)


def moments_of(schema: DatasetSchema, window: Window) -> list[int | None]:
    """The moments at which an event's part in the counts changes, in a fixed order; None is the beginning of time."""
    days = {days for side in SIDES for feature in schema.counts(side) for days in feature.window_days}
    starts = [window.test_from - days * US_PER_DAY for days in sorted(days)]
    return [window.history_from, window.valid_from, window.test_from, window.end, *starts]


def write_catalogue(item_ids: pa.Array, work: Path) -> None:
    """Lays out the item ids in row order."""
    write_arrow(pa.table({"item_id": item_ids}), work / _CATALOGUE_FILE)


def write_to_forget(users: Forgotten, work: Path) -> None:
    """Lays out the users whom the forget list names."""
    users.write(work / _TO_FORGET_FILE)


def write_remap(rows: pa.Array, work: Path) -> None:
    """Lays out each old row's new row."""
    write_arrow(pa.table({"row": rows}), work / _REMAP_FILE)


@functools.lru_cache(maxsize=4)
def _schema(text: str) -> DatasetSchema:
    return DatasetSchema.model_validate_json(text)


@functools.lru_cache(maxsize=2)
def _catalogue(path: str) -> ItemLookup:
    return ItemLookup(read_arrow(Path(path))["item_id"].combine_chunks())
