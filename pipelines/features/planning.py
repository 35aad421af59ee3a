"""Planning: what a run of the features job has to do, decided before any event is read.

Finds the files of the tables, reads their footers and headers, the items table and the previous artifact's manifest.
Reads the events themselves only where no items table names the catalogue. Writes the tables that workers need below
``work``, and the rejects that are taken over.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import write_parquet
from pipelines.contracts.manifest import fingerprint_of, read_manifest
from pipelines.contracts.schema import DatasetSchema, TableName, TableSource, Window
from pipelines.features.duplicates import days_of
from pipelines.features.increment import Decision, Previous, decide, kept_rejects, remap, unfit
from pipelines.features.reporting.unknown import carry_unknown
from pipelines.features.task import Base, Job, Roll, bounded_by, write_catalogue, write_remap, write_to_forget
from pipelines.sequences.grouping import keep_users
from pipelines.sequences.segments import Layout, Partition
from pipelines.tables.catalogue import Items, items_of_events, read_items
from pipelines.tables.column_types import TableTypes, id_types, require_convertible, table_types
from pipelines.tables.entity_checks import EntityChecker, entity_columns
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.erasure.kept_list import FORGOTTEN_FILE, Erasure, ErasureIds, forgotten_by
from pipelines.tables.event_checks import columns_of
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.fingerprints import recall, with_content
from pipelines.tables.readers import Shard, plan_shards

# In the facts of a manifest: the files that were read, by state and content.
FILES_FACT = "source_files"
# Below the artifact: the previous run's rejects of events.
KEPT_REJECTS = Path("rejects") / "events-000000.parquet"
# Events per partition: about 100 MB of Arrow and NumPy at the peak of its worker.
EVENTS_PER_PARTITION = 1_000_000
# Bytes of a CSV or JSONL file per event, where no footer counts the events.
_BYTES_PER_TEXT_EVENT = 40
# By how much gzip and its like make such a file smaller, about.
_PACKED = 5
_MAX_PARTITIONS = 4_096


@dataclass(frozen=True)
class Inputs:
    """The files of the three tables; None where the schema does not have the table."""

    events: tuple[SourceFile, ...]
    items: tuple[SourceFile, ...] | None
    users: tuple[SourceFile, ...] | None

    @classmethod
    def find(cls, schema: DatasetSchema, *artifacts: Path | None) -> Inputs:
        """Lists the files and hashes those that have changed.

        Args:
            schema: the data set's.
            artifacts: features of earlier runs, whose manifests say which content the files had.

        Raises:
            SchemaError: a path matches nothing or cannot be reached, or a file cannot be read.
        """
        known = recall(record for artifact in dict.fromkeys(artifacts) for record in _noted(artifact))

        def found(name: str, table: TableSource) -> tuple[SourceFile, ...]:
            return with_content(find_files(table, name), name, known)

        tables = schema.tables
        return cls(
            found("events", tables.events),
            None if tables.items is None else found("items", tables.items),
            None if tables.users is None else found("users", tables.users),
        )

    @property
    def all(self) -> tuple[SourceFile, ...]:
        """The files of all tables."""
        return (*self.events, *(self.items or ()), *(self.users or ()))

    def read_by(self, artifact: Path) -> Inputs:
        """The same without the files of events that a run has not read.

        Raises:
            ArtifactError: its manifest cannot be read.
        """
        known = set(read_manifest(artifact).facts["event_files"])
        return dataclasses.replace(self, events=tuple(file for file in self.events if file.fingerprint in known))

    def fingerprints(self) -> dict[str, str]:
        """One fingerprint per table, of the contents of its files in their order."""
        return {name: fingerprint_of([file.fingerprint for file in files]) for name, files in self.by_table.items()}

    @property
    def by_table(self) -> dict[TableName, tuple[SourceFile, ...]]:
        """The files of each table that the schema has."""
        named: dict[TableName, tuple[SourceFile, ...] | None] = {
            "events": self.events,
            "items": self.items,
            "users": self.users,
        }
        return {name: files for name, files in named.items() if files is not None}


def _noted(artifact: Path | None) -> list[dict[str, Any]]:
    """What an artifact says of the files it was made from; nothing if it cannot be read."""
    if artifact is None:
        return []
    try:
        noted = read_manifest(artifact).facts.get(FILES_FACT)
    except ArtifactError:
        return []
    return noted if isinstance(noted, list) else []


@dataclass(frozen=True)
class Survey:
    """What footers and headers say: shards to read, and the types of all columns of each table that the schema has.

    Those of events and users are of the columns that are read, those of the items of all columns.
    """

    events: tuple[Shard, ...]
    users: tuple[Shard, ...]
    types: Mapping[TableName, TableTypes]

    @classmethod
    def of(cls, schema: DatasetSchema, inputs: Inputs) -> Survey:
        """Looks at every file.

        Raises:
            SchemaError: a file cannot be read or lacks a column that the schema names, files differ in the type of a
                column, or a column cannot be what the schema says.
        """
        files = inputs.by_table
        ids = id_types(schema, files)
        types = {table: table_types(schema, table, own, ids) for table, own in files.items()}
        types["events"] = types["events"].only(columns_of(schema))
        if "users" in types:
            types["users"] = types["users"].only(entity_columns(schema, "user", types["users"].columns))
            EntityChecker(schema, "user", types["users"])
        for table, own in files.items():
            require_convertible(schema, table, own, types[table])
        users: tuple[Shard, ...] = ()
        if inputs.users is not None and schema.tables.users is not None:
            users = tuple(plan_shards(inputs.users, schema.tables.users, "users"))
        return cls(
            events=tuple(plan_shards(inputs.events, schema.tables.events, "events")),
            users=users,
            types=types,
        )

    @property
    def partitions(self) -> int:
        """How many partitions a full run cuts the users into."""
        events = sum(events_in(shard) for shard in self.events)
        return min(max(-(-events // EVENTS_PER_PARTITION), 1), _MAX_PARTITIONS)

    def new_events(self, previous: Previous | None) -> tuple[Shard, ...]:
        """The shards of events that a previous run has not read."""
        if previous is None:
            return self.events
        new = {file.url for file in previous.new_files}
        return tuple(shard for shard in self.events if shard.file.url in new)


def events_in(shard: Shard) -> int:
    """Events of a shard, estimated from its bytes where no footer counts them."""
    if shard.rows is not None:
        return shard.rows
    if shard.span is not None:
        return (shard.span.end - shard.span.start) // _BYTES_PER_TEXT_EVENT
    packed = 1 if shard.file.compression is None else _PACKED
    return packed * shard.file.bytes // _BYTES_PER_TEXT_EVENT


def catalogue_of(schema: DatasetSchema, inputs: Inputs, survey: Survey, previous: Previous | None) -> Items:
    """The catalogue: the items table, or without one every item that events name, those of a previous run included.

    Raises:
        SchemaError: the items table cannot be read, has no rows, lacks a column, or names an id twice.
    """
    if inputs.items is not None:
        return read_items(schema, inputs.items, survey.types["items"])
    types = survey.types["events"]
    known = None if previous is None else previous.vocabulary.item_ids
    if known is not None and known.type != types.kinds[schema.tables.events.item_id].arrow:
        known, previous = None, None
    return items_of_events(schema, survey.new_events(previous), types, known)


def fixed_as_of_us(schema: DatasetSchema) -> int | None:
    """The moment features look back from, the index's own: where the test window begins.

    None where the schema does not say it: with rolling windows, or where it is the moment after the last accepted
    event. Only the run itself knows it then.
    """
    if schema.tables.events.time is None:
        return 0
    bounds = schema.split.bounds(None)
    return None if bounds is None else bounds[1]


def _as_of_us_before(previous: Previous, forgotten: Forgotten | None) -> int:
    """The moment after a previous run's last event; ``forgotten``: users whose events do not count (None: nobody)."""
    if forgotten is None:
        return int(previous.facts["as_of_us"])
    last = 0
    for partition in Partition.list(previous.dir / "sequences"):
        grouped = partition.read()
        kept = keep_users(grouped, ~forgotten.holds(grouped.user_ids))
        last = max(last, int(kept.times.max()) + 1 if len(kept.times) else 0)
    return last


def _days_before(previous: Previous, forgotten: Forgotten, user_column: str) -> dict[int, int]:
    """A previous run's accepted events by day, without those of users who are forgotten now, as far as it has them."""
    days = Counter({int(day): count for day, count in previous.facts["days"].items()})
    if forgotten_by(previous.dir).covers(forgotten) or previous.window is None:
        return dict(days)
    kind = pa.int64() if previous.facts["user_type"] == "int64" else pa.string()
    before, now = (
        days_of(kept_rejects(previous.dir, users, user_column, kind)) for users in (Forgotten.empty(), forgotten)
    )
    days.subtract(before - now)
    for partition in Partition.list(previous.dir / "sequences"):
        stored = partition.stored()
        gone = keep_users(stored, forgotten.holds(stored.user_ids))
        numbers, counts = np.unique(gone.times // US_PER_DAY, return_counts=True)
        days.subtract(dict(zip(numbers.tolist(), counts.tolist(), strict=True)))
    return dict(+days)


@dataclass(frozen=True)
class FeaturesPlan:
    """What is to be done: the job, its shards, the catalogue, and the previous run it appends to, if any."""

    job: Job
    shards: list[Shard]
    items: Items
    inputs: Inputs
    decision: Decision
    erasure: ErasureIds
    remap: pa.Array | None

    @property
    def counted_before(self) -> Previous | None:
        """The previous run, where its counts go into this one's."""
        return None if self.job.base is None or self.job.base.recount else self.decision.previous


@dataclass(frozen=True)
class FeaturesPlanner:
    """Looks at the tables and at the previous run, and lays out below ``work`` what workers need.

    ``out`` is the artifact being written; ``erasure`` says whom to drop; ``roll`` where rolling windows end.
    """

    schema: DatasetSchema
    inputs: Inputs
    out: Path
    work: Path
    erasure: Erasure
    roll: Roll | None = None

    def plan(self, directory: Path | None, partitions: int | None) -> FeaturesPlan:
        """Plans a run.

        Args:
            directory: the previous run's artifact, if any.
            partitions: number of user partitions; from the input's size where None.

        Raises:
            SchemaError: a table cannot be read or lacks a column, a column has a wrong type, an item id appears twice,
                a line of the forget list is no user id.
        """
        survey = Survey.of(self.schema, self.inputs)
        events_types = survey.types["events"]
        id_type = events_types.kinds[self.schema.tables.events.user_id].arrow
        erasure = self.erasure.as_ids(id_type)
        decision = decide(directory, self.schema, self.inputs.events, self.roll)
        if erasure.remembers and decision.previous is not None:
            decision = Decision(None, "users were taken off the forget list, so that all files are read again")
        items = catalogue_of(self.schema, self.inputs, survey, decision.previous)
        if decision.previous is not None:
            reason = unfit(decision.previous, items.ids, str(id_type), survey.partitions, partitions)
            if reason is not None:
                decision = Decision(None, reason)
                items = items if self.inputs.items else catalogue_of(self.schema, self.inputs, survey, None)
        decision = self._with_the_newest(decision, erasure.forgotten)
        previous = decision.previous
        job = Job(
            schema_json=self.schema.model_dump_json(),
            out=str(self.out),
            work=str(self.work),
            partitions=partitions or survey.partitions,
            events_types=events_types,
            users_types=survey.types.get("users"),
            fixed_as_of_us=fixed_as_of_us(self.schema),
            roll=self.roll,
        )
        rows = None if previous is None else remap(previous.vocabulary.item_ids, items.ids)
        if previous is not None:
            job = self._appending(job, previous, erasure.forgotten)
        write_catalogue(items.ids, self.work)
        if len(erasure.forgotten):
            erasure.forgotten.write(self.out / FORGOTTEN_FILE)
        if len(erasure.wanted):
            write_to_forget(erasure.wanted, self.work)
        if rows is not None:
            write_remap(rows, self.work)
        shards = [*survey.new_events(previous), *survey.users]
        return FeaturesPlan(job, shards, items, self.inputs, decision, erasure, rows)

    def _with_the_newest(self, decision: Decision, forgotten: Forgotten) -> Decision:
        """The decision, or a full run where windows would go back because the newest event is a forgotten user's."""
        previous = decision.previous
        if previous is None or previous.window is None or self.roll is None:
            return decision
        end = self.roll.end_after(_days_before(previous, forgotten, self.schema.tables.events.user_id))
        if end is not None and end >= previous.window.end:
            return decision
        return Decision(None, "the newest event it has read is a forgotten user's, so that the windows may go back")

    def _appending(self, job: Job, previous: Previous, forgotten: Forgotten) -> Job:
        """The job of a run that appends to a previous one; its rejects are taken over."""
        rejects = kept_rejects(previous.dir, forgotten, self.schema.tables.events.user_id, job.id_type)
        forgets = not forgotten_by(previous.dir).covers(forgotten)
        if len(rejects):
            write_parquet(rejects, self.out / KEPT_REJECTS)
        carry_unknown(previous.dir, self.out, forgotten)
        split = self.schema.split
        bounds = split.bounds(None) if previous.bounds_moved else None
        is_last = job.fixed_as_of_us is None and self.roll is None
        window = None if forgets else self._counted_by_day(previous)
        counts = bool(self.schema.counts("user") or self.schema.counts("item"))
        # Where only the run itself finds the moment, it is taken to move.
        moved = (window is None and job.fixed_as_of_us != previous.facts["as_of_us"]) or not previous.same_features
        by_event = forgets or split.leave_last_out or (window is None and (split.rolls or bounds is not None))
        base = Base(
            dir=str(previous.dir),
            generation=Layout.read(previous.dir / "sequences").generation + 1,
            last_time=previous.facts["last_time"],
            as_of_us=_as_of_us_before(previous, forgotten if forgets and is_last else None),
            recount=by_event or (counts and moved),
            forgets=forgets,
            bounds=bounds,
            days=_days_before(previous, forgotten, self.schema.tables.events.user_id),
            window=window,
            same_features=previous.same_features,
        )
        return dataclasses.replace(
            job,
            partitions=previous.partitions,
            first_shard=int(previous.facts["shards"]) + 1,
            late_before_us=previous.late_before(self.schema),
            base=base,
        )

    def _counted_by_day(self, previous: Previous) -> Window | None:
        """What a previous run used and held out; None where the bounds before or now do not begin with a day."""
        if self.roll is not None:
            return previous.window
        now, before = bounded_by(self.schema), bounded_by(self.schema.model_copy(update={"split": previous.split}))
        bounds = [bound for window in (now, before) if window is not None for bound in window.bounds]
        return None if any(bound % US_PER_DAY for bound in bounds) else before
