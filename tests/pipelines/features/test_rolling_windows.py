"""Rolling windows by hand: where they end, what lies outside, and when a night has to run in full."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from pipelines.contracts.errors import ConfigError, SchemaError
from pipelines.contracts.manifest import open_artifact, read_manifest
from pipelines.contracts.schema import Window
from pipelines.contracts.schema.window import as_of_moment
from pipelines.features import job as features
from pipelines.features.reporting.artifact_summary import summary_of
from pipelines.features.reporting.data_summary import lines
from pipelines.sequences.reader import Sequences
from pipelines.sequences.segments import MAX_SEGMENTS, Partition
from pipelines.tables.erasure.forget_list import ForgetList
from tests.pipelines.conftest import EVENTS, ITEMS, USERS, at, raw_schema, schema_of, write_rows
from tests.pipelines.features.test_job import content, micros
from tests.traces import find_traces

NOW = at(200)
SPLIT = {"valid_days": 5, "test_days": 3, "history_days": 30}


def schema(folder: Path, **split: Any) -> Any:
    raw = raw_schema(folder)
    raw["split"] = {**SPLIT, **split}
    raw["validation"] = {"max_reject_rate": 0.0, "drift": "off"}
    return schema_of(raw)


def shop(folder: Path, *more: dict[str, Any]) -> Any:
    """Days 0, 2, 2, 5, 11 (train), 21 and 22 (test), and day 17 of user 2 (valid): the windows end on day 23."""
    valid = {"user": 2, "item": 10, "time": at(17), "action": "click", "price": 1.0}
    write_rows(folder, **{"events-0": [*EVENTS, valid, *more], "items": ITEMS, "users": USERS})
    return schema(folder)


def window_of(out: Path) -> list[int | None]:
    window = Window.of(read_manifest(out).facts)
    assert window is not None
    return [window.history_from, *window.bounds, window.end]


def increment(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = open_artifact(out, kind="features").manifest.facts["increment"]
    return found


def event(user: int, day: float, item: int = 10) -> dict[str, Any]:
    return {"user": user, "item": item, "time": at(day), "action": "click", "price": 1.0}


def test_windows_end_on_the_first_midnight_after_the_newest_event(tmp_path: Path) -> None:
    out = features.run(shop(tmp_path), tmp_path / "features", now=NOW)
    assert window_of(out) == [micros(-7), micros(15), micros(20), micros(23)]
    assert read_manifest(out).facts["as_of_us"] == micros(20)
    assert [read_manifest(out).facts["counts"][name] for name in ("train", "valid", "test")] == [5, 1, 2]
    assert Sequences.open(out).window == Window.of(read_manifest(out).facts)
    said = lines(summary_of(out))
    assert "windows" in said[3]
    assert said[3].endswith("history from 2024-12-25, valid from 2025-01-16, test from 2025-01-21, end 2025-01-24")


@pytest.mark.parametrize(
    "as_of", [at(12), at(12.99), at(12.5).astimezone(datetime.timezone(datetime.timedelta(0, 3600)))]
)
def test_as_of_is_the_last_midnight_before_it(tmp_path: Path, as_of: datetime.datetime) -> None:
    """Events of days 0 to 11 are used: valid are those of days 4 to 8 (user 2, day 5), test the one of day 11."""
    out = features.run(shop(tmp_path), tmp_path / "features", as_of=as_of, now=NOW)
    assert window_of(out) == [micros(-18), micros(4), micros(9), micros(12)]
    assert [read_manifest(out).facts["counts"][name] for name in ("train", "valid", "test")] == [3, 1, 1]
    assert read_manifest(out).facts["dropped_after_test_until"] == 3
    assert Sequences.open(out).user_ids.to_pylist() == [1, 2, 9]


def test_an_event_of_a_wrong_clock_does_not_move_the_windows(tmp_path: Path) -> None:
    """Day 9,000 is in 2049. The event is counted, not used, and reported."""
    plain = features.run(shop(tmp_path), tmp_path / "plain", now=NOW)
    out = features.run(shop(tmp_path, event(1, 9_000), event(77, 9_000)), tmp_path / "features", now=NOW)
    assert window_of(out) == window_of(plain)
    assert content(out) == content(plain)
    assert any(line.split() == ["later", "events", "2", "not", "used"] for line in lines(summary_of(out)))


def test_an_event_after_today_is_used_when_its_day_has_come(tmp_path: Path) -> None:
    table = shop(tmp_path, event(3, 23.5))
    early = features.run(table, tmp_path / "features", now=at(22.9))
    assert window_of(early)[-1] == micros(23)
    late = features.run(table, tmp_path / "late", now=at(23.1), previous=early)
    assert increment(late)["used"]
    assert window_of(late)[-1] == micros(24)
    assert content(late) == content(features.run(table, tmp_path / "full", now=at(23.1)))


@pytest.mark.parametrize(
    ("given", "iso"),
    [
        ("2026-02-01", "2026-02-01T00:00:00+00:00"),
        (datetime.date(2026, 2, 1), "2026-02-01T00:00:00+00:00"),
        ("2026-02-01T00:30:00+01:00", "2026-01-31T23:30:00+00:00"),
        ("2026-02-01T06:00", "2026-02-01T06:00:00+00:00"),
        (datetime.datetime(2026, 2, 1, 6), "2026-02-01T06:00:00+00:00"),
    ],
)
def test_as_of_is_given_as_a_date_or_a_time(given: Any, iso: str) -> None:
    assert as_of_moment(given).isoformat() == iso


@pytest.mark.parametrize("given", ["yesterday", "", "2026-02-30", 20260201, "0001-01-01T00:00+10:00"])
def test_what_is_no_date_is_refused_with_two_that_are(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"--as-of: expected a date, .* such as 2026-02-01 or .*, got "):
        as_of_moment(given)


def test_with_dates_in_the_split_as_of_is_refused(tmp_path: Path) -> None:
    write_rows(tmp_path, events=EVENTS, items=ITEMS, users=USERS)
    plain = schema_of(raw_schema(tmp_path))
    for asked in ({"as_of": at(12)}, {"whole": True}):
        with pytest.raises(
            ConfigError, match=r"as-of moves rolling windows, and \[split\] has none\. Write valid_days"
        ):
            features.run(plain, tmp_path / "features", **asked)  # type: ignore[arg-type]
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize(
    ("day", "message"),
    [
        (
            -3,
            r"in train and valid and test, found none \(train 0, valid 0, test 0\)\. The windows: .* end 2024-12-29; 8",
        ),
        (
            3,
            r"in train and valid, found none \(train 0, valid 0, test 3\).*the events before the end are of 2025-",
        ),
        (16, r"found none \(.*test 0\)\. The windows: history from .*Choose a date with --as-of"),
        (90, r"in train and valid and test.* are of 2025-01-01 to 2025-01-23 \(UTC\)"),
    ],
)
def test_windows_without_events_are_refused_and_nothing_is_lost(tmp_path: Path, day: int, message: str) -> None:
    table = shop(tmp_path)
    out = features.run(table, tmp_path / "features", now=NOW)
    before = content(out)
    with pytest.raises(SchemaError, match=message):
        features.run(table, out, previous=out, as_of=at(day), now=NOW)
    assert content(out) == before
    assert window_of(out)[-1] == micros(23)


def test_where_the_clock_goes_back_the_night_runs_in_full_and_says_why(tmp_path: Path) -> None:
    table = shop(tmp_path)
    out = features.run(table, tmp_path / "features", now=NOW)
    past = features.run(table, tmp_path / "past", previous=out, as_of=at(12), now=NOW)
    reason = "the windows are to end on 2025-01-13, those of the previous run end on 2025-01-24"
    assert increment(past) == {"used": False, "reason": reason}
    assert content(past) == content(features.run(table, tmp_path / "fresh", as_of=at(12), now=NOW))
    back = features.run(table, tmp_path / "back", previous=out, now=at(12.5))
    assert increment(back)["reason"] == (
        "the previous run's windows end on 2025-01-24, later than the newest event it has read"
    )
    assert window_of(back)[-1] == micros(12)


@pytest.mark.parametrize(
    ("days", "reason"), [(15, None), (30, None), (40, "history_days was 30"), (None, "history_days was 30")]
)
def test_only_a_longer_history_is_read_again(tmp_path: Path, days: int | None, reason: str | None) -> None:
    out = features.run(shop(tmp_path), tmp_path / "features", now=NOW)
    table = schema(tmp_path, history_days=days)
    after = features.run(table, tmp_path / "after", previous=out, now=NOW)
    assert increment(after)["used"] == (reason is None)
    assert reason is None or increment(after)["reason"] == f"{reason}: older events are no longer kept"
    assert content(after) == content(features.run(table, tmp_path / "full", now=NOW))


def test_features_of_everything_have_the_events_of_the_run_before_and_no_later_file(tmp_path: Path) -> None:
    table = shop(tmp_path)
    out = features.run(table, tmp_path / "features", now=NOW)
    write_rows(tmp_path, **{"events-1": [event(1, 25)]})
    whole = features.run(table, tmp_path / "whole", previous=out, whole=True, now=NOW)
    assert increment(whole)["used"]
    assert window_of(whole) == [micros(-7), micros(23), micros(23), micros(23)]
    counts = read_manifest(whole).facts["counts"]
    assert [counts[name] for name in ("train", "valid", "test")] == [8, 0, 0]
    assert read_manifest(whole).inputs == {"features": read_manifest(out).fingerprint}
    assert read_manifest(whole).facts["as_of_us"] == micros(23)


def test_old_events_are_in_no_answer_and_leave_the_disk_when_their_turn_comes(tmp_path: Path) -> None:
    """User 3 has one event, of day 21: windows that end on day 52 leave it out. User 9, of the users table, stays."""
    table = shop(tmp_path)
    out = features.run(table, tmp_path / "features", partitions=1, now=NOW)
    seen = []
    for day in range(23, 23 + 31 + MAX_SEGMENTS):
        write_rows(tmp_path, **{f"events-{day:03d}": [event(2, day)]})
        out = features.run(table, out, previous=out, now=NOW)
        assert increment(out)["used"]
        (partition,) = Partition.list(out / "sequences")
        used, stored = Sequences.open(out), partition.stored()
        assert used.events.times.min() >= micros(day + 1 - 30)
        seen.append((3 in used.user_ids.to_pylist(), 3 in stored.user_ids.to_pylist()))
        assert stored.times.min() >= micros(day + 1 - 30 - MAX_SEGMENTS)
    assert seen[27] == (True, True)
    assert seen[28][0] is False
    assert seen[-1] == (False, False)
    assert used.user_ids.to_pylist() == [1, 2, 9]


def test_forgotten_users_of_later_and_of_old_events_leave_no_trace(tmp_path: Path) -> None:
    """User 501 has an event after the end alone, user 502 one that has become too old."""
    table = shop(tmp_path, event(501, 60), event(502, 1))
    out = features.run(table, tmp_path / "features", as_of=at(23), now=NOW)
    gone = features.run(table, tmp_path / "gone", previous=out, as_of=at(24), forget=ForgetList.of((501, 502)), now=NOW)
    assert increment(gone)["used"]
    assert find_traces([out], [501, 502])
    assert find_traces([gone], [501, 502]) == []
    assert read_manifest(gone).facts["forgotten"]["found"] == 2
