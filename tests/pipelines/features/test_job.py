"""The features job: hand-made tables with hand-made answers, splits, formats, bad input, any partitioning."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.errors import ConfigError, SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import FittedCodes, Vocabulary
from pipelines.features import job as features
from pipelines.features import transforms
from pipelines.features.task import SHARDS_FOLDER, Job
from pipelines.sequences.held_out import held_out_events
from pipelines.sequences.reader import Sequences, load_encoded, load_items, load_users
from pipelines.tables.readers import Shard
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, at, raw_schema, schema_of, write_rows

Small = Callable[..., DatasetSchema]


def run(schema: DatasetSchema, out: Path, **options: Any) -> Path:
    return features.run(schema, out, **options)


def micros(day: float) -> int:
    return int(at(day).timestamp()) * 1_000_000


def test_sequences_of_the_small_marketplace(small: Small, tmp_path: Path) -> None:
    out = run(small(), tmp_path / "features")
    opened = Sequences.open(out)
    found = opened.events
    # Rows: 10 -> 0, 20 -> 1, 30 -> 2. User 9 has a users row and no events, user 3 events and no users row.
    assert opened.user_ids.to_pylist() == [1, 2, 3, 9]
    assert found.offsets.tolist() == [0, 4, 6, 7, 7]
    assert found.rows.tolist() == [2, 0, 1, 2, 0, 2, 1]
    assert found.times.tolist() == [micros(day) for day in (0, 2, 2, 11, 5, 22, 21)]
    assert found.actions.tolist() == [0, 1, 0, 0, 0, 0, 1]
    assert found.values.tolist() == [1, 2, 3, 5, 4, 7, 6]
    assert found.splits.tolist() == [0, 0, 0, 1, 0, 2, 2]
    assert found.owners.tolist() == [0, 0, 0, 0, 1, 1, 2]
    truth = held_out_events(found, 2, small().action_weights)
    assert (truth.offsets.tolist(), truth.rows.tolist()) == ([0, 0, 1, 2, 2], [2, 1])
    # The other of the two actions as context: its held-out event is no truth.
    context = held_out_events(found, 2, (1.0, 0.0))
    assert (context.offsets.tolist(), context.rows.tolist()) == ([0, 0, 1, 1, 1], [2])
    history = found.before(2).latest(3)
    assert (history.offsets.tolist(), history.rows.tolist()) == ([0, 3, 4, 4, 4], [0, 1, 2, 0])


def test_items_users_and_vocabulary_of_the_small_marketplace(small: Small, tmp_path: Path) -> None:
    out = run(small(), tmp_path / "features")
    assert load_items(out)["item"].to_pylist() == [10, 20, 30, 40]
    assert load_users(out)["country"].to_pylist() == ["US", None, None, "DE"]
    vocabulary = Vocabulary.load(out / "vocabulary")
    # Train events: items 30, 10, 20 by user 1 and 10 by user 2.
    assert vocabulary.item_frequency.tolist() == [2, 1, 1, 0]
    color, title = vocabulary.item["color"], vocabulary.item["title"]
    assert isinstance(color, FittedCodes)
    assert isinstance(title, FittedCodes)
    assert color.values.to_pylist() == ["blue", "red"]  # Both 2: by value. Green has no train event.
    assert title.values.to_pylist() == ["lamp", "blue", "red", "rug"]  # 3, 2, 2, 1.
    items, users = load_encoded(out, "item"), load_encoded(out, "user")
    assert items["item_id"].tolist() == [2, 3, 4, 1]
    assert items["color"].tolist() == [2, 3, 3, 1]
    # Prices 1, 3, 8 were sold in train: mean 4, spread sqrt((9 + 1 + 16) / 3).
    assert items["price"][:, 0] == pytest.approx((np.array([1, 3, 8, 9]) - 4) / math.sqrt(26 / 3))
    # As of day 20, where the test window begins: nothing within 7 days; 30 was sold on days 0 and 11.
    assert items["sold"] == pytest.approx(np.log1p([[0, 2], [0, 1], [0, 2], [0, 0]]))
    assert items["since"][:, 1].tolist() == [1, 1, 0, 1]
    assert users["bought"] == pytest.approx(np.log1p([[1], [0], [0], [0]]))
    assert users["country"].tolist() == [2, 0, 0, 1]


def test_the_manifest_counts(small: Small, tmp_path: Path) -> None:
    facts = open_artifact(run(small(), tmp_path / "features"), kind="features").manifest.facts
    assert facts["counts"] == {
        "events": 7, "users": 4, "items": 4, "items_in_train": 3, "train": 4, "valid": 1, "test": 2,
    }  # fmt: skip
    assert facts["as_of_us"] == micros(20)
    assert (facts["first_time"], facts["last_time"]) == (micros(0), micros(22))


def content(out: Path) -> dict[str, Any]:
    """All that readers see, independent of the parts."""
    opened = Sequences.open(out)
    found = opened.events
    columns = {
        name: getattr(found, name).tolist() for name in ("offsets", "rows", "times", "actions", "values", "splits")
    }
    encoded = {
        (side, name): values.tolist() for side in ("item", "user") for name, values in load_encoded(out, side).items()
    }  # type: ignore[arg-type]
    vocabulary = {file.name: file.read_bytes() for file in (out / "vocabulary").iterdir()}
    users = load_users(out).to_pylist()
    return {
        "ids": opened.user_ids.to_pylist(),
        "columns": columns,
        "encoded": encoded,
        "vocabulary": vocabulary,
        "users": users,
    }


@pytest.mark.parametrize("partitions", [2, 3, 7])
def test_any_partitioning_gives_the_same(small: Small, tmp_path: Path, partitions: int) -> None:
    schema = small()
    one = run(schema, tmp_path / "one", partitions=1)
    many = run(schema, tmp_path / "many", partitions=partitions)
    assert content(one) == content(many)


def test_future_events_never_change_the_past(small: Small, tmp_path: Path) -> None:
    before = content(run(small(), tmp_path / "before"))
    late = {"user": 1, "item": 40, "time": at(30), "action": "purchase", "price": 9.0}
    after = content(run(small(events=[*EVENTS, late]), tmp_path / "after"))
    assert after["vocabulary"] == before["vocabulary"]
    assert after["encoded"] == before["encoded"]
    assert after["columns"]["rows"][:4] == before["columns"]["rows"][:4]


def test_csv_and_jsonl_give_what_parquet_gives(small: Small, tmp_path: Path) -> None:
    expected = content(run(small(), tmp_path / "parquet"))
    for form in ("csv", "jsonl"):
        folder = tmp_path / form
        folder.mkdir()
        for name, rows in (("events", EVENTS), ("items", ITEMS), ("users", USERS)):
            write_text(folder / f"{name}.{form}", rows, form)
        raw = raw_schema(folder)
        raw["ids"] = {"user": "int64", "item": "int64"}
        assert content(run(schema_of(raw), folder / "features")) == expected


def write_text(path: Path, rows: list[dict[str, Any]], form: str) -> None:
    if form == "csv":
        pacsv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(json.dumps(row, default=lambda moment: moment.isoformat()) for row in rows))


def test_leave_last_out_by_an_order_column(small: Small, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["tables"]["events"] |= {"order": "place"}
        del raw["tables"]["events"]["time"]
        raw["split"] = {"leave_last_out": True}
        raw["features"] = {"item": [{"name": "item", "kind": "id"}]}

    events = [{**event, "place": -place} for place, event in enumerate(EVENTS)]
    found = Sequences.open(run(small(change, events=events), tmp_path / "features")).events
    assert found.times.tolist() == [-4, -2, -1, 0, -6, -3, -5]
    assert found.splits.tolist() == [0, 0, 1, 2, 1, 2, 2]


def test_under_leave_last_out_only_train_events_count(small: Small, tmp_path: Path) -> None:
    """The last event of a user is test, the one before valid: neither may show in what a count says of the user.

    Train: user 1 clicks 30 (day 0) and purchases 10 (day 2); user 4 clicks 10 (days 16 and 17). Counted from the last
    event of all (day 22), 7 days reach back to day 15.
    """

    def change(raw: dict[str, Any]) -> None:
        raw["split"] = {"leave_last_out": True}

    days = {16: (10, "click"), 17: (10, "click"), 18: (20, "purchase"), 19: (30, "purchase")}
    own = [
        {"user": 4, "item": item, "time": at(day), "action": action, "price": 1.0}
        for day, (item, action) in days.items()
    ]
    out = run(small(change, events=[*EVENTS, *own]), tmp_path / "features")
    found = Sequences.open(out)
    assert found.user_ids.to_pylist() == [1, 2, 3, 4, 9]
    assert found.events.splits.tolist() == [0, 0, 1, 2, 1, 2, 2, 0, 0, 1, 2]
    # Items 10, 20, 30, 40 in 7 and in 28 days; purchases of users 1, 2, 3, 4, 9 in 28 days.
    assert load_encoded(out, "item")["sold"] == pytest.approx(np.log1p([[2, 3], [0, 0], [0, 1], [0, 0]]))
    assert load_encoded(out, "user")["bought"] == pytest.approx(np.log1p([[1], [0], [0], [0], [0]]))


REFUSED_LATER: dict[str, dict[str, Any]] = {
    "out of range": {"time": at(400)},
    "far out of range": {"time": at(45_000)},
    "an unknown item": {"time": at(90), "item": 99},
    "no user": {"time": at(90), "user": None},
    "an unknown action": {"time": at(90), "action": "returned"},
    "no finite value": {"time": at(90), "price": float("inf")},
}


@pytest.mark.parametrize("case", REFUSED_LATER)
@pytest.mark.parametrize("by_column", [False, True])
def test_features_look_back_from_the_last_accepted_event(
    small: Small, tmp_path: Path, case: str, by_column: bool
) -> None:
    """An event that is not accepted moves nothing, however late it is: counts of 28 days by hand.

    The last accepted event is on day 22, so 28 days reach back to the beginning and 7 days to day 15. Train by
    leave-last-out: user 1 clicks 30 (day 0) and purchases 10 (day 2). Train by the column: all before day 10, which
    is user 1's three first events and user 2's click on 10 (day 5).
    """
    later = {"user": 1, "item": 30, "time": at(30), "action": "click", "price": 1.0, **REFUSED_LATER[case]}
    events = [{**event, "part": "train" if event["time"] < at(10) else "test"} for event in [*EVENTS, later]]

    def change(raw: dict[str, Any]) -> None:
        raw["split"] = {"column": "part"} if by_column else {"leave_last_out": True}
        raw["validation"] = {"max_reject_rate": 0.5, "latest": "2026-01-01"}

    out = run(small(change, events=events), tmp_path / "features")
    assert open_artifact(out, kind="features").manifest.facts["as_of_us"] == micros(22) + 1
    sold = [[0, 2], [0, 1], [0, 1], [0, 0]] if by_column else [[0, 1], [0, 0], [0, 1], [0, 0]]
    assert load_encoded(out, "item")["sold"] == pytest.approx(np.log1p(sold))
    assert load_encoded(out, "user")["bought"] == pytest.approx(np.log1p([[1], [0], [0], [0]]))


def test_unordered_events_split_by_a_column_with_a_stable_valid_fraction(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pairs = np.unique(rng.integers(0, 100, (4_000, 2)), axis=0)
    table = pa.table(
        {"u": pairs[:, 0], "i": pairs[:, 1], "part": np.where(rng.random(len(pairs)) < 0.2, "test", "train")}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    pq.write_table(table.take(rng.permutation(len(table))), tmp_path / "b.parquet", row_group_size=300)
    contents = []
    for name in ("a", "b"):
        raw = {
            "dataset": {"name": "x"},
            "tables": {
                "events": {"path": str(tmp_path / f"{name}.parquet"), "user_id": "u", "item_id": "i", "unordered": True}
            },
            "split": {"column": "part", "valid_fraction": 0.1},
        }
        contents.append(content(run(schema_of(raw), tmp_path / f"features-{name}", partitions=2)))
    assert contents[0] == contents[1]
    splits = np.array(contents[0]["columns"]["splits"])
    train = int((np.array(table["part"].to_pylist()) == "train").sum())
    # A tenth of train, within five standard deviations.
    assert abs(int((splits == 1).sum()) - train / 10) < 5 * math.sqrt(train * 0.09)
    assert set(contents[0]["columns"]["times"]) == {0}


def test_several_files_by_glob_and_list_give_what_one_gives(small: Small, tmp_path: Path) -> None:
    expected = content(run(small(), tmp_path / "one"))
    folder = tmp_path / "many"
    folder.mkdir()
    write_rows(folder, items=ITEMS, users=USERS, **{f"events-{at_}": [event] for at_, event in enumerate(EVENTS)})
    assert content(run(schema_of(raw_schema(folder)), folder / "features")) == expected
    raw = raw_schema(folder)
    raw["tables"]["events"]["path"] = [str(folder / "events-[0-3].parquet"), f"file://{folder}/events-[4-6].parquet"]
    assert content(run(schema_of(raw), folder / "features")) == expected


def test_events_of_unknown_items_and_users_are_counted_apart_from_rejects(small: Small, tmp_path: Path) -> None:
    """Item 77 and user 7 are in no table, user 3 (one event) neither; the test allows no rejects at all."""
    strange = [
        {"user": 7, "item": 77, "time": at(1), "action": "click", "price": 0.0},
        {"user": 7, "item": 10, "time": at(1), "action": "click", "price": 0.0},
    ]
    out = run(small(events=[*EVENTS, *strange]), tmp_path / "features")
    facts = open_artifact(out, kind="features").manifest.facts
    assert facts["tables"]["events"] == {"rows": 9, "rejects": {}}
    assert {side: unknown["events"] for side, unknown in facts["unknown"].items()} == {"user": 2, "item": 1}
    assert facts["unknown"]["item"]["example"] == "77"
    assert facts["joined"] == pytest.approx(6 / 9)
    assert facts["counts"]["events"] == 8
    assert Sequences.open(out).user_ids.to_pylist() == [1, 2, 3, 7, 9]
    kept = pq.read_table(out / "unknown").to_pylist()
    assert [(event["user_id"], event["item_id"], event["row"]) for event in kept] == [(7, 77, 7)]


def test_without_tables_of_items_and_users_nothing_is_unknown(small: Small, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        del raw["tables"]["items"], raw["tables"]["users"]
        raw["features"] = {}

    strange = {"user": 7, "item": 77, "time": at(1), "action": "click", "price": 0.0}
    out = run(small(change, events=[*EVENTS, strange]), tmp_path / "features")
    facts = open_artifact(out, kind="features").manifest.facts
    assert (facts["unknown"], facts["joined"], facts["counts"]["events"]) == ({}, None, 8)


def test_ids_that_do_not_join_are_an_error_with_an_id_of_either_side(small: Small, tmp_path: Path) -> None:
    events = [{**event, "item": f"00{event['item']}"} for event in EVENTS]
    message = (
        r"^tables\.events: 0\.00% of 7 events have a user and an item that are in their tables "
        r"\(users: 100\.00%, items: 0\.00%\)\. validation\.min_joined is 50\.00%\.\n"
        r"  7 events of unknown items: events have '0030', tables\.items has '30'\n"
        r"Write the item ids of both tables in one way; or lower validation\.min_joined\.$"
    )
    with pytest.raises(SchemaError, match=message):
        run(small(events=events), tmp_path / "features")


def test_a_small_share_of_unknown_events_is_a_warning(
    small: Small, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """User 3 has one event of seven and no row in the users table: 85.71 % join."""
    run(small(), tmp_path / "features")
    assert "85.71% of 7 events have a user and an item" in caplog.text
    assert "1 event of unknown users: events have '3', tables.users has" in caplog.text


def test_a_reject_far_outside_the_calendar_is_reported_as_the_number_it_is(small: Small, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        raw["validation"] = {"max_reject_rate": 1.0}

    schema = small(change)
    table = pq.read_table(tmp_path / "events.parquet")
    far = [2**62, *np.asarray(table["time"].cast(pa.int64()))[1:].tolist()]
    column = pa.array(far, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    pq.write_table(table.set_column(table.column_names.index("time"), "time", column), tmp_path / "events.parquet")
    rejects = pq.read_table(run(schema, tmp_path / "features") / "rejects").to_pylist()
    assert [(reject["row"], reject["reason"]) for reject in rejects] == [(0, "range:time")]
    assert json.loads(rejects[0]["record"])["time"] == 2**62


def test_bytes_that_are_no_text_reject_their_row(small: Small, tmp_path: Path) -> None:
    small()
    lines = b"\n".join(json.dumps(event, default=lambda moment: moment.isoformat()).encode() for event in EVENTS)
    (tmp_path / "events.jsonl").write_bytes(lines.replace(b"click", b"clic\xc5", 1))
    (tmp_path / "events.parquet").unlink()
    with pytest.raises(
        SchemaError, match=r"(?s)1 of 7 rows rejected .*\n  type:action 1, such as .*events.jsonl row 0, action = "
    ):
        run(schema_of(raw_schema(tmp_path)), tmp_path / "features")


def without(rows: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name != column} for row in rows]


def with_value(rows: list[dict[str, Any]], column: str, value: object) -> list[dict[str, Any]]:
    return [{**row, column: value} for row in rows]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"events": without(EVENTS, "item")}, "expected column 'item' in .*events.parquet, found only user, time"),
        (
            {"items": without(ITEMS, "color")},
            "tables.items: expected column 'color' in .*items.parquet, found only item, title",
        ),
        ({"users": without(USERS, "country")}, "tables.users: expected column 'country'"),
        (
            {"events": with_value(EVENTS, "time", 5)},
            r"'time' of .*events.parquet has type int64, expected a time .* Write \[tables.events.types\] time = {",
        ),
        ({"events": with_value(EVENTS, "user", [1])}, "column 'user' has type list"),
        (
            {"items": with_value(ITEMS, "price", [1.0])},
            "column 'price' of .*items.parquet has type list.*, expected a finite number",
        ),
        (
            {"items": with_value(ITEMS, "title", [3])},
            "column 'title' of .*items.parquet has type list.*, expected a text",
        ),
        (
            {"items": [*ITEMS, ITEMS[0]]},
            r"expected each item once, 1 rows repeat one, the first 20 in \S*items.parquet row 0 and \S* row 4",
        ),
        ({"users": [*USERS, USERS[0]]}, "expected each user once, 9 occurs several times"),
        ({"events": EVENTS[:4]}, r"\[split\]: expected events in test, found none \(train 4, valid 0, test 0\)"),
        ({"events": EVENTS[5:]}, r"\[split\]: expected events in train"),
        ({"events": [*EVENTS, {**EVENTS[0], "item": None}]}, "1 of 8 rows rejected .12.50%.*max_reject_rate is 0.00%"),
    ],
)
def test_bad_tables_end_in_one_clear_error_and_harm_nothing(
    small: Small, tmp_path: Path, tables: dict[str, list[dict[str, Any]]], message: str
) -> None:
    out = run(small(), tmp_path / "features")
    before = open_artifact(out, kind="features").manifest.fingerprint
    with pytest.raises(SchemaError, match=message):
        run(small(**tables), out)
    assert open_artifact(out, kind="features").manifest.fingerprint == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_empty_events_table_is_an_error(small: Small, tmp_path: Path) -> None:
    schema = small()
    pq.write_table(pa.Table.from_pylist(EVENTS).slice(0, 0), tmp_path / "events.parquet")
    with pytest.raises(SchemaError, match="expected at least one event, found an empty table"):
        run(schema, tmp_path / "features")


def test_a_missing_table_and_a_damaged_one_name_the_file(small: Small, tmp_path: Path) -> None:
    schema = small()
    whole = (tmp_path / "events.parquet").read_bytes()
    (tmp_path / "events.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SchemaError, match=r"events\.parquet cannot be read"):
        run(schema, tmp_path / "features")
    (tmp_path / "events.parquet").unlink()
    with pytest.raises(SchemaError, match=r"expected at least one file at .*events"):
        run(schema, tmp_path / "features")


def test_an_unknown_runner_is_a_misuse(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no runner 'NoSuchRunner'"):
        features.run(small(), tmp_path / "features", ["--runner=NoSuchRunner"])


def test_what_a_killed_worker_left_half_written_changes_nothing(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = small()
    whole = run(schema, tmp_path / "whole", partitions=2)
    build = transforms.build

    def build_and_leave(job: Job, shards: Sequence[Shard], options: Any) -> None:
        build(job, shards, options)
        for folder in ("users", "sequences", "rejects"):
            (Path(job.out) / folder).mkdir(exist_ok=True)
            (Path(job.out) / folder / ".part-00001-of-00002.parquet.17.0badcafe").touch()
        for folder in (transforms.FACTS_FOLDER, SHARDS_FOLDER):
            (Path(job.work) / folder / ".events-000000.json.17.0badcafe").touch()

    monkeypatch.setattr(transforms, "build", build_and_leave)
    other = run(schema, tmp_path / "other", partitions=2)
    assert content(other) == content(whole)
    assert open_artifact(other, kind="features").manifest.files == open_artifact(whole, kind="features").manifest.files


def test_several_processes_give_what_one_gives(small: Small, tmp_path: Path) -> None:
    schema = small()
    one = run(schema, tmp_path / "one", partitions=2)
    many = features.run(schema, tmp_path / "many", ["--direct_num_workers=2"], partitions=2)
    assert content(one) == content(many)
