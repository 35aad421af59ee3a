"""Day files: together they are the events table, each has the rows of its day alone, in the product's types."""

from __future__ import annotations

import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.errors import ConfigError
from pipelines.tables.erasure.kept_list import kept_list
from tests.towerline.jobs.replay import world
from tests.towerline.jobs.replay.world import Event
from towerline.config import Config
from towerline.jobs.replay import day_files
from towerline.jobs.replay.day_files import DayFiles, cut
from towerline.project import open_project

EPOCH = datetime.datetime(2025, 3, 1, tzinfo=datetime.UTC)


def cut_of(config: Config, folder: Path) -> DayFiles:
    return cut(config.schema_only(), kept_list(config.work / "features"), folder)


def rows_of(files: list[Path]) -> list[dict[str, object]]:
    return [row for file in files for row in pq.read_table(file).to_pylist()]


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 5 * 86_400_000_000), st.integers(0, 3), st.integers(0, 50)), min_size=1),
    st.integers(1, 40),
)
def test_the_files_of_all_days_are_the_table(
    tmp_path_factory: pytest.TempPathFactory, made: list[tuple[int, int, int]], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    events = [
        Event(f"u{user}", 1000 + 3 * item, EPOCH + datetime.timedelta(microseconds=moment), "click")
        for moment, user, item in made
    ]
    world.write_tables(folder, events)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(day_files, "_ROWS_AT_ONCE", at_once)
        days = cut_of(world.config(folder), folder / "days")
    assert sum(days.rows.values()) == len(events)
    for day, count in days.rows.items():
        expected = [
            {"user_id": one.user, "item_id": one.item, "t": one.time, "action": one.action}
            for one in events
            if one.time.date() == day
        ]
        assert rows_of(days.of(day)) == expected
        assert len(expected) == count
    assert cut_of(world.config(folder), folder / "days") == days


def test_a_night_sees_the_files_of_the_days_before_and_no_others(tmp_path: Path) -> None:
    world.write_tables(tmp_path, world.events())
    days = cut_of(world.config(tmp_path), tmp_path / "days")
    for night in (0, 3, 1):
        seen = days.show_before(world.date(night))
        names = sorted(file.name[:10] for file in seen.iterdir())
        assert names == sorted(str(day) for day in days.rows if day < world.date(night))
    assert days.of(world.date(world.EMPTY)) == []


def test_a_finished_cut_is_made_again_for_another_table_alone(tmp_path: Path) -> None:
    world.write_tables(tmp_path, world.events())
    days = cut_of(world.config(tmp_path), tmp_path / "days")
    days.show_before(world.date(2))
    written = {file: file.stat().st_ino for file in (tmp_path / "days" / "days").iterdir()}
    assert cut_of(world.config(tmp_path, seed=4), tmp_path / "days") == days
    assert {file: file.stat().st_ino for file in (tmp_path / "days" / "days").iterdir()} == written
    world.write_tables(tmp_path, world.events()[:500])
    again = cut_of(world.config(tmp_path), tmp_path / "days")
    assert sum(again.rows.values()) == 500
    assert sum(len(rows_of([file])) for file in again.show_before(again.last).iterdir()) < 500


TOML = """
dataset.name = "text"
actions = { buy = 1.0 }
split = { valid_from = 2025-03-01, test_from = 2025-03-04 }

[tables.events]
path = "e.csv"
user_id = "user"
item_id = "item"
time = "at"
action = "what"
value = "worth"
decimal = ","
delimiter = ";"
types = { at = { type = "timestamp", unit = "s" } }
"""


def test_cells_of_text_are_typed_and_unsound_rows_are_on_no_day(tmp_path: Path) -> None:
    second = int(EPOCH.timestamp())
    lines = [
        "user;item;at;what;worth",
        f"007;a;{second};buy;1,5",
        f"007;b;{second + 86_400};buy;",
        f";c;{second};buy;1",
        "u;c;yesterday;buy;1",
        f"u;c;{second};buy;much",
        "u;c",
    ]
    (tmp_path / "e.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "shop.toml").write_text(TOML)
    config = open_project(tmp_path / "shop.toml", work=tmp_path / "run").config
    days = cut_of(config, tmp_path / "days")
    assert days.left_out == 4
    assert rows_of(days.of(days.first)) == [{"user": "007", "item": "a", "at": EPOCH, "what": "buy", "worth": 1.5}]
    assert rows_of(days.of(days.last))[0]["worth"] is None


def test_a_table_without_a_sound_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("user;item;at;what;worth\n;a;1;buy;1\n")
    (tmp_path / "shop.toml").write_text(TOML)
    config = open_project(tmp_path / "shop.toml", work=tmp_path / "run").config
    with pytest.raises(ConfigError, match="expected events with an id and a time, found none"):
        cut_of(config, tmp_path / "days")


def test_forgotten_users_are_on_no_day_and_in_no_night(tmp_path: Path) -> None:
    from pipelines.features import job as features
    from pipelines.tables.erasure.forget_list import ForgetList
    from towerline.jobs.replay.job import _prepared
    from towerline.jobs.replay.plan import Plan

    world.write_tables(tmp_path, world.events())
    config = world.config(tmp_path)
    (tmp_path / "forget.txt").write_text("u03\n")
    features.run(config.schema_only(), config.work / "features", forget=ForgetList.read(tmp_path / "forget.txt"))
    plan = Plan(config, world.FIRST, 1)
    days = _prepared(plan, day_files.SILENT)
    users = {row["user_id"] for day in days.rows for row in rows_of(days.of(day))}
    assert "u03" not in users
    assert "u04" in users
    assert kept_list(plan.work / "features").holds(pa.array(["u03", "u04"])).tolist() == [True, False]
