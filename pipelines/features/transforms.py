"""Transforms: the features job's two Beam pipelines.

The first reads shards and builds partitions, the second encodes parts of items and users. Only names and references go
through Beam; a worker reads and writes the files they refer to.

On this machine, a run that appends to a previous one and all encoding are done by plain threads: with little to do, the
start of the engine would take longer than the work.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipelines.contracts.encoding import encode_table
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError, TowerlineError
from pipelines.contracts.files import link, write_json, write_parquet
from pipelines.contracts.manifest import fingerprint_of
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features.encoded_before import encoded_before
from pipelines.features.ingest import Spilled, ingest_events, ingest_users
from pipelines.features.partitions import build_partition, is_due
from pipelines.features.task import Job
from pipelines.runner import beam, local_workers, new_pipeline, pipeline_options, thread_count
from pipelines.sequences.reader import encoded_table
from pipelines.tables.readers import Shard

# Folders below ``work``: a file for each task that is done.
FACTS_FOLDER, ENCODED_FOLDER, _ERRORS_FOLDER = "facts", "encoded", "errors"


def build(job: Job, shards: Sequence[Shard], beam_args: Sequence[str]) -> None:
    """Reads, checks and spills the shards, then builds every partition.

    Raises:
        SchemaError: a table cannot be read or has a user twice.
    """
    tasks_at_once = max(len(shards), job.partitions)
    threads = None if job.base is None else thread_count(beam_args, tasks_at_once)
    if threads is not None:
        _build_in_threads(job, shards, threads)
        return
    options = pipeline_options(beam_args, tasks=tasks_at_once)
    tasks: list[tuple[int, Shard | None]] = [*enumerate(shards), *((part, None) for part in range(job.partitions))]
    with _translated(Path(job.work)), new_pipeline(options) as pipeline:
        (
            pipeline
            | "List shards and partitions" >> beam.Create(tasks, reshuffle=_spread(options))
            | "Check and spill" >> beam.ParDo(_Ingest(job))
            | "Gather partitions" >> beam.GroupByKey()
            | "Build sequences" >> beam.ParDo(_Build(job))
        )


def _build_in_threads(job: Job, shards: Sequence[Shard], threads: int) -> None:
    """What the pipeline does, without an engine."""
    spilled: dict[int, list[Spilled]] = defaultdict(list)
    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(lambda pair: list(_ingested(job, *pair)), enumerate(shards)):
            for part, one in found:
                spilled[part].append(one)
        # The long ones first, so that no thread is left alone with one.
        base = job.base
        parts = sorted(range(job.partitions), key=lambda part: base is not None and not is_due(base, part))
        list(pool.map(lambda part: _build(job, part, spilled[part]), parts))


def encode(job: Job, names: Sequence[str], beam_args: Sequence[str]) -> None:
    """Encodes parts of ``items/`` and ``users/``, given by their names below the output.

    Raises:
        SchemaError: a value cannot be encoded.
    """
    threads = thread_count(beam_args, len(names))
    if threads is not None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(functools.partial(encode_part, job), names))
        return
    options = pipeline_options(beam_args, tasks=len(names))
    with _translated(Path(job.work)), new_pipeline(options) as pipeline:
        (pipeline | "List parts" >> beam.Create(list(names)) | "Encode" >> beam.ParDo(_Encode(job)))


def _spread(options: Any) -> bool:
    """Whether there are several workers, among whom the tasks must be spread."""
    return local_workers(options) != 1


class _Ingest(beam.DoFn):
    """(number, shard) -> (partition, reference to a spilled batch).

    (partition, None) passes through: a partition may get no event.
    """

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: tuple[int, Shard | None]) -> Iterable[tuple[int, Spilled | None]]:
        number, shard = element
        if shard is None:
            yield number, None
            return
        with _reported(self._job):
            yield from _ingested(self._job, number, shard)


def _ingested(job: Job, number: int, shard: Shard) -> Iterator[tuple[int, Spilled]]:
    ingest = ingest_events if shard.table == "events" else ingest_users
    return ingest(job, number, shard)


class _Build(beam.DoFn):
    """(partition, references) -> nothing; writes the partition's parts and its facts."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: tuple[int, Iterable[Spilled | None]]) -> None:
        part, spilled = element
        with _reported(self._job):
            _build(self._job, part, [one for one in spilled if one is not None])


def _build(job: Job, part: int, spilled: Sequence[Spilled]) -> None:
    build_partition(job, part, spilled).write(Path(job.work) / FACTS_FOLDER / f"{part:05d}")


class _Encode(beam.DoFn):
    """Name of a part of items/ or users/ -> nothing; writes its encoded twin."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def process(self, element: str) -> None:
        with _reported(self._job):
            encode_part(self._job, element)


def encode_part(job: Job, name: str) -> None:
    """Encodes one part of ``items/`` or ``users/``.

    Raises:
        SchemaError: a value cannot be encoded.
    """
    folder, file = name.split("/")
    target = Path(job.out) / f"{folder}_encoded" / file
    as_before = encoded_before(job, name)
    if as_before is not None:
        link(as_before, target)
        write_json({"name": name, "linked": True}, Path(job.work) / ENCODED_FOLDER / f"{folder}-{file}.json")
        return
    schema, table = job.schema, pq.ParquetFile(Path(job.out) / name).read()
    vocabulary = _vocabulary(str(Path(job.out) / "vocabulary"))
    if folder == "items":
        encoded = encode_table(schema.side("item"), vocabulary.item, table, as_of_us=job.as_of_us)
    else:
        own = schema.id_column("user")
        table = table.rename_columns([own if column == "user_id" else column for column in table.column_names])
        encoded = encode_table(schema.side("user"), vocabulary.user, table, as_of_us=job.as_of_us)
    write_parquet(encoded_table(encoded, len(table)), target)
    write_json({"name": name, "linked": False}, Path(job.work) / ENCODED_FOLDER / f"{folder}-{file}.json")


def linked_parts(work: Path) -> list[str]:
    """Names of the encoded parts that are the previous run's own."""
    done = [json.loads(path.read_text()) for path in sorted((work / ENCODED_FOLDER).glob("*.json"))]
    return [one["name"].replace("/", "_encoded/") for one in done if one["linked"]]


@functools.lru_cache(maxsize=1)
def _vocabulary(path: str) -> Vocabulary:
    """The vocabulary of a draft, which has a unique path."""
    return Vocabulary.load(Path(path))


_CLASSES: dict[str, type[TowerlineError]] = {kind.__name__: kind for kind in (SchemaError, ConfigError, ArtifactError)}


@contextlib.contextmanager
def _reported(job: Job) -> Iterator[None]:
    """Stores an error where the caller finds it: Beam returns only a text, with its own trace around it."""
    try:
        yield
    except TowerlineError as err:
        path = Path(job.work) / _ERRORS_FOLDER / f"{fingerprint_of(str(err))}.json"
        write_json({"class": type(err).__name__, "message": str(err)}, path)
        raise


@contextlib.contextmanager
def _translated(work: Path) -> Iterator[None]:
    """Raises the error that a worker left instead of Beam's own."""
    try:
        yield
    except Exception as err:
        for path in sorted((work / _ERRORS_FOLDER).glob("*.json")):
            left = json.loads(path.read_text())
            raise _CLASSES.get(left["class"], SchemaError)(left["message"]) from err
        raise
