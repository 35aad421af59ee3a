"""Planning: what a run of the features job is to do, told from the tables' footers and the previous run.

Reads footers, the items table and the previous artifact's manifest; writes the tables that workers need below ``work``,
and the rejects that are taken over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipelines.contracts.files import write_parquet
from pipelines.contracts.schema import CountFeature, DatasetSchema
from pipelines.contracts.vocabulary import as_array
from pipelines.features.increment import Decision, Previous, decide, kept_rejects, remap, unfit
from pipelines.features.task import Base, Job, write_catalogue, write_forgotten, write_remap, write_users_schema
from pipelines.inputs import Inputs, Survey, as_of_us, catalogue_of
from pipelines.sequences.segments import Layout
from pipelines.tables.catalogue import Items
from pipelines.tables.conversion import as_ids
from pipelines.tables.event_checks import moment
from pipelines.tables.readers import Shard

# Below the artifact: the previous run's rejects of events.
KEPT_REJECTS = Path("rejects") / "events-000000.parquet"


@dataclass(frozen=True)
class Plan:
    """What is to be done: the job, its shards, the catalogue, and the previous run it appends to, if any."""

    job: Job
    shards: list[Shard]
    items: Items
    inputs: Inputs
    decision: Decision
    forgotten: pa.Array | None
    remap: pa.Array | None

    @property
    def counted_before(self) -> Previous | None:
        """The previous run, where its counts go into this one's."""
        return None if self.job.base is None or self.job.base.recount else self.decision.previous


@dataclass(frozen=True)
class Planner:
    """Looks at the tables and at the previous run, and lays out below ``work`` what workers need.

    ``out`` is the artifact being written; ``forget`` are ids of users of whom nothing may stay.
    """

    schema: DatasetSchema
    inputs: Inputs
    out: Path
    work: Path
    forget: Sequence[int | str]

    def plan(self, directory: Path | None, partitions: int | None) -> Plan:
        """Plans a run.

        Args:
            directory: the previous run's artifact, if any.
            partitions: number of user partitions; from the input's size where None.

        Raises:
            SchemaError: a table cannot be read or lacks a column, a column has a wrong type, an item id stands twice.
        """
        survey = Survey.of(self.schema, self.inputs)
        decision = decide(directory, self.schema, self.inputs.events)
        items = catalogue_of(self.schema, self.inputs, survey, decision.previous)
        user_type = str(survey.user_type)
        if decision.previous is not None:
            reason = unfit(decision.previous, items.ids, user_type, survey.partitions, partitions)
            if reason is not None:
                decision = Decision(None, reason)
                items = items if self.inputs.items else catalogue_of(self.schema, self.inputs, survey, None)
        previous = decision.previous
        job = Job(
            schema_json=self.schema.model_dump_json(),
            out=str(self.out),
            work=str(self.work),
            partitions=partitions or survey.partitions,
            user_type=user_type,
            as_of_us=as_of_us(self.schema, survey, previous),
        )
        forgotten = self._forgotten(survey.user_type)
        rows = None if previous is None else remap(previous.vocabulary.item_ids, items.ids)
        if previous is not None:
            job = self._upon(job, previous, forgotten)
        write_catalogue(items.ids, self.work)
        if survey.users_schema is not None:
            write_users_schema(survey.users_schema, self.work)
        if forgotten is not None:
            write_forgotten(forgotten, self.work)
        if rows is not None:
            write_remap(rows, self.work)
        shards = [*survey.new_events(previous), *survey.users]
        return Plan(job, shards, items, self.inputs, decision, forgotten, rows)

    def _forgotten(self, user_type: pa.DataType) -> pa.Array | None:
        if not self.forget:
            return None
        return as_ids(as_array([str(user) for user in self.forget]), user_type).values.drop_null()

    def _upon(self, job: Job, previous: Previous, forgotten: pa.Array | None) -> Job:
        """The job of a run that appends to a previous one; its rejects are taken over."""
        rejects = kept_rejects(previous.dir, forgotten, self.schema.tables.events.user_id)
        if len(rejects):
            write_parquet(rejects, self.out / KEPT_REJECTS)
        split = self.schema.split
        bounds = None
        if previous.bounds_moved and split.valid_from is not None and split.test_from is not None:
            bounds = (moment(split.valid_from), moment(split.test_from))
        counts = any(isinstance(feature, CountFeature) for side in self.schema.features for feature in side[1])
        moved = job.as_of_us != previous.facts["as_of_us"] or not previous.same_features
        base = Base(
            dir=str(previous.dir),
            generation=Layout.read(previous.dir / "sequences").generation + 1,
            last_time=previous.facts["last_time"],
            recount=bounds is not None or forgotten is not None or split.leave_last_out or (counts and moved),
            bounds=bounds,
        )
        return dataclasses.replace(
            job,
            partitions=previous.partitions,
            first_shard=int(previous.facts["shards"]) + 1,
            late_before_us=previous.late_before(self.schema),
            base=base,
        )
