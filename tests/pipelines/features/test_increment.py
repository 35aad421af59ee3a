"""A run that appends to a previous one equals a full run, row for row; late events; users to be forgotten."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features import job as features
from pipelines.sequences.grouping import group_events, merge
from pipelines.sequences.segments import Partition
from pipelines.tables.erasure.forget_list import ForgetList
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, at, raw_schema, schema_of, write_rows
from tests.pipelines.features.test_job import content, micros
from tests.pipelines.sequences.test_grouping import as_lists, as_table, events
from tests.traces import find_traces
from towerline.jobs.erasure.traces import search

NEW_DAY = [
    {"user": 2, "item": 10, "time": at(22), "action": "click", "price": 0.5},  # A tie with an old event.
    {"user": 5, "item": 30, "time": at(24), "action": "purchase", "price": 1.5},
    {"user": 1, "item": 20, "time": at(23), "action": "click", "price": 2.5},
    {"user": 1, "item": 20, "time": at(12), "action": "click", "price": 2.5},  # Late.
]


def run_pair(
    folder: Path, change: Callable[[dict[str, Any]], None], forget: tuple[int, ...] = (), **tables: list[dict[str, Any]]
) -> tuple[Path, Path]:
    """Runs the old day, then the new one upon it and in full."""
    raw = raw_schema(folder)
    raw["validation"] = {"max_reject_rate": 0.5}
    if "before" in tables:
        write_rows(folder, **{"events-0": tables.pop("before"), "items": ITEMS, "users": USERS})
    else:
        write_rows(folder, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), folder / "old", partitions=2)
    write_rows(folder, **{"events-1": NEW_DAY, **tables})
    change(raw)
    schema = schema_of(raw)
    upon = features.run(schema, folder / "upon", previous=old, forget=ForgetList.of(forget))
    full = features.run(schema, folder / "full", partitions=2, forget=ForgetList.of(forget))
    return upon, full


def nothing(raw: dict[str, Any]) -> None:
    """Leaves the configuration as it is."""


def facts_of(out: Path) -> dict[str, Any]:
    facts = dict(open_artifact(out, kind="features").manifest.facts)
    for name in ("increment", "shards", "drift", "source_files"):
        del facts[name]
    return facts


def used(out: Path) -> bool:
    return bool(open_artifact(out, kind="features").manifest.facts["increment"]["used"])


def later_bounds(raw: dict[str, Any]) -> None:
    raw["split"] = {"valid_from": "2025-01-20", "test_from": "2025-01-23"}


NEW_ITEMS = [*ITEMS, {"item": 15, "color": "blue", "title": "Tea", "price": 2.0, "since": at(22)}]
CASES: dict[str, tuple[Callable[[dict[str, Any]], None], dict[str, list[dict[str, Any]]]]] = {
    "a new day": (nothing, {}),
    "moved bounds": (later_bounds, {}),
    "new items shift the rows": (nothing, {"items": NEW_ITEMS}),
    "changed users": (nothing, {"users": [{"user": 5, "country": "FR"}, {"user": 1, "country": "CA"}]}),
    "new rejects": (nothing, {"events-2": [{"user": 1, "item": 99, "time": at(25), "action": "click", "price": 1.0}]}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_on_top_of_a_previous_one_equals_a_full_run(tmp_path: Path, case: str) -> None:
    change, tables = CASES[case]
    upon, full = run_pair(tmp_path, change, **tables)
    assert used(upon)
    assert not used(full)
    assert content(upon) == content(full)
    assert facts_of(upon) == facts_of(full)


@pytest.mark.parametrize("by_column", [False, True])
@pytest.mark.parametrize("forget", [(), (5,), (3, 5)])
def test_the_moment_that_features_look_back_from_is_that_of_a_full_run(
    tmp_path: Path, by_column: bool, forget: tuple[int, ...]
) -> None:
    """Of accepted events alone: the new day's last ones are rejected, or of a user who is forgotten."""

    def parts(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**event, "part": "train" if event["time"] < at(22) else "test"} for event in events]

    def change(raw: dict[str, Any]) -> None:
        raw["split"] = {"column": "part"} if by_column else {"leave_last_out": True}
        raw["validation"] = {"max_reject_rate": 0.5, "latest": "2026-01-01"}

    raw = raw_schema(tmp_path)
    change(raw)
    write_rows(tmp_path, **{"events-0": parts(EVENTS), "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), tmp_path / "old", partitions=2)
    last = {"user": 1, "item": 10, "time": at(60), "action": "click", "price": 1.0}
    refused = [{**last, "item": 99}, {**last, "time": at(400)}, {**last, "action": "returned"}]
    write_rows(tmp_path, **{"events-1": parts([*NEW_DAY, *refused])})
    lists = ForgetList.of(forget)
    upon = features.run(schema_of(raw), tmp_path / "upon", previous=old, forget=lists)
    full = features.run(schema_of(raw), tmp_path / "full", partitions=2, forget=lists)
    assert used(upon)
    assert facts_of(upon)["as_of_us"] == facts_of(full)["as_of_us"] == micros(23 if forget else 24) + 1
    assert content(upon) == content(full)


def test_a_new_day_upon_the_old_one_by_hand(tmp_path: Path) -> None:
    """What an incremental run holds, written out: sequences, item frequencies, counts, without a full run next to it.

    The test window begins on day 20: of the new day only the late click (user 1, item 20, day 12) is before it, and
    after day 10, so that it is valid. Rows: 10 -> 0, 20 -> 1, 30 -> 2, 40 -> 3.
    """
    upon, _ = run_pair(tmp_path, nothing)
    assert used(upon)
    found = content(upon)
    assert found["ids"] == [1, 2, 3, 5, 9]
    columns = found["columns"]
    assert columns["offsets"] == [0, 6, 9, 10, 11, 11]
    # User 1: days 0, 2, 2, 11, 12, 23. User 2: days 5, 22, 22 (a tie, the lower row first). User 3: 21. User 5: 24.
    assert columns["rows"] == [2, 0, 1, 2, 1, 1, 0, 0, 2, 1, 2]
    assert columns["values"] == [1, 2, 3, 5, 2.5, 2.5, 4, 0.5, 7, 6, 1.5]
    assert columns["actions"] == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert columns["splits"] == [0, 0, 0, 1, 1, 2, 0, 2, 2, 2, 2]
    assert Vocabulary.load(upon / "vocabulary").item_frequency.tolist() == [2, 1, 1, 0]
    # Before day 20 and in 28 days: 10 on days 2 and 5; 20 on days 2 and 12; 30 on days 0 and 11. In 7 days: none.
    assert found["encoded"]["item", "sold"] == pytest.approx(np.log1p([[0, 2], [0, 2], [0, 2], [0, 0]]))
    assert found["encoded"]["user", "bought"] == pytest.approx(np.log1p([[1], [0], [0], [0], [0]]))


def test_dates_moved_by_hand_every_night_equal_full_runs_and_read_no_sequences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight nights, each with a file of its day; dates move by a day or two. Only the first run reads all events."""
    raw = raw_schema(tmp_path)
    write_rows(tmp_path, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    raw["split"] = {"valid_from": "2025-01-10", "test_from": "2025-01-12"}
    upon = features.run(schema_of(raw), tmp_path / "upon", partitions=1)
    for night in range(1, 9):
        day = {"user": night % 4, "item": 10 * (1 + night % 4), "time": at(22 + night), "action": "click", "price": 1.0}
        write_rows(tmp_path, **{f"events-{night}": [day, {**day, "user": 1, "action": "purchase"}]})
        start = 10 + night + night // 4
        raw["split"] = {"valid_from": f"2025-01-{start}", "test_from": f"2025-01-{start + 2}"}
        with monkeypatch.context() as patch:
            patch.setattr(Partition, "stored", lambda _: pytest.fail("the sequences were read"))
            upon = features.run(schema_of(raw), tmp_path / "upon", previous=upon)
        full = features.run(schema_of(raw), tmp_path / "full", partitions=1)
        assert used(upon)
        assert content(upon) == content(full)
        assert facts_of(upon) == facts_of(full)


def test_an_encoded_part_is_linked_only_where_nothing_that_it_says_has_changed(tmp_path: Path) -> None:
    """Countries of users are the same on a quiet night; a user who moves, or a moment that moves, is encoded again."""
    raw = raw_schema(tmp_path)
    raw["features"]["user"] = [{"name": "country", "kind": "categorical"}]
    write_rows(tmp_path, **{"events-0": EVENTS, "items": ITEMS, "users": USERS})
    old = features.run(schema_of(raw), tmp_path / "old", partitions=1)

    def night(name: str) -> tuple[bool, bool]:
        upon = features.run(schema_of(raw), tmp_path / name, previous=old)
        assert content(upon) == content(features.run(schema_of(raw), tmp_path / "full", partitions=1))
        open_artifact(upon, kind="features", verify=True)
        files = [f"{side}_encoded/part-00000-of-00001.parquet" for side in ("users", "items")]
        users, items = ((old / file).samefile(upon / file) for file in files)
        return users, items

    assert night("quiet") == (True, True)
    write_rows(tmp_path, users=[{**USERS[0], "country": "FR"}, *USERS[1:]])
    assert night("moved") == (False, True)
    write_rows(tmp_path, users=USERS)
    raw["split"] = {"valid_from": "2025-01-10", "test_from": "2025-01-23"}
    assert night("later")[1] is False  # Items have a feature that looks back from where test begins.


def test_a_run_without_any_new_event_keeps_the_parts_and_equals_a_full_run(tmp_path: Path) -> None:
    upon, full = run_pair(tmp_path, nothing, **{"events-1": []})
    assert used(upon)
    assert content(upon) == content(full)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ({"events-0": EVENTS[1:]}, "1 of the files it read have changed or are gone"),
        ({"items": [item for item in NEW_ITEMS if item["item"] != 40]}, "items were taken out of the catalogue"),
    ],
)
def test_where_it_cannot_build_upon_the_previous_run_it_runs_in_full_and_says_why(
    tmp_path: Path, tables: dict[str, list[dict[str, Any]]], reason: str
) -> None:
    upon, full = run_pair(tmp_path, nothing, **tables)
    assert open_artifact(upon, kind="features").manifest.facts["increment"] == {"used": False, "reason": reason}
    assert content(upon) == content(full)


def test_events_of_an_unknown_item_come_back_when_the_item_does(tmp_path: Path) -> None:
    early = {"user": 1, "item": 15, "time": at(3), "action": "click", "price": 1.0}
    upon, full = run_pair(tmp_path, nothing, before=[*EVENTS, early], items=NEW_ITEMS)
    assert not used(upon)
    assert content(upon) == content(full)


@pytest.mark.parametrize("forget", [(), (1,)])
def test_unknown_events_add_up_over_runs_while_the_catalogue_grows(tmp_path: Path, forget: tuple[int, ...]) -> None:
    """Item 99 of users 1 and 2 is unknown to both runs, item 15 comes into the catalogue and was named by nobody.

    Users 1, 2 and 9 are in the users table: events of users 3 and 5 are in use, and unknown.
    """
    strange = {"item": 99, "time": at(3), "action": "click", "price": 1.0}
    before = [*EVENTS, {**strange, "user": 1}, {**strange, "user": 2}]
    after = {"events-2": [{**strange, "user": 2, "time": at(25)}]}

    def any_join(raw: dict[str, Any]) -> None:
        raw["validation"]["min_joined"] = 0.0

    upon, full = run_pair(tmp_path, any_join, forget=forget, before=before, items=NEW_ITEMS, **after)
    assert used(upon)
    for name in ("unknown", "joined", "tables", "counts", "new_in_test"):
        assert facts_of(upon)[name] == facts_of(full)[name]
    unknown = facts_of(upon)["unknown"]
    assert unknown["item"]["events"] == (2 if forget else 3)
    assert unknown["user"]["events"] == 2
    assert facts_of(upon)["tables"]["events"]["rejects"] == {}
    # 11 events of known items, of which user 1 has 6; 2 of them are of users 3 and 5.
    assert facts_of(upon)["joined"] == pytest.approx(3 / 7 if forget else 9 / 14)


def test_late_events_are_rejected_with_their_reason_and_those_within_the_window_are_merged(tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["validation"]["late_days"] = 5

    upon, _ = run_pair(tmp_path, change)
    # The newest event known was on day 22: what is older than day 17 is late, the event of day 12.
    assert facts_of(upon)["tables"]["events"]["rejects"] == {"late:time": 1}
    assert facts_of(upon)["counts"]["events"] == len(EVENTS) + len(NEW_DAY) - 1


@pytest.mark.parametrize("upon_previous", [True, False])
def test_forgotten_users_leave_no_trace_in_a_new_artifact(tmp_path: Path, upon_previous: bool) -> None:
    bad = {"user": 1, "item": 99, "time": at(1), "action": "click", "price": 1.0}
    refused = {"user": 1, "item": 10, "time": at(1), "action": "returned", "price": 1.0}
    upon, full = run_pair(tmp_path, nothing, forget=(1, 9), before=[*EVENTS, bad, refused])
    out = upon if upon_previous else full
    assert used(upon)
    found = find_traces([tmp_path / "old"], [1, 9])
    assert {Path(trace.file).parent.name for trace in found} == {"sequences", "users", "rejects", "unknown"}
    assert {user for trace in found for user in trace.users} == {"1", "9"}
    assert find_traces([out], [1, 9]) == []
    assert content(out)["ids"] == [2, 3, 5]
    assert content(upon) == content(full)


def test_a_user_in_the_vocabulary_of_an_id_feature_is_a_trace(tmp_path: Path) -> None:
    """Users 101 and 102 have train events, so that their ids get codes; a country that reads like an id is no trace."""
    own = [{**event, "user": 100 + int(str(event["user"]))} for event in EVENTS]
    write_rows(tmp_path, events=own, items=ITEMS, users=[{"user": 101, "country": "777"}])
    raw = raw_schema(tmp_path)
    raw["features"]["user"].append({"name": "user", "kind": "id"})
    out = features.run(schema_of(raw), tmp_path / "features", partitions=1)
    found = {trace.file: trace.users for trace in find_traces([out], [101, 777])}
    part = "part-00000-of-00001.parquet"
    assert found == {f"sequences/{part}": ("101",), f"users/{part}": ("101",), "vocabulary/user.user.arrow": ("101",)}


def test_traces_are_never_ruled_out_on_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / "users.parquet").write_bytes(b"PAR1 nothing")
    assert [one.file for one in search([tmp_path], [1]).unread] == [f"{tmp_path}/users.parquet"]
    with pytest.raises(SchemaError, match="expected a directory of artifacts"):
        search([tmp_path / "none"], [1])


@given(old=events, new=events)
def test_merging_gives_what_grouping_everything_gives(old: list[Any], new: list[Any]) -> None:
    nobody = pa.array([], pa.int64())
    merged = merge(
        group_events(as_table(old), nobody, leave_last_out=False),
        group_events(as_table(new), pa.array([7], pa.int64()), leave_last_out=False),
    )
    whole = group_events(as_table([*old, *new]), pa.array([7], pa.int64()), leave_last_out=False)
    assert as_lists(merged) == as_lists(whole)
    assert merged.offsets.dtype == np.int64
