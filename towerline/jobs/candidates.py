"""Candidates for all users: ``towerline candidates``.

Reads the published version and a table of users (the bundle's own, or raw records in Parquet); writes Parquet parts
with user_id, rank (1 is the best), item_id, score. A Beam job: one element is a slice of users; the retriever is
opened once per process, with the same version in every worker.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.utils.shared import Shared

from index.inference.user_records import records_of
from index.registry.bundle import USERS_FILE
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import write_artifact
from pipelines.progress import SILENT, Progress, files_in
from pipelines.runner import new_pipeline, pipeline_options

KIND = "candidates"
# Users per element: a few seconds of work.
_ELEMENT_USERS = 1 << 14
# Users whose records are in memory as Python objects at once.
_BATCH_USERS = 1024


@dataclass(frozen=True)
class UserRows:
    """Rows ``start`` to ``end`` of the users' table; ``part`` numbers the element."""

    part: int
    start: int
    end: int


def run(
    registry: str,
    out: Path,
    *,
    k: int = 100,
    users: Path | None = None,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Path:
    """Retrieves candidates for every user and returns ``out``.

    Args:
        registry: a folder or an fsspec URL; the version that is live now answers all users.
        out: an artifact with ``candidates/part-NNNNN-of-NNNNN.parquet``.
        k: candidates per user.
        users: a Parquet file of raw records (``user_id``, features, ``history`` ..); None is the bundle's own users.
        beam_args: options of Beam; none means the runner inside this process.
        progress: shows the parts that are written.

    Raises:
        ArtifactError: nothing is published, or the bundle has no users and none are given.
        SchemaError: a record does not fit the schema, or ``users`` has no user_id.
    """
    opened = Registry(registry).open()
    source = users if users is not None else opened.bundle.dir / USERS_FILE
    elements = list(plan(source))
    inputs = {"bundle": opened.bundle.manifest.fingerprint}
    config = {"version": opened.version, "k": k, "users": str(users) if users is not None else None}
    with write_artifact(out, kind=KIND, inputs=inputs, config=config) as draft:
        folder = draft.dir / "candidates"
        folder.mkdir()
        job = RetrieveCandidates(registry, opened.version, source, folder, k, len(elements))
        with (
            progress.bar(len(elements), "candidates", "parts", count=files_in(folder)),
            new_pipeline(pipeline_options(beam_args)) as pipeline,
        ):
            _ = (
                pipeline
                | "List users" >> beam.Create(elements)
                | "Spread over workers" >> beam.Reshuffle()
                | "Retrieve candidates" >> beam.ParDo(job)
            )
        draft.facts.update(users=elements[-1].end if elements else 0, version=opened.version)
    return out


def plan(users: Path) -> Iterator[UserRows]:
    """Cuts the users' table into elements.

    Raises:
        ArtifactError: there is no such table.
        SchemaError: it has no column user_id.
    """
    if not users.is_file():
        raise ArtifactError(
            f"{users}: expected a table of users, found none. Build with index.include_users = true, or give --users."
        )
    if "user_id" not in pq.read_schema(users).names:
        raise SchemaError(f"{users}: expected a column user_id, found {', '.join(pq.read_schema(users).names)}.")
    total = pq.read_metadata(users).num_rows
    for part, start in enumerate(range(0, total, _ELEMENT_USERS)):
        yield UserRows(part, start, min(total, start + _ELEMENT_USERS))


class RetrieveCandidates(beam.DoFn):
    """Answers an element's users and writes them to a file of their own, completely or not at all."""

    def __init__(self, registry: str, version: str, users: Path, folder: Path, k: int, parts: int) -> None:
        self._registry = registry
        self._version = version
        self._users = users
        self._folder = folder
        self._k = k
        self._parts = parts
        self._shared = Shared()

    def setup(self) -> None:
        """Opens the retriever, once per process."""
        tag = f"{self._registry}/{self._version}"
        self._retriever = self._shared.acquire(lambda: Retriever.open(self._registry, self._version), tag=tag)

    def process(self, element: UserRows) -> None:
        """Writes ``part-NNNNN-of-NNNNN.parquet``."""
        table = pq.read_table(self._users).slice(element.start, element.end - element.start)
        target = self._folder / f"part-{element.part:05d}-of-{self._parts:05d}.parquet"
        aside = self._folder / f".{element.part}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
        writer: pq.ParquetWriter | None = None
        for start in range(0, len(table), _BATCH_USERS):
            answered = self._answer(table.slice(start, _BATCH_USERS))
            writer = writer or pq.ParquetWriter(aside, answered.schema, compression="zstd")
            writer.write_table(answered)
        if writer is not None:
            writer.close()
            os.replace(aside, target)

    def _answer(self, users: pa.Table) -> pa.Table:
        records = records_of(users)
        return candidate_table(users["user_id"].combine_chunks(), self._retriever.retrieve_batch(records, self._k))


def candidate_table(user_ids: pa.Array, answers: Sequence[Candidates]) -> pa.Table:
    """One row per candidate: user_id, rank from 1, item_id, score; users in the given order, best first."""
    counts = np.array([len(answer) for answer in answers], np.int64)
    users = np.repeat(np.arange(len(answers)), counts)
    ends = np.cumsum(counts)
    ranks = np.arange(counts.sum()) - np.repeat(ends - counts, counts) + 1
    item_ids: Any = np.concatenate([answer.item_ids for answer in answers])
    scores = np.concatenate([answer.scores for answer in answers])
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(users)),
            "rank": pa.array(ranks.astype(np.int32)),
            "item_id": pa.array(item_ids),
            "score": pa.array(scores),
        }
    )
