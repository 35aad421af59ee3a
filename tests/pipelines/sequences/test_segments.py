"""Nightly runs on top of each other: what is read equals a full run, whatever was appended or rewritten."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact
from pipelines.features import job as features
from pipelines.features import partitions
from pipelines.sequences.grouping import Grouped, gather, group_events, merge, places_of, union_ids
from pipelines.sequences.reader import Sequences
from pipelines.sequences.segments import Layout, Partition
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, at, raw_schema, schema_of, write_rows
from tests.pipelines.features.test_increment import facts_of, used
from tests.pipelines.features.test_job import content

Change = Callable[[dict[str, Any], int], None]
NIGHTS = 5
PARTS = 2


def as_it_is(raw: dict[str, Any], night: int) -> None:
    """The same configuration every night."""


def bounds_on_the_second_night(raw: dict[str, Any], night: int) -> None:
    if night >= 2:
        raw["split"] = {"valid_from": "2025-01-15", "test_from": "2025-01-22"}


def duplicates_rejected(raw: dict[str, Any], night: int) -> None:
    raw["validation"]["duplicates"] = "reject"


def last_out(raw: dict[str, Any], night: int) -> None:
    raw["split"] = {"leave_last_out": True}


def split_by_column_without_items(raw: dict[str, Any], night: int) -> None:
    raw["split"] = {"column": "part", "valid_fraction": 0.3}
    del raw["tables"]["items"]
    raw["features"] = {"item": [{"name": "item", "kind": "id"}, {"name": "sold", "kind": "count", "window_days": [7]}]}


CHANGES: dict[str, Change] = {
    "as it is": as_it_is,
    "moved bounds": bounds_on_the_second_night,
    "duplicates rejected": duplicates_rejected,
    "last out": last_out,
    "split by a column, no items table": split_by_column_without_items,
}


def day(rng: np.random.Generator, night: int) -> list[dict[str, Any]]:
    """A night's events: mostly of the new day, some late, some twice, some of new users and items."""
    rows = []
    for _ in range(20):
        moment = at(23 + night + float(rng.integers(4)) / 4) if rng.random() < 0.5 else at(float(rng.integers(22)))
        item = int(rng.choice([10, 20, 30, 40, 10 + 5 * night]))
        rows.append(
            {
                "user": int(rng.integers(1, 7 + night)),
                "item": item,
                "time": moment,
                "action": "click",
                "price": float(rng.integers(3)),
                "part": ["train", "test"][int(rng.integers(2))],
            }
        )
    return [*rows, rows[0], {**EVENTS[night], "part": "train"}]


def items(night: int) -> list[dict[str, Any]]:
    """The catalogue grows, in its middle too."""
    return [*ITEMS, *({**ITEMS[0], "item": 10 + 5 * n} for n in range(1, night + 1) if (10 + 5 * n) % 10)]


@pytest.mark.parametrize("name", CHANGES)
def test_every_night_equals_a_full_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "MAX_SEGMENTS", 3)
    rng = np.random.default_rng(5)
    write_rows(tmp_path, **{"events-0": [{**event, "part": "train"} for event in EVENTS]})
    rewritten = []
    for night in range(NIGHTS):
        write_rows(tmp_path, items=items(night), users=USERS[night % 2 :])
        if night:
            write_rows(tmp_path, **{f"events-{night}": day(rng, night)})
        raw = raw_schema(tmp_path)
        raw["validation"] = {"max_reject_rate": 0.5, "drift": "off", "min_joined": 0.0, "max_rate": {"duplicate": 1.0}}
        CHANGES[name](raw, night)
        if night == 0 and raw["split"].get("column"):
            write_rows(tmp_path, **{"events-0": [*({**event, "part": "train"} for event in EVENTS[1:]), TEST_EVENT]})
        schema = schema_of(raw)
        previous = tmp_path / f"night-{night - 1}" if night else None
        upon = features.run(schema, tmp_path / f"night-{night}", previous=previous, partitions=PARTS)
        full = features.run(schema, tmp_path / "full", partitions=PARTS)
        assert used(upon) == (night > 0)
        if previous is not None:
            rewritten.append(new_bases(upon, previous))
            shutil.rmtree(previous)
        open_artifact(upon, kind="features", verify=True)
        assert max(partition.segments for partition in Partition.list(upon / "sequences")) < 3
        assert content(upon) == content(full)
        assert facts_of(upon) == facts_of(full)
    # A partition's turn comes every third night, and users without events left on the first and the third.
    assert 0 < sum(rewritten) < (NIGHTS - 1) * PARTS or name == "split by a column, no items table"


TEST_EVENT = {**EVENTS[0], "part": "test"}


def new_bases(upon: Path, previous: Path) -> int:
    """How many base files are not those of the previous run."""
    inodes = {os.stat(path).st_ino for path in (previous / "sequences").glob("part-*.parquet")}
    return sum(os.stat(path).st_ino not in inodes for path in (upon / "sequences").glob("part-*-of-00002.parquet"))


def two_nights(folder: Path) -> tuple[Path, Path]:
    write_rows(folder, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    schema = schema_of(raw_schema(folder))
    first = features.run(schema, folder / "first", partitions=1)
    write_rows(folder, **{"events-1": [{**EVENTS[0], "time": at(30)}]})
    return first, features.run(schema, folder / "second", previous=first)


def test_a_new_day_is_a_segment_next_to_files_shared_with_the_previous_run(tmp_path: Path) -> None:
    first, second = two_nights(tmp_path)
    names = sorted(path.name for path in (second / "sequences").iterdir())
    base, lists = "part-00000-of-00001.parquet", "part-00000-of-00001.days.arrow"
    assert names == ["layout.json", "part-00000-of-00001.0001.parquet", lists, base]
    for name in (base, lists):
        assert os.path.samefile(first / "sequences" / name, second / "sequences" / name)
    shutil.rmtree(first)
    assert Sequences.open(second).events.num_events == len(EVENTS) + 1


def test_segments_outlive_several_changes_of_the_catalogue(tmp_path: Path) -> None:
    """Five runs, each appended to the one before; the catalogue grows three times in its front and middle.

    User 1 clicks one item each night. The base is written in the catalogue (10, 20, 30, 40), the first segment in
    (5, 10, ...), the second and the third in (5, 10, 15, ...): at the end each is read through rows of its own.
    """
    write_rows(tmp_path, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    schema = schema_of(raw_schema(tmp_path))
    out = features.run(schema, tmp_path / "night-0", partitions=1)
    added = {1: 5, 2: 15, 4: 25}
    for night, clicked in ((1, 5), (2, 15), (3, 40), (4, 25)):
        new = [item for at_night, item in added.items() if at_night <= night]
        write_rows(tmp_path, items=[*ITEMS, *({**ITEMS[0], "item": item} for item in new)])
        event = {**EVENTS[0], "item": clicked, "time": at(30 + night)}
        write_rows(tmp_path, **{f"events-{night}": [event]})
        out = features.run(schema, tmp_path / f"night-{night}", previous=out)
        assert used(out)
    assert [partition.segments for partition in Partition.list(out / "sequences")] == [4]
    found = Sequences.open(out)
    catalogue = [5, 10, 15, 20, 25, 30, 40]
    clicks = {1: [30, 10, 20, 30, 5, 15, 40, 25], 2: [10, 30], 3: [20], 9: []}
    assert found.user_ids.to_pylist() == list(clicks)
    assert found.events.offsets.tolist() == [0, 8, 10, 11, 11]
    assert [catalogue[row] for row in found.events.rows.tolist()] == [item for own in clicks.values() for item in own]


def test_where_files_cannot_be_linked_they_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = two_nights(tmp_path)
    base = "sequences/part-00000-of-00001.parquet"
    assert not os.path.samefile(first / base, second / base)
    assert (first / base).read_bytes() == (second / base).read_bytes()


def test_damage_in_a_file_of_the_previous_run_is_not_sealed_as_sound(tmp_path: Path) -> None:
    first, _ = two_nights(tmp_path)
    base = first / "sequences" / "part-00000-of-00001.parquet"
    content = bytearray(base.read_bytes())
    content[len(content) // 2] ^= 1
    base.write_bytes(bytes(content))
    third = features.run(schema_of(raw_schema(tmp_path)), tmp_path / "third", previous=first)
    with pytest.raises(ArtifactError, match=r"part-00000-of-00001.parquet: its checksum is not the manifest's"):
        open_artifact(third, kind="features", verify=True)


def test_a_segment_without_its_base_and_a_damaged_layout_are_errors(tmp_path: Path) -> None:
    _, second = two_nights(tmp_path)
    folder = second / "sequences"
    (folder / "layout.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"layout.json: damaged"):
        Sequences.open(second)
    Layout().write(folder)
    (folder / "part-00000-of-00001.parquet").unlink()
    with pytest.raises(ArtifactError, match=r"part-00000-of-00001.parquet: missing"):
        Partition.list(folder)


@given(
    st.lists(st.sets(st.integers(-50, 50)), min_size=1, max_size=4),
    st.booleans(),
)
def test_ids_of_several_pieces_are_each_there_once_and_found(pieces: list[set[int]], as_text: bool) -> None:
    kind, plain = (pa.string(), str) if as_text else (pa.int64(), int)
    ordered = [sorted(plain(number) for number in one) for one in pieces]  # type: ignore[type-var]
    every = sorted({one for piece in ordered for one in piece})
    found = union_ids([pa.array(one, kind) for one in ordered])
    assert found.to_pylist() == every
    wanted = [plain(number) for number in range(-60, 60, 7)]
    expected = [every.index(one) if one in every else -1 for one in wanted]
    assert places_of(pa.array(wanted, kind), found).tolist() == expected


def piece(rng: np.random.Generator) -> Grouped:
    rows = 30
    table = pa.table(
        {
            "user_id": rng.integers(0, 6, rows),
            "row": rng.integers(0, 3, rows).astype(np.int32),
            "time": rng.integers(0, 4, rows),
            "action": rng.integers(0, 2, rows).astype(np.int8),
            "value": rng.integers(0, 2, rows).astype(np.float32),
            "split": np.zeros(rows, np.int8),
        }
    )
    return group_events(table, pa.array([99], pa.int64()), leave_last_out=False)


def test_gathering_pieces_is_merging_them_one_by_one() -> None:
    rng = np.random.default_rng(0)
    pieces = [piece(rng) for _ in range(4)]
    gathered, merged = gather(pieces), merge(merge(pieces[0], pieces[1]), merge(pieces[2], pieces[3]))
    assert gathered.user_ids.equals(merged.user_ids)
    for name in ("offsets", "rows", "times", "actions", "values"):
        assert getattr(gathered, name).tolist() == getattr(merged, name).tolist()
