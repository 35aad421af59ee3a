"""Sampling: which shards of the events are read where reading all would take long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.schema import EventsTable
from pipelines.features.planning import events_in
from pipelines.tables.files import SourceFile
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.readers import Shard, plan_shards, read_shard

# Events up to which all are read, and the size of the sample above.
ALL_EVENTS = 5_000_000
SAMPLED_EVENTS = 2_000_000
# Places in the table that a sample is read from, the first rows of each file before others.
_MOST_SHARDS = 64


@dataclass(frozen=True)
class Sample:
    """What is read of the events.

    shards: where. rows_per_shard: most rows read of each; None reads all. events: how many the table has, counted or,
    for text files, estimated.
    """

    shards: tuple[Shard, ...]
    rows_per_shard: int | None
    events: int

    @property
    def is_whole(self) -> bool:
        """Whether everything is read."""
        return self.rows_per_shard is None

    def batches(
        self, shard: Shard, table: EventsTable, columns: Sequence[str], types: Mapping[str, ColumnType]
    ) -> Iterator[TableBatch]:
        """The batches of one of the shards, until its share of the sample is read.

        Args:
            shard: one of ``shards``.
            table: how its text files are written.
            columns: to read.
            types: of the columns.

        Raises:
            SchemaError: the file cannot be read.
        """
        left = self.rows_per_shard
        if left is None:
            yield from read_shard(shard, table, columns, types)
            return
        for batch in read_shard(shard, table, columns, types, rows_per_batch=left):
            yield batch
            left -= batch.rows
            if left <= 0:
                return


def choose(files: Sequence[SourceFile], table: EventsTable, shards: Sequence[Shard], wanted: int | None) -> Sample:
    """Chooses what to read.

    Args:
        files: of the events.
        table: how its text files are written.
        shards: the files, cut for a whole run.
        wanted: events to read at most; None reads all up to 5 M events, and 2 M of more.

    Raises:
        SchemaError: a Parquet footer cannot be read.
    """
    total = sum(events_in(shard) for shard in shards)
    most = (ALL_EVENTS if total <= ALL_EVENTS else SAMPLED_EVENTS) if wanted is None else wanted
    if total <= most:
        return Sample(tuple(shards), None, total)
    counted = [file for file in files if file.format == "parquet"]
    cut = plan_shards(counted, table, "events", rows_per_shard=max(most // _MOST_SHARDS, 1))
    cut += [shard for shard in shards if shard.rows is None]
    chosen = _first_of_files(cut) + _spread(_later(cut), _MOST_SHARDS)
    chosen = sorted(chosen[:_MOST_SHARDS], key=cut.index)
    return Sample(tuple(chosen), -(-most // len(chosen)), total)


def _first_of_files(shards: Sequence[Shard]) -> list[Shard]:
    return _spread([shard for shard in shards if shard.first_row == 0], _MOST_SHARDS)


def _later(shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if shard.first_row > 0]


def _spread(shards: Sequence[Shard], most: int) -> list[Shard]:
    """Evenly spaced ones, the last among them."""
    if len(shards) <= most:
        return list(shards)
    return [shards[place * (len(shards) - 1) // (most - 1)] for place in range(most)]
