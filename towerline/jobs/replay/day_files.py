"""Day files: the events table cut by day (UTC), so that a night of the past sees what was there then.

Reads the events table once; writes Parquet files with the columns that the product reads, in their types. Rows without
a sound id or time are on no day and are left out; so are users on the forget list.
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.files import link, write_json, write_parquet
from pipelines.contracts.manifest import fingerprint_of
from pipelines.contracts.schema import DatasetSchema
from pipelines.features.planning import Inputs, Survey
from pipelines.progress import SILENT, Progress
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.event_checks import columns_of
from pipelines.tables.files import find_files
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import read_shard
from pipelines.tables.rejects.checks import Checks
from pipelines.tables.rejects.typed_columns import TypedColumns

_DAYS, _SEEN, _FACTS = "days", "events", "days.json"
# Rows held in memory before they are written, some 200 MB.
_ROWS_AT_ONCE = 4_000_000
_EPOCH = datetime.date(1970, 1, 1)


@dataclass(frozen=True)
class DayFiles:
    """The files of a cut table. folder: where they are. rows: events by day. left_out: rows that are on no day."""

    folder: Path
    rows: dict[datetime.date, int]
    left_out: int

    @classmethod
    def open(cls, folder: Path, made_of: str) -> DayFiles | None:
        """The files of a finished cut; None if there is none of the same table (``fingerprint``)."""
        file = folder / _DAYS / _FACTS
        facts = json.loads(file.read_text()) if file.is_file() else {}
        if facts.get("made_of") != made_of:
            return None
        rows = {datetime.date.fromisoformat(day): int(count) for day, count in facts["rows"].items()}
        return cls(folder, rows, int(facts["left_out"]))

    @property
    def first(self) -> datetime.date:
        """The first day with events."""
        return min(self.rows)

    @property
    def last(self) -> datetime.date:
        """The last day with events."""
        return max(self.rows)

    def of(self, day: datetime.date) -> list[Path]:
        """The files of one day; none if it has no events."""
        return sorted((self.folder / _DAYS).glob(f"{day.isoformat()}-*.parquet"))

    def show_before(self, day: datetime.date) -> Path:
        """The folder that holds the files of all earlier days and no others: the events table of that night."""
        seen = self.folder / _SEEN
        seen.mkdir(exist_ok=True)
        wanted = {file.name: file for one in self.rows if one < day for file in self.of(one)}
        present = {file.name for file in seen.glob("*.parquet")}
        for name in present - wanted.keys():
            (seen / name).unlink()
        for name in sorted(wanted.keys() - present):
            link(wanted[name], seen / name)
        return seen


def cut(schema: DatasetSchema, forgotten: Forgotten, folder: Path, *, progress: Progress = SILENT) -> DayFiles:
    """Cuts the events table of a schema by day, below ``folder``; a finished cut of the same table stays as it is.

    Args:
        schema: its events have a time.
        forgotten: users whose events are left out.
        folder: of the day files.
        progress: shows the parts of the table that are read.

    Raises:
        SchemaError: a table cannot be read.
        ConfigError: the table has no event with an id and a time.
    """
    made_of = fingerprint(schema, forgotten)
    done = DayFiles.open(folder, made_of)
    if done is not None:
        return done
    shutil.rmtree(folder / _SEEN, ignore_errors=True)
    draft = folder / f".{_DAYS}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    cutter = _Cutter(draft)
    left_out = 0
    for table, unsound in _sound(schema, forgotten, progress):
        left_out += unsound
        cutter.add(table, schema.tables.events.time or "")
    cutter.flush()
    if not cutter.rows:
        raise ConfigError(f"{schema.tables.events.path}: expected events with an id and a time, found none.")
    days = {_date(day).isoformat(): count for day, count in sorted(cutter.rows.items())}
    write_json({"made_of": made_of, "rows": days, "left_out": left_out}, draft / _FACTS)
    shutil.rmtree(folder / _DAYS, ignore_errors=True)
    draft.rename(folder / _DAYS)
    return DayFiles(folder, {datetime.date.fromisoformat(day): count for day, count in days.items()}, left_out)


def fingerprint(schema: DatasetSchema, forgotten: Forgotten) -> str:
    """Of what a cut is made from: the contents of the events' files, how they are read, who is forgotten."""
    content = Inputs.find(schema).fingerprints()["events"]
    read = {"tables": schema.tables.model_dump(mode="json"), "ids": schema.ids.model_dump(mode="json")}
    return fingerprint_of([content, read, columns_of(schema), len(forgotten)])


def _sound(schema: DatasetSchema, forgotten: Forgotten, progress: Progress) -> Iterator[tuple[pa.Table, int]]:
    """The rows of each batch that have ids and a time, typed, and how many have not."""
    source = schema.tables.events
    survey = Survey.of(schema, listed(schema))
    types = survey.types["events"]
    with progress.bar(len(survey.events), "cutting the events by day", "parts") as bar:
        for shard in survey.events:
            for batch in read_shard(shard, source, types.columns, types.kinds):
                checks = Checks(batch, "events")
                columns = TypedColumns(batch, types, source.decimal, checks)
                users = columns.id(source.user_id)
                arrays = {name: _typed(columns, name, schema) for name in types.columns}
                sound = checks.accepted
                kept = sound & ~forgotten.holds(users)
                yield pa.table(arrays).filter(pa.array(kept)), _unsound(batch, sound)
            bar.advance()


def _typed(columns: TypedColumns, name: str, schema: DatasetSchema) -> pa.Array:
    events = schema.tables.events
    if name in (events.user_id, events.item_id):
        return columns.id(name)
    return columns.value(name, required=name == events.time)


def _unsound(batch: TableBatch, sound: np.ndarray) -> int:
    return len(batch.malformed) + int((~sound).sum())


class _Cutter:
    """Collects rows by day and writes them when there are many: one more file for each day among them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: dict[int, list[pa.Table]] = defaultdict(list)
        self._count = 0
        self._files: Counter[int] = Counter()
        self.rows: Counter[int] = Counter()

    def add(self, table: pa.Table, time: str) -> None:
        """Takes rows of any days; the order within a day stays."""
        if len(table) == 0:
            return
        days = np.asarray(table[time].cast(pa.int64())) // US_PER_DAY
        order = np.argsort(days, kind="stable")
        found, starts = np.unique(days[order], return_index=True)
        for day, places in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            self._held[day].append(table.take(pa.array(places)))
            self.rows[day] += len(places)
        self._count += len(table)
        if self._count >= _ROWS_AT_ONCE:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        for day, tables in self._held.items():
            name = f"{_date(day).isoformat()}-{self._files[day]:04d}.parquet"
            write_parquet(pa.concat_tables(tables).combine_chunks(), self._folder / name)
            self._files[day] += 1
        self._held.clear()
        self._count = 0


def listed(schema: DatasetSchema) -> Inputs:
    """The files of the tables; their contents are not hashed.

    Raises:
        SchemaError: a path matches nothing or cannot be reached.
    """
    tables = schema.tables
    return Inputs(
        find_files(tables.events, "events"),
        None if tables.items is None else find_files(tables.items, "items"),
        None if tables.users is None else find_files(tables.users, "users"),
    )


def _date(day: int) -> datetime.date:
    return _EPOCH + datetime.timedelta(days=day)
