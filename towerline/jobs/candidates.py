"""Candidates for all users: ``towerline candidates``.

Reads the published version and a table of users (the bundle's own, or ids and raw records in any format); writes
Parquet parts with user_id, known (whether the tables have the user), rank (1 is the best), item_id, score, source,
cold_start (null if none) and version. A Beam job: one element is a slice of users; the retriever is
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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from apache_beam.utils.shared import Shared

from index.inference.user_records import records_of
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import write_artifact
from pipelines.progress import SILENT, Progress, files_in
from pipelines.runner import new_pipeline, pipeline_options
from towerline.jobs.batch_users import UserCounts, write_user_records

KIND = "candidates"
# Below the draft while the job runs: the records of the users that were asked for.
_RECORDS = ".records.parquet"
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
    users: Any = None,
    beam_args: Sequence[str] = (),
    progress: Progress = SILENT,
) -> Path:
    """Retrieves candidates for every user and returns ``out``.

    Args:
        registry: a folder or an fsspec URL; the version that is live now answers all users.
        out: an artifact with ``candidates/part-NNNNN-of-NNNNN.parquet``.
        k: candidates per user.
        users: ids or raw records (``user_id``, features, ``history`` ..): a file, folder, glob or URL, or anything with
            ``__arrow_c_stream__``; None is the bundle's own users.
        beam_args: options of Beam; none means the runner inside this process.
        progress: shows the parts that are written.

    Raises:
        ArtifactError: nothing is published, or the bundle has no users and none are given.
        SchemaError: ``users`` cannot be read, or holds rows that cannot.
    """
    opened = Registry(registry).open()
    inputs = {"bundle": opened.bundle.manifest.fingerprint}
    named = str(users) if isinstance(users, str | Path) else None
    config = {"version": opened.version, "k": k, "users": named}
    with write_artifact(out, kind=KIND, inputs=inputs, config=config) as draft:
        folder, records = draft.dir / "candidates", draft.dir / _RECORDS
        folder.mkdir()
        if users is None:
            stored = own_users(opened.bundle)
            counts = UserCounts(stored.num_rows, stored.num_rows)
        else:
            with progress.waiting("reading users"):
                counts = write_user_records(users, opened.bundle, records, _ELEMENT_USERS, progress)
        elements = list(plan(counts.users))
        source = None if users is None else records
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
        records.unlink(missing_ok=True)
        draft.facts.update(
            version=opened.version,
            users=counts.users,
            known=counts.known,
            unknown=counts.users - counts.known,
            cold=_cold_users(folder),
        )
    return out


def own_users(bundle: Bundle) -> pa.Table:
    """The bundle's users.

    Raises:
        ArtifactError: it was built without.
    """
    if bundle.users is None:
        raise ArtifactError(
            f"{bundle.dir}: expected a table of users, found none. Build with index.include_users = true, or give "
            "--users."
        )
    return bundle.users


def _cold_users(folder: Path) -> int:
    """Users who were answered without history, from their first candidates."""
    cold = 0
    for part in folder.glob("part-*.parquet"):
        table = pq.ParquetFile(part).read(columns=["rank", "cold_start"])
        cold += int(pc.sum(pc.and_(pc.equal(table["rank"], 1), table["cold_start"].is_valid())).as_py() or 0)
    return cold


def plan(users: int) -> Iterator[UserRows]:
    """Cuts a table of users into elements."""
    for part, start in enumerate(range(0, users, _ELEMENT_USERS)):
        yield UserRows(part, start, min(users, start + _ELEMENT_USERS))


class RetrieveCandidates(beam.DoFn):
    """Answers an element's users and writes them to a file of their own, completely or not at all."""

    def __init__(self, registry: str, version: str, users: Path | None, folder: Path, k: int, parts: int) -> None:
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
        table = self._rows(element)
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

    def _rows(self, element: UserRows) -> pa.Table:
        """The element's records. A table that was asked for has a row group for each element."""
        if self._users is None:
            own = own_users(self._retriever.bundle).slice(element.start, element.end - element.start)
            return own.append_column("known", pa.repeat(True, len(own)))
        reader = pq.ParquetFile(self._users)
        firsts = np.cumsum([0, *(reader.metadata.row_group(n).num_rows for n in range(reader.num_row_groups))])
        groups = [n for n in range(reader.num_row_groups) if firsts[n] < element.end and firsts[n + 1] > element.start]
        return reader.read_row_groups(groups).slice(element.start - int(firsts[groups[0]]), element.end - element.start)

    def _answer(self, users: pa.Table) -> pa.Table:
        answers = self._retriever.retrieve_batch(records_of(users.drop_columns("known")), self._k)
        kind = self._retriever.bundle.vocabulary.item_ids.type
        return candidate_table(users.select(["user_id", "known"]), answers, kind)


def candidate_table(users: pa.Table, answers: Sequence[Candidates], item_id: pa.DataType) -> pa.Table:
    """One row per candidate, users in the given order, best first; see the module for the columns.

    Args:
        users: ``user_id`` and ``known`` of each answer.
        answers: as many.
        item_id: type of the catalogue's ids, also where nobody has a candidate.
    """
    counts = np.array([len(answer) for answer in answers], np.int64)
    owners = np.repeat(np.arange(len(answers)), counts)
    ends = np.cumsum(counts)
    ranks = np.arange(counts.sum()) - np.repeat(ends - counts, counts) + 1
    item_ids: Any = np.concatenate([answer.item_ids for answer in answers])
    of_user = pa.table(
        {
            **{name: users[name] for name in ("user_id", "known")},
            "cold_start": pa.array([answer.cold_start for answer in answers], pa.string()),
            "version": pa.array([answer.version for answer in answers], pa.string()),
        }
    ).take(pa.array(owners))
    return pa.table(
        {
            "user_id": of_user["user_id"],
            "known": of_user["known"],
            "rank": pa.array(ranks.astype(np.int32)),
            "item_id": pa.array(item_ids, item_id),
            "score": pa.array(np.concatenate([answer.scores for answer in answers])),
            "source": pa.array(np.concatenate([answer.sources for answer in answers])),
            "cold_start": of_user["cold_start"],
            "version": of_user["version"],
        }
    )
