"""The features job: raw tables to ``features/``, on Beam.

Reads the tables of the schema; writes an artifact of kind ``features``: sequences, items, users, their encoded twins,
vocabulary and rejects. The data's way, one module per step: ``planning`` looks at the tables and the previous run (with
``increment``); ``ingest`` checks shards and spills them by user; ``partitions`` groups the events of one partition;
``totals`` adds up what the partitions counted; ``fitting`` fits the vocabulary on the train window; ``encoding``
applies it, except where ``encoded_before`` finds the previous run's; ``drift`` compares with the previous run.
``transforms`` is the part that runs on Beam.
"""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.contracts.files import write_arrow, write_parquet
from pipelines.contracts.manifest import Draft, read_manifest, write_artifact
from pipelines.contracts.schema import SPLITS, DatasetSchema
from pipelines.contracts.schema.window import WINDOW_FACT
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.drafts import sweep
from pipelines.features import transforms
from pipelines.features.duplicates import DUPLICATE, without_older
from pipelines.features.fitting import fit, summarise
from pipelines.features.planning import FILES_FACT, KEPT_REJECTS, FeaturesPlan, FeaturesPlanner, Inputs
from pipelines.features.reporting import drift
from pipelines.features.reporting.found_joins import joins_of
from pipelines.features.task import SHARDS_FOLDER, roll_of
from pipelines.features.totals import (
    HELD_OUT_FILE,
    Ingested,
    PartitionFacts,
    events_by_split,
    item_frequency,
    item_held_out,
    new_items,
    require_split,
    with_item_counts,
)
from pipelines.progress import SILENT, Progress, files_in
from pipelines.runner import thread_count
from pipelines.sequences.reader import part_name
from pipelines.sequences.segments import Layout, Partition, carry_rows, generation_of
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.erasure.kept_list import NOBODY, Erasure, kept_list, write_copy
from pipelines.tables.erasure.reject_traces import without_texts
from pipelines.tables.fingerprints import remembered
from pipelines.tables.rejects.checks import counts_by_reason
from pipelines.tables.rejects.thresholds import examples_in

__all__ = ["FORMAT_VERSION", "KIND", "Inputs", "roll_of", "run"]

KIND = "features"
FORMAT_VERSION = 1
ITEMS_PER_PART = 250_000
_WORK = ".work"


def run(
    schema: DatasetSchema,
    out: Path,
    beam_args: Sequence[str] = (),
    *,
    progress: Progress = SILENT,
    partitions: int | None = None,
    previous: Path | None = None,
    forget: ForgetList = NOBODY,
    remember: ForgetList = NOBODY,
    delta_sequence: int = 0,
    as_of: datetime.datetime | None = None,
    whole: bool = False,
    now: datetime.datetime | None = None,
) -> Path:
    """Writes the features of a data set to ``out`` and returns it.

    Args:
        schema: the data set's.
        out: the artifact's directory, on a file system that all workers see.
        beam_args: for Beam, unchanged.
        progress: shows the tables being read and the partitions and encoded files being written.
        partitions: number of user partitions; from the input's size where None.
        previous: an earlier run's artifact (it may be ``out`` itself): only files of events that it has not read are
            read, and the result equals that of a full run; the manifest says under ``increment`` whether it
            could be used, and else why not. Events older than ``validation.late_days`` before its newest are rejected.
            Drift since then is recorded under ``drift``.
        forget: users to erase: no event, row, count, value or reject of theirs is kept, in this run and in every later
            one. The artifact keeps salted digests of their ids; ``out`` and ``previous`` are searched for such a list.
        remember: users to take off that list; all files are read again then.
        delta_sequence: number of the last change of ads that was made before the tables are read; kept as a fact, so
            that later changes are applied to what is made of these features.
        as_of: rolling windows: the midnight (UTC) where the test part ends, or a moment of the day after; no event
            from then on is used. None: the first midnight after the newest accepted event.
        whole: rolling windows: all events up to the end are train, and none is held out. With ``previous`` the events
            and the end are that run's, and the manifest names it as the only input.
        now: the moment the run begins; events after its day do not move the windows, and are not used. None: the clock.

    Raises:
        SchemaError: a table cannot be read or lacks a column, a column has a wrong type, an item id appears twice,
            too many rows were rejected, there are no events, the split leaves train or test empty, a line of
            ``forget`` or ``remember`` is no user id, or the data have drifted and ``validation.drift`` is ``fail``.
        ConfigError: ``beam_args`` name no runner, or ``as_of`` or ``whole`` is given and the windows do not roll.
        ArtifactError: the list of users forgotten earlier cannot be read.
    """
    thread_count(beam_args, 1)  # Refuses what Beam cannot read, before any work.
    roll = roll_of(schema, as_of, now, whole=whole, previous=previous)
    inputs = Inputs.find(schema, previous, out)
    fingerprints = inputs.fingerprints()
    if whole and previous is not None:
        inputs, fingerprints = inputs.read_by(previous), {KIND: read_manifest(previous).fingerprint}
    config = schema.model_dump(mode="json")
    erasure = Erasure(_kept(out, previous), forget, remember)
    with (
        progress.waiting("features"),
        write_artifact(out, kind=KIND, format_version=FORMAT_VERSION, inputs=fingerprints, config=config) as draft,
    ):
        work = draft.dir / _WORK
        work.mkdir()
        before = None if whole else drift.Before.read(previous)
        plan = FeaturesPlanner(schema, inputs, draft.dir, work, erasure, roll).plan(previous, partitions)
        write_copy(plan.erasure.forgotten, out)
        facts = _Assembler(plan, draft, tuple(beam_args), progress).write(before)
        draft.facts.update(facts, delta_sequence=delta_sequence)
    return out


def _kept(out: Path, previous: Path | None) -> Forgotten:
    """Everyone forgotten in the artifact that is replaced and in the one that is appended to."""
    sweep(out)
    kept = Forgotten.empty()
    for artifact in dict.fromkeys([out] if previous is None else [out, previous]):
        kept = kept.joined(kept_list(artifact))
    return kept


@dataclass(frozen=True)
class _Assembler:
    """Runs the job and puts the artifact together."""

    plan: FeaturesPlan
    draft: Draft
    beam_args: tuple[str, ...]
    progress: Progress

    @property
    def _schema(self) -> DatasetSchema:
        return self.plan.job.schema

    @property
    def _work(self) -> Path:
        return Path(self.plan.job.work)

    def write(self, before: drift.Before | None) -> dict[str, Any]:
        """Writes all below the draft and returns the facts."""
        job, items = self.plan.job, self.plan.items
        self._build()
        parts = [PartitionFacts.read(self._work / transforms.FACTS_FOLDER / f"{p:05d}") for p in range(job.partitions)]
        now = Ingested.read(self._work / SHARDS_FOLDER, items)
        duplicates = sum(part.duplicates for part in parts)
        rejecting = self._schema.validation.duplicates == "reject"
        now = now.with_duplicates(duplicates) if rejecting else now
        ingested = self._after(now)
        if job.window is not None:
            ingested = ingested.in_window(job.window, job.days)
        if len(items.rejects):
            rejects = without_texts(items.rejects, self.plan.erasure.forgotten)
            write_parquet(rejects, self.draft.dir / "rejects" / "items.parquet")
        ingested.require_fit(self._schema, examples_in(self.draft.dir / "rejects"))
        events = events_by_split(parts, self.plan.counted_before)
        joins = joins_of(self.plan, parts, sum(events))
        joins.require(self._schema)
        require_split(events, ingested, job.window)
        vocabulary = self._fit(parts)
        nulls = self._nulls(parts)
        days = now.days if job.window is None else drift.used_days(job.days, job.window)
        profile = drift.Profile({"events": _event_nulls(now), **nulls}, days, vocabulary)
        drifted = drift.report(before, profile, self._schema.validation)
        self._encode()
        self._lay_out(parts, now.days)
        (self.draft.dir / "schema.json").write_text(self._schema.model_dump_json(indent=1))
        if rejecting:
            duplicates = ingested.counts["events"].rejects.get(DUPLICATE, 0)
        elif self.plan.counted_before is not None:
            duplicates += int(self.plan.counted_before.facts["duplicates"])
        counts: dict[str, int] = {
            "events": sum(events),
            "users": sum(part.users for part in parts),
            "items": len(items.table),
            "items_in_train": int((vocabulary.item_frequency > 0).sum()),
            **dict(zip(SPLITS, events, strict=True)),
        }
        found = now.found.union(*(part.found for part in parts))
        return {
            "counts": counts,
            "new_in_test": {
                "users": sum(part.new_users for part in parts),
                "items": new_items(vocabulary.item_frequency, self._held_out(parts)),
            },
            "unknown": {side: vars(unknown) for side, unknown in joins.unknown.items()},
            "joined": joins.share,
            "duplicates": duplicates,
            "drift": drifted,
            "forgotten": self.plan.erasure.facts(found),
            **self._facts(ingested, nulls),
        }

    def _build(self) -> None:
        shards, facts = (self._work / name for name in (SHARDS_FOLDER, transforms.FACTS_FOLDER))
        with (
            self.progress.bar(len(self.plan.shards), "reading", "parts", count=files_in(shards)),
            self.progress.bar(self.plan.job.partitions, "building", "parts", count=files_in(facts)),
        ):
            transforms.build(self.plan.job, self.plan.shards, self.beam_args)

    def _encode(self) -> None:
        out = self.draft.dir
        names = [f"{side}/{path.name}" for side in ("items", "users") for path in sorted((out / side).glob("part-*"))]
        encoded = files_in(self._work / transforms.ENCODED_FOLDER)
        with self.progress.bar(len(names), "encoding", "parts", count=encoded):
            transforms.encode(self.plan.job, names, self.beam_args)
        previous = self.plan.decision.previous
        if previous is not None:
            self.draft.carried.update({name: previous.files[name] for name in transforms.linked_parts(self._work)})

    def _after(self, now: Ingested) -> Ingested:
        """Adds the previous run's counts, if this run appends to it."""
        previous = self.plan.decision.previous
        if previous is None:
            return now
        job = self.plan.job
        if job.base is None or not (job.base.forgets or job.window is not None):
            return now.after(previous.facts, None)
        path = self.draft.dir / KEPT_REJECTS
        if not path.exists():
            return now.after(previous.facts, {})
        kept = pq.ParquetFile(path).read()
        if job.window is not None and job.window.history_from is not None:
            kept = without_older(kept, job.window.history_from)
            write_parquet(kept, path)
        return now.after(previous.facts, counts_by_reason(kept))

    def _fit(self, parts: Sequence[PartitionFacts]) -> Vocabulary:
        items, before, rows = self.plan.items, self.plan.counted_before, self.plan.remap
        frequency = item_frequency(len(items.table), parts, before, rows)
        table = with_item_counts(self._schema, items.table, parts, before, rows)
        _write_item_parts(table, self.draft.dir)
        features = self._schema.side("item")
        summary = summarise(features, table, items.ids, frequency, self.plan.job.as_of_us)
        vocabulary = Vocabulary(
            user=fit(self._schema.side("user"), [part.summary for part in parts]),
            item=fit(features, [summary]),
            item_ids=items.ids,
            item_frequency=frequency,
        )
        vocabulary.save(self.draft.dir / "vocabulary")
        return vocabulary

    def _held_out(self, parts: Sequence[PartitionFacts]) -> pa.Table:
        """Each item's events in valid and test; written for a run that appends to this one."""
        plan = self.plan
        held_out = item_held_out(len(plan.items.table), parts, plan.counted_before, plan.remap)
        write_arrow(held_out, self.draft.dir / HELD_OUT_FILE)
        return held_out

    def _nulls(self, parts: Sequence[PartitionFacts]) -> dict[str, Any]:
        """Rows and nulls by column of the items and the users."""
        table = self.plan.items.table
        nulls: dict[str, Any] = {
            "items": {"rows": len(table), "columns": {name: table[name].null_count for name in table.column_names}},
        }
        if self.plan.inputs.users is not None:
            columns: Counter[str] = Counter()
            for part in parts:
                columns.update(part.nulls)
            nulls["users"] = {"rows": sum(part.profiles for part in parts), "columns": dict(columns)}
        return nulls

    def _lay_out(self, parts: Sequence[PartitionFacts], days: Iterable[int]) -> None:
        """Writes what the names of the files in ``sequences/`` do not say, if the run appended to a previous one.

        ``days``: of this run's new events, since the epoch.
        """
        base, previous, window = self.plan.job.base, self.plan.decision.previous, self.plan.job.window
        if base is None or previous is None:
            if window is not None:
                Layout(window=window).write(self.draft.dir / "sequences")
            return
        after, before = self.draft.dir / "sequences", previous.dir / "sequences"
        partitions = zip(Partition.list(before), parts, strict=True)
        kept_partitions = [partition for partition, part in partitions if not part.rewritten]
        kept = [name for partition in kept_partitions for name in partition.names]
        appended = {generation_of(name) for partition in kept_partitions for name in partition.names[1:]}
        layout = Layout.read(before)
        rows = None if self.plan.remap is None else np.asarray(self.plan.remap, np.int32)
        catalogue, files = carry_rows(before, after, layout, rows, kept)
        Layout(
            generation=base.generation,
            catalogue=catalogue,
            files=files,
            bounds=layout.bounds if base.bounds is None else base.bounds,
            last_out=self._schema.split.leave_last_out,
            window=window,
            days={
                **{number: layout.days[number] for number in appended & layout.days.keys()},
                base.generation: list(days),
            },
        ).write(after)
        linked = [f"sequences/{name}" for partition in kept_partitions for name in partition.files]
        self.draft.carried.update({name: previous.files[name] for name in linked})

    def _facts(self, ingested: Ingested, nulls: dict[str, Any]) -> dict[str, Any]:
        """The other facts of the manifest."""
        job, decision = self.plan.job, self.plan.decision
        rolling = {} if job.window is None else {WINDOW_FACT: job.window.model_dump()}
        return {
            **rolling,
            "tables": {name: {"rows": count.rows, "rejects": count.rejects} for name, count in ingested.counts.items()},
            "nulls": {"events": _event_nulls(ingested), **nulls},
            "days": {str(day): count for day, count in sorted(ingested.days.items())},
            "dropped_after_test_until": ingested.dropped,
            "multi_line": ingested.multi_line,
            "first_time": ingested.first,
            "last_time": ingested.last,
            "as_of_us": job.as_of_us,
            "partitions": job.partitions,
            "user_type": str(job.id_type),
            "shards": job.first_shard + len(self.plan.shards),
            FILES_FACT: remembered(self.plan.inputs.all),
            "event_files": [file.fingerprint for file in self.plan.inputs.events],
            "increment": {"used": decision.previous is not None, "reason": decision.reason},
            "split": self._schema.split.model_dump(mode="json"),
        }


def _event_nulls(ingested: Ingested) -> dict[str, Any]:
    return {"rows": ingested.counts["events"].rows, "columns": ingested.nulls}


def _write_item_parts(table: pa.Table, out: Path) -> None:
    parts = max(-(-len(table) // ITEMS_PER_PART), 1)
    for part in range(parts):
        write_parquet(table.slice(part * ITEMS_PER_PART, ITEMS_PER_PART), out / "items" / part_name(part, parts))
