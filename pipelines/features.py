"""The features job: raw tables to ``features/``, on Beam.

Reads the tables of the schema; writes an artifact of kind ``features``: sequences, items, users, their encoded twins,
vocabulary and rejects. Two Beam pipelines: the first checks shards of the raw tables, hashes events and users
by user into partitions and builds each partition's sequences; the second encodes items and users with the vocabulary
that was fitted on the train window in between. What travels through Beam are references to Arrow batches that lie
spilled next to the output: a worker's memory holds one batch or one partition.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from pipelines.catalogue import Items, id_type, items_of_events, read_items, unified_schema
from pipelines.conversion import as_ids, as_times
from pipelines.encode import count_column, encode_table
from pipelines.entities import entity_columns
from pipelines.errors import ArtifactError, ConfigError, SchemaError, TowerlineError
from pipelines.events import columns_of, moment
from pipelines.fitting import fit, summarise
from pipelines.increment import MAX_GROWTH, Decision, Previous, decide, kept_rejects, remap
from pipelines.manifest import fingerprint_of, write_artifact
from pipelines.partitions import (
    CATALOGUE_FILE,
    FORGOTTEN_FILE,
    REMAP_FILE,
    USERS_SCHEMA_FILE,
    Job,
    PartitionFacts,
    Spilled,
    build_partition,
    ingest_events,
    ingest_users,
    write_arrow,
    write_aside,
    write_json,
    write_parquet,
)
from pipelines.runner import beam, new_pipeline, pipeline_options
from pipelines.schema import SPLITS, CountFeature, DatasetSchema
from pipelines.sequences import encoded_table, part_name
from pipelines.tables import Shard, SourceFile, arrow_schema, find_files, plan_shards, read_shard, require_columns
from pipelines.validation import TableCounts, enforce_thresholds
from pipelines.vocabulary import Vocabulary, as_array

KIND = "features"
FORMAT_VERSION = 1
# Events a partition: about 100 MB of Arrow and NumPy at the peak of its worker.
EVENTS_PER_PARTITION = 1_000_000
# Bytes of a CSV or JSONL file that stand for one event, where no footer counts them.
_BYTES_PER_TEXT_EVENT = 40
_MAX_PARTITIONS = 4_096
ITEMS_PER_PART = 250_000
_WORK = ".work"


@dataclass(frozen=True)
class Inputs:
    """The files of the three tables; None where the schema has no such table."""

    events: tuple[SourceFile, ...]
    items: tuple[SourceFile, ...] | None
    users: tuple[SourceFile, ...] | None

    @classmethod
    def find(cls, schema: DatasetSchema) -> Inputs:
        """Lists the files.

        Raises:
            SchemaError: a path matches nothing or cannot be reached.
        """
        tables = schema.tables
        return cls(
            find_files(tables.events, "events"),
            None if tables.items is None else find_files(tables.items, "items"),
            None if tables.users is None else find_files(tables.users, "users"),
        )

    def fingerprints(self) -> dict[str, str]:
        """One fingerprint a table, of names' order, sizes and edges of its files."""
        named = {"events": self.events, "items": self.items, "users": self.users}
        return {
            name: fingerprint_of([file.fingerprint for file in files])
            for name, files in named.items()
            if files is not None
        }


def run(
    schema: DatasetSchema,
    out: Path,
    beam_args: Sequence[str] = (),
    progress: bool = True,
    *,
    partitions: int | None = None,
    previous: Path | None = None,
    forget: Sequence[int | str] = (),
) -> Path:
    """Writes the features of a data set to ``out`` and returns it.

    Args:
        schema: the data set's.
        out: the artifact's directory, on a file system that all workers see.
        beam_args: for Beam, unchanged.
        progress: show a bar on standard error.
        partitions: number of user partitions; from the input's size where None.
        previous: an earlier run's artifact (it may be ``out`` itself): only files of events that it has not read are
            read, and the result is what a full run would give; the manifest says under ``increment`` whether it
            could be used, and else why not. Events older than ``validation.late_days`` before its newest are rejected.
        forget: ids of users of whom nothing may stay: no event, no row, no count, no value, no reject.

    Raises:
        SchemaError: a table cannot be read or lacks a column, a column has a wrong type, an item id stands twice, too
            many rows were rejected, there are no events, or the split leaves train or test empty.
        ConfigError: ``beam_args`` name no runner.
    """
    options = pipeline_options(beam_args)
    inputs = Inputs.find(schema)
    config = schema.model_dump(mode="json")
    with write_artifact(
        out, kind=KIND, format_version=FORMAT_VERSION, inputs=inputs.fingerprints(), config=config
    ) as draft:
        work = draft.dir / _WORK
        work.mkdir()
        run = _Run(schema, inputs, draft.dir, work, options, progress, previous, tuple(forget))
        draft.facts.update(run.write(partitions))
        shutil.rmtree(work)
    return out


@dataclass(frozen=True)
class _Run:
    schema: DatasetSchema
    inputs: Inputs
    out: Path
    work: Path
    options: Any
    progress: bool
    previous: Path | None
    forget: tuple[int | str, ...]

    def write(self, partitions: int | None) -> dict[str, Any]:
        shards, user_type, items = self._plan()
        write_arrow(pa.table({"item_id": items.ids}), self.work / CATALOGUE_FILE)
        forgotten = as_ids(as_array([str(user) for user in self.forget]), user_type).values if self.forget else None
        if forgotten is not None:
            write_arrow(pa.table({"user_id": forgotten.drop_null()}), self.work / FORGOTTEN_FILE)
        job = Job(
            schema_json=self.schema.model_dump_json(),
            out=str(self.out),
            work=str(self.work),
            partitions=partitions or _partition_count(shards),
            user_type=str(user_type),
            as_of_us=self._as_of(shards),
        )
        decision = self._decide(job, items, partitions)
        if decision.previous is not None:
            job, shards = self._upon(decision.previous, job, shards, items, forgotten)
        self._build(job, shards)
        ingested = _Ingested.read(self.work, items)
        if decision.previous is not None:
            ingested = ingested.after(decision.previous.facts, self._count_kept(forgotten))
        ingested.require_fit(self.schema)
        parts = [PartitionFacts.read(self.work / "facts" / f"{part:05d}") for part in range(job.partitions)]
        events = [sum(part.events[split] for part in parts) for split in range(len(SPLITS))]
        _require_split(events, ingested)
        vocabulary = self._fit(job, items, parts)
        self._encode(job)
        (self.out / "schema.json").write_text(self.schema.model_dump_json(indent=1))
        return {
            "counts": {
                "events": sum(events),
                "users": sum(part.users for part in parts),
                "items": len(items.table),
                "items_in_train": int((vocabulary.item_frequency > 0).sum()),
                **dict(zip(SPLITS, events, strict=True)),
            },
            "tables": {name: {"rows": count.rows, "rejects": count.rejects} for name, count in ingested.counts.items()},
            "dropped_after_test_until": ingested.dropped,
            "first_time": ingested.first,
            "last_time": ingested.last,
            "as_of_us": job.as_of_us,
            "partitions": job.partitions,
            "user_type": job.user_type,
            "shards": job.first_shard + len(shards),
            "event_files": [file.fingerprint for file in self.inputs.events],
            "increment": {"used": decision.previous is not None, "reason": decision.reason},
            "split": self.schema.split.model_dump(mode="json"),
        }

    def _plan(self) -> tuple[list[Shard], pa.DataType, Items]:
        table = self.schema.tables.events
        names = columns_of(self.schema)
        kinds = [checked_columns(file, names, self.schema) for file in self.inputs.events]
        shards = plan_shards(self.inputs.events, "events")
        user_kinds = [kind.field(table.user_id).type for kind in kinds]
        if self.inputs.users is not None:
            found = unified_schema(self.inputs.users, "users")
            columns = entity_columns(self.schema, "user", found.names)
            found = pa.schema([found.field(column) for column in columns])
            write_aside(self.work / USERS_SCHEMA_FILE, lambda aside: aside.write_bytes(found.serialize()))
            user_kinds.append(found.field(self.schema.id_column("user")).type)
            shards += plan_shards(self.inputs.users, "users")
        user_type = id_type(user_kinds, table.user_id)
        if self.inputs.items is not None:
            return shards, user_type, read_items(self.schema, self.inputs.items)
        item_type = id_type([kind.field(table.item_id).type for kind in kinds], table.item_id)
        own = [shard for shard in shards if shard.table == "events"]
        return shards, user_type, items_of_events(self.schema, own, item_type)

    def _decide(self, job: Job, items: Items, partitions: int | None) -> Decision:
        """Whether to build upon the previous run; the sizes of its partitions and the type of its ids must fit too."""
        decision = decide(self.previous, self.schema, self.inputs.events, items.ids)
        if decision.previous is None:
            return decision
        if partitions is not None and partitions != decision.previous.partitions:
            return Decision(None, f"{partitions} partitions are asked for, it has {decision.previous.partitions}")
        if job.partitions > MAX_GROWTH * decision.previous.partitions:
            return Decision(None, f"its {decision.previous.partitions} partitions have become too large")
        if job.user_type != decision.previous.facts["user_type"]:
            return Decision(None, "the user ids have another type")
        return decision

    def _upon(
        self, previous: Previous, job: Job, shards: list[Shard], items: Items, forgotten: pa.Array | None
    ) -> tuple[Job, list[Shard]]:
        """The job and the shards of a run that builds upon a previous one."""
        new = {file.fingerprint for file in previous.new_files}
        rows = remap(previous.vocabulary.item_ids, items.ids)
        if rows is not None:
            write_arrow(pa.table({"row": rows}), self.work / REMAP_FILE)
        rejects = kept_rejects(previous.dir, forgotten, self.schema.tables.events.user_id)
        if len(rejects):
            write_parquet(rejects, self.out / "rejects" / "events-000000.parquet")
        job = dataclasses.replace(
            job,
            partitions=previous.partitions,
            first_shard=int(previous.facts["shards"]) + 1,
            late_before_us=previous.late_before(self.schema),
            previous=str(previous.dir),
            bounds_moved=previous.bounds_moved,
        )
        return job, [shard for shard in shards if shard.table != "events" or shard.file.fingerprint in new]

    def _count_kept(self, forgotten: pa.Array | None) -> dict[str, int] | None:
        """The kept rejects by reason where some were forgotten; None where the previous counts hold."""
        if forgotten is None:
            return None
        path = self.out / "rejects" / "events-000000.parquet"
        return dict(Counter(pq.ParquetFile(path).read()["reason"].to_pylist())) if path.exists() else {}

    def _as_of(self, shards: Sequence[Shard]) -> int:
        """The moment features look back from: the end of the train window, else the moment after the last event."""
        table = self.schema.tables.events
        if table.time is None:
            return 0
        if self.schema.split.valid_from is not None:
            return moment(self.schema.split.valid_from)
        last = 0
        for shard in (shard for shard in shards if shard.table == "events"):
            for batch in read_shard(shard, [table.time], {table.time: pa.string()}):
                found = pc.max(as_times(batch.table[table.time]).values).as_py()
                last = max(last, 0 if found is None else found + 1)
        return last

    def _build(self, job: Job, shards: Sequence[Shard]) -> None:
        numbered = list(enumerate(shards))
        bars = _watched(self, "reading", len(shards), "shards", "building", job.partitions, "facts")
        with bars, _translated(self.work), new_pipeline(self.options) as pipeline:
            spilled = (
                pipeline
                | "List shards" >> beam.Create(numbered)
                | "Spread shards" >> beam.Reshuffle()
                | "Check and spill" >> beam.ParDo(_Ingest(job))
            )
            every = pipeline | "List partitions" >> beam.Create([(part, None) for part in range(job.partitions)])
            (
                (spilled, every)
                | "Join partitions" >> beam.Flatten()
                | "Gather partitions" >> beam.GroupByKey()
                | "Build sequences" >> beam.ParDo(_Build(job))
            )

    def _fit(self, job: Job, items: Items, parts: Sequence[PartitionFacts]) -> Vocabulary:
        frequency = np.zeros(len(items.table), np.int64)
        for part in parts:
            frequency[np.asarray(part.item_frequency["row"])] += np.asarray(part.item_frequency["count"])
        table = _with_counts(self.schema, items.table, parts)
        _write_item_parts(table, self.out)
        features = self.schema.side("item")
        summary = summarise(features, table, items.ids, frequency, job.as_of_us)
        vocabulary = Vocabulary(
            user=fit(self.schema.side("user"), [part.summary for part in parts]),
            item=fit(features, [summary]),
            item_ids=items.ids,
            item_frequency=frequency,
        )
        vocabulary.save(self.out / "vocabulary")
        if len(items.rejects):
            write_parquet(items.rejects, self.out / "rejects" / "items.parquet")
        return vocabulary

    def _encode(self, job: Job) -> None:
        names = [f"{side}/{path.name}" for side in ("items", "users") for path in sorted((self.out / side).iterdir())]
        bars = _watched(self, "encoding", len(names), "encoded")
        with bars, _translated(self.work), new_pipeline(self.options) as pipeline:
            (
                pipeline
                | "List parts" >> beam.Create(names)
                | "Spread parts" >> beam.Reshuffle()
                | "Encode" >> beam.ParDo(_Encode(job))
            )


@dataclass(frozen=True)
class _Ingested:
    """What reading the tables found."""

    counts: dict[str, TableCounts]
    dropped: int
    first: int | None
    last: int | None

    @classmethod
    def read(cls, work: Path, items: Items) -> _Ingested:
        facts = [json.loads(path.read_text()) for path in sorted((work / "shards").glob("*.json"))]
        counts = {"items": items.counts}
        for table in ("events", "users"):
            own = [fact for fact in facts if fact["table"] == table]
            if own:
                reasons: Counter[str] = Counter()
                for fact in own:
                    reasons.update(fact["rejects"])
                counts[table] = TableCounts(sum(fact["rows"] for fact in own), dict(sorted(reasons.items())))
        first = [fact["first"] for fact in facts if fact["first"] is not None]
        last = [fact["last"] for fact in facts if fact["last"] is not None]
        dropped = sum(fact["dropped"] for fact in facts)
        return cls(counts, dropped, min(first, default=None), max(last, default=None))

    def after(self, facts: dict[str, Any], kept: dict[str, int] | None) -> _Ingested:
        """What a full run would have found: the previous run's counts and this one's together."""
        before = facts["tables"]["events"]
        now = self.counts.get("events", TableCounts(0, {}))
        reasons = Counter(before["rejects"] if kept is None else kept) + Counter(now.rejects)
        counts = {**self.counts, "events": TableCounts(before["rows"] + now.rows, dict(sorted(reasons.items())))}
        first = [time for time in (self.first, facts["first_time"]) if time is not None]
        last = [time for time in (self.last, facts["last_time"]) if time is not None]
        dropped = self.dropped + facts["dropped_after_test_until"]
        return _Ingested(counts, dropped, min(first, default=None), max(last, default=None))

    def require_fit(self, schema: DatasetSchema) -> None:
        if self.counts["events"].rows == 0:
            raise SchemaError("tables.events: expected at least one event, found an empty table. Check its path.")
        enforce_thresholds(self.counts, schema.validation)


def _require_split(events: Sequence[int], ingested: _Ingested) -> None:
    for split, count in zip(SPLITS, events, strict=True):
        if count == 0 and split != "valid":
            numbers = ", ".join(f"{name} {number}" for name, number in zip(SPLITS, events, strict=True))
            raise SchemaError(
                f"[split]: expected events in {split}, found none ({numbers}); events run from {ingested.first} to "
                f"{ingested.last} (microseconds UTC, or the order). Move the bounds or correct the column."
            )


def checked_columns(file: SourceFile, names: Sequence[str], schema: DatasetSchema) -> pa.Schema:
    """The file's columns, having checked that it has those the job reads and that the order column can be one."""
    found = arrow_schema(file, "events")
    require_columns(found, names, file, "events")
    table = schema.tables.events
    kind = found.field(table.order_column).type if table.order_column is not None else None
    kind = kind.value_type if kind is not None and pa.types.is_dictionary(kind) else kind
    if table.time is not None and kind is not None and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise SchemaError(
            f"tables.events.time: expected a timestamp, a date or ISO text in column {table.time!r} of {file.url}, got "
            f'{kind}. Convert it, or give order = "{table.time}" in place of time.'
        )
    if table.order is not None and kind is not None and pa.types.is_temporal(kind):
        raise SchemaError(
            f"tables.events.order: expected integers in column {table.order!r} of {file.url}, got {kind}. "
            f'Give time = "{table.order}" in place of order.'
        )
    return found


def _partition_count(shards: Sequence[Shard]) -> int:
    events = sum(
        shard.rows if shard.rows is not None else shard.file.bytes // _BYTES_PER_TEXT_EVENT
        for shard in shards
        if shard.table == "events"
    )
    return min(max(-(-events // EVENTS_PER_PARTITION), 1), _MAX_PARTITIONS)


def _with_counts(schema: DatasetSchema, table: pa.Table, parts: Sequence[PartitionFacts]) -> pa.Table:
    """The items with the columns of their count features."""
    features = [feature for feature in schema.side("item") if isinstance(feature, CountFeature)]
    if not features:
        return table
    found = pa.concat_tables([part.item_counts for part in parts])
    for feature in features:
        for days in feature.window_days:
            name = count_column(feature, days)
            own = found.filter(pc.equal(found["column"], name))
            counts: npt.NDArray[np.int64] = np.zeros(len(table), np.int64)
            np.add.at(counts, np.asarray(own["row"]), np.asarray(own["count"]))
            table = table.append_column(name, pa.array(counts))
    return table


def _write_item_parts(table: pa.Table, out: Path) -> None:
    parts = max(-(-len(table) // ITEMS_PER_PART), 1)
    for part in range(parts):
        write_parquet(table.slice(part * ITEMS_PER_PART, ITEMS_PER_PART), out / "items" / part_name(part, parts))


class _Ingest(beam.DoFn):
    """(number, shard) -> (partition, reference to a spilled batch)."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: tuple[int, Shard]) -> Iterable[tuple[int, Spilled]]:
        number, shard = element
        with _reported(self._job):
            ingest = ingest_events if shard.table == "events" else ingest_users
            yield from ingest(self._job, number, shard)


class _Build(beam.DoFn):
    """(partition, references) -> nothing; writes the partition's parts and its facts."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: tuple[int, Iterable[Spilled | None]]) -> None:
        part, spilled = element
        with _reported(self._job):
            facts = build_partition(self._job, part, [one for one in spilled if one is not None])
            facts.write(Path(self._job.work) / "facts" / f"{part:05d}")


class _Encode(beam.DoFn):
    """Name of a part of items/ or users/ -> nothing; writes its encoded twin."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: str) -> None:
        folder, name = element.split("/")
        side = folder.removesuffix("s")
        out = Path(self._job.out)
        with _reported(self._job):
            vocabulary = Vocabulary.load(out / "vocabulary")
            table = pq.ParquetFile(out / element).read()
            features = self._job.schema.side(side)  # type: ignore[arg-type]
            renamed = table.rename_columns(
                [
                    self._job.schema.id_column("user") if column == "user_id" and side == "user" else column
                    for column in table.column_names
                ]
            )
            encoded = encode_table(features, vocabulary.side(side), renamed, as_of_us=self._job.as_of_us)  # type: ignore[arg-type]
            write_parquet(encoded_table(encoded, len(table)), out / f"{folder}_encoded" / name)
            write_json(element, Path(self._job.work) / "encoded" / f"{folder}-{name}.json")


_CLASSES: dict[str, type[TowerlineError]] = {kind.__name__: kind for kind in (SchemaError, ConfigError, ArtifactError)}


@contextlib.contextmanager
def _reported(job: Job) -> Iterator[None]:
    """Leaves an error of ours where the caller finds it: Beam hands back a text only, with its own trace around it."""
    try:
        yield
    except TowerlineError as err:
        path = Path(job.work) / "errors" / f"{fingerprint_of(str(err))}.json"
        write_json({"class": type(err).__name__, "message": str(err)}, path)
        raise


@contextlib.contextmanager
def _translated(work: Path) -> Iterator[None]:
    """Raises the error that a worker left instead of Beam's own."""
    try:
        yield
    except Exception as err:
        for path in sorted((work / "errors").glob("*.json")):
            left = json.loads(path.read_text())
            raise _CLASSES.get(left["class"], SchemaError)(left["message"]) from err
        raise


@contextlib.contextmanager
def _watched(run: _Run, *stages: Any) -> Iterator[None]:
    """Shows a bar for each (label, total, folder) by counting files, which works for any runner."""
    if not run.progress:
        yield
        return
    stop = threading.Event()
    triples = [stages[place : place + 3] for place in range(0, len(stages), 3)]
    bars = [tqdm(total=total, desc=label, unit="parts", leave=True) for label, total, _ in triples]

    def look() -> None:
        for bar, (_, _, folder) in zip(bars, triples, strict=True):
            path = run.work / folder
            bar.n = sum(1 for _ in path.iterdir()) if path.exists() else 0
            bar.refresh()

    def watch() -> None:
        while not stop.wait(0.5):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
        for bar in bars:
            bar.close()
