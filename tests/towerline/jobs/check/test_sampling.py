"""What is read of many events: every file's first rows and some later ones, never more than was asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.schema import EventsTable
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.readers import plan_shards
from towerline.jobs.check import sampling
from towerline.jobs.check.sampling import Sample, choose

GROUP = 100


def table_of(folder: Path, files: int, groups: int) -> EventsTable:
    """Parquet files of some row groups of 100 rows, numbered throughout."""
    for number in range(files):
        rows = np.arange(GROUP * groups) + GROUP * groups * number
        pq.write_table(pa.table({"user": rows, "item": rows}), folder / f"{number:03d}.parquet", row_group_size=GROUP)
    return EventsTable(path=str(folder), user_id="user", item_id="item", unordered=True)


def sampled(table: EventsTable, wanted: int | None) -> tuple[Sample, tuple[SourceFile, ...], list[int]]:
    files = find_files(table, "events")
    sample = choose(files, table, plan_shards(files, table, "events"), wanted)
    rows = [
        row
        for shard in sample.shards
        for batch in sample.batches(shard, table, ["user"], {})
        for row in batch.table["user"].to_pylist()
    ]
    return sample, files, rows


def test_few_events_are_read_whole(tmp_path: Path) -> None:
    sample, _, rows = sampled(table_of(tmp_path, 2, 3), None)
    assert (sample.is_whole, sample.events, rows) == (True, 600, list(range(600)))


def test_a_sample_has_the_first_rows_of_every_file_and_some_later_ones(tmp_path: Path) -> None:
    sample, files, rows = sampled(table_of(tmp_path, 3, 20), 600)
    assert (sample.is_whole, sample.events) == (False, 6_000)
    assert len(rows) == len(set(rows))
    assert 500 <= len(rows) <= 700
    for number in range(len(files)):
        own = [row for row in rows if row // (20 * GROUP) == number]
        assert own[0] == 20 * GROUP * number
        assert max(own) >= 20 * GROUP * number + 10 * GROUP, "rows of the second half"


def test_of_more_files_than_places_some_are_read(tmp_path: Path) -> None:
    sample, _, rows = sampled(table_of(tmp_path, 100, 1), 640)
    assert len(sample.shards) == 64
    assert len(rows) == 640
    assert {0, 99 * GROUP} <= set(rows)


def test_the_size_of_text_files_is_estimated(tmp_path: Path) -> None:
    """40 bytes are taken for an event."""
    lines = [f"{'u' * 36},{row:02d}" for row in range(50)]
    (tmp_path / "events.csv").write_text("\n".join(["user,item", *lines]) + "\n")
    table = EventsTable(path=str(tmp_path / "events.csv"), user_id="user", item_id="item", unordered=True)
    assert sampled(table, None)[0].events == 50
    assert not sampled(table, 10)[0].is_whole


@pytest.mark.parametrize(("events", "read"), [(5_000_000, 5_000_000), (5_000_001, 2_000_000)])
def test_above_five_million_events_two_are_sampled(events: int, read: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "events_in", lambda _: events)
    monkeypatch.setattr(sampling, "plan_shards", lambda *_, **__: [shard] * 64)
    shard = sampling.Shard("events", SourceFile("e.parquet", "parquet", 1), (0,), 0, events)
    table = EventsTable(path="e.parquet", user_id="user", item_id="item", unordered=True)
    sample = choose([shard.file], table, [shard], None)
    assert (sample.is_whole, sample.events) == (read == events, events)
    if not sample.is_whole:
        assert sample.rows_per_shard == -(-read // 64)
