"""What columns are for: by the evidence in their values, whatever they are called."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest

import towerline
from pipelines.contracts.errors import SchemaError
from tests.towerline.jobs.init.worlds import START, World, make_world, write
from towerline.jobs.init.job import Draft
from towerline.jobs.init.questions import Question


def shop(**recipe: Any) -> World:
    return make_world(**{"seed": 1, "item_ids": "small", "user_ids": "letters", "unit": "", **recipe})


def propose(world: World, folder: Path, *, users: bool = True, **options: Any) -> Draft:
    tables = {name: rows for name, rows in world.tables.items() if users or name != "users"}
    paths = {name: write(rows, folder, name, "parquet") for name, rows in tables.items()}
    return towerline.init(**paths, folder=folder, **options)


def toml_of(draft: Draft) -> dict[str, Any]:
    return tomllib.loads(draft.toml)


def renamed(world: World, names: dict[str, str]) -> World:
    for table in ("events", "items", "users"):
        rows = getattr(world, table)
        setattr(world, table, {names.get(name, name): cells for name, cells in rows.items()})
    return world


@pytest.mark.parametrize("separator", ["|", " | ", ";", "; ", ",", ", ", " > "])
def test_a_separator_has_the_blanks_next_to_it(tmp_path: Path, separator: str) -> None:
    """Cut without them, ``wool, kids`` would have a value that begins with a blank."""
    world = shop()
    world.items["labels"] = [None if one is None else separator.join(one) for one in world.items["labels"]]
    kind = toml_of(propose(world, tmp_path))["tables"]["items"]["types"]["labels"]
    assert kind == {"type": "list", "separator": separator}


def test_ids_are_found_by_their_values_whatever_the_columns_are_called(tmp_path: Path) -> None:
    world = shop()
    world.items = {"z": world.items["what"], **{name: cells for name, cells in world.items.items() if name != "what"}}
    world.users = {"y": world.users["who"], **{name: cells for name, cells in world.users.items() if name != "who"}}
    toml = toml_of(propose(renamed(world, {"who": "b", "what": "a", "at_time": "c"}), tmp_path))
    assert toml["tables"]["events"]["user_id"] == "b"
    assert toml["tables"]["events"]["item_id"] == "a"
    assert toml["tables"]["events"]["time"] == "c"
    assert toml["tables"]["items"]["item_id"] == "z"
    assert toml["tables"]["users"]["user_id"] == "y"


def test_without_a_users_table_the_user_is_who_comes_back_at_another_time(tmp_path: Path) -> None:
    world = shop()
    # A basket is many rows of one moment.
    world.events = {
        "g": [f"b{hash((user, time)) % 10**9}" for user, time in zip(*_cells(world, "who", "at_time"), strict=True)],
        **world.events,
    }
    asked: list[Question] = []

    def answer(question: Question) -> str:
        asked.append(question)
        return question.default

    toml = toml_of(propose(renamed(world, {"who": "h"}), tmp_path, users=False, ask=answer))
    assert toml["tables"]["events"]["user_id"] == "h"
    assert [question.key for question in asked] == ["tables.events.user_id"]


def _cells(world: World, *names: str) -> list[list[Any]]:
    return [world.events[name] for name in names]


def test_items_that_no_event_has_are_refused_with_the_best_column(tmp_path: Path) -> None:
    world = shop()
    world.items["what"] = [item + 100_000 for item in world.items["what"]]
    with pytest.raises(SchemaError, match=r"no column of events has the values of a unique column of items"):
        propose(world, tmp_path)


def test_an_item_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    world = shop()
    world.items = {name: [*cells, cells[0]] for name, cells in world.items.items()}
    with pytest.raises(SchemaError, match=r"expected each what once, found 81 rows with 80"):
        propose(world, tmp_path)


def test_lost_leading_zeros_are_named_where_ids_do_not_join(tmp_path: Path) -> None:
    world = shop(item_ids="zeros")
    world.events["what"] = [item.lstrip("0") or "0" for item in world.events["what"]]
    with pytest.raises(SchemaError, match="leading zeros"):
        propose(world, tmp_path)


def test_a_second_table_key_is_a_question_and_its_answer_holds(tmp_path: Path) -> None:
    world = shop()
    # Another column of the items has the same values in another order, and events have a column for each.
    world.items = {"left": world.items.pop("what"), **world.items}
    world.items["right"] = world.items["left"][::-1]
    draft = propose(world, tmp_path)
    assert any(question.key == "tables.events.item_id" for question in draft.open)
    assert "# check: Which column of events is the item's id" in draft.toml
    chosen = propose(world, tmp_path, ask=lambda question: question.choices[-1])
    assert toml_of(chosen)["tables"]["items"]["item_id"] == "right"
    assert not [question for question in chosen.open if question.key == "tables.events.item_id"]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_unit_of_integer_times_is_written_down(tmp_path: Path, unit: str) -> None:
    toml = toml_of(propose(shop(unit=unit), tmp_path))
    assert toml["tables"]["events"]["types"]["at_time"] == {"type": "timestamp", "unit": unit}


def test_columns_that_know_what_comes_later_are_no_features(tmp_path: Path) -> None:
    world = shop()
    times: dict[Any, list[datetime.datetime]] = {}
    for item, time in zip(*_cells(world, "what", "at_time"), strict=True):
        times.setdefault(item, []).append(time)
    world.items["sold"] = [len(times[item]) for item in world.items["what"]]
    world.items["last_sold"] = [max(times[item]) for item in world.items["what"]]
    world.items["first_sold"] = [min(times[item]) for item in world.items["what"]]
    draft = propose(world, tmp_path)
    columns = {feature.get("column", feature["name"]) for feature in toml_of(draft)["features"]["item"]}
    assert "first_sold" in columns
    assert not {"sold", "last_sold"} & columns
    assert "# sold is left out: follows the number of events" in draft.toml


def test_columns_without_use_are_left_out_with_the_reason(tmp_path: Path) -> None:
    world = shop()
    n = len(world.items["what"])
    world.items |= {"nothing": [None] * n, "same": ["x"] * n, "link": [f"https://a.b/{row}" for row in range(n)]}
    world.items["code"] = [f"c{row:05d}" for row in range(n)]
    draft = propose(world, tmp_path)
    for column in ("nothing", "same", "link", "code"):
        assert f"# {column} is left out: " in draft.toml


def test_windows_are_whole_weeks_at_the_end_of_the_data(tmp_path: Path) -> None:
    split = toml_of(propose(shop(), tmp_path))["split"]
    end = START.date() + datetime.timedelta(days=120)
    assert (end - split["test_from"]).days % 7 == 0
    assert split["test_from"] - split["valid_from"] == end - split["test_from"]
    assert (end - split["test_from"]).days == 14


def test_a_range_of_two_days_leaves_the_last_events_out(tmp_path: Path) -> None:
    world = shop()
    world.events["at_time"] = [START + (time - START) / 60 for time in world.events["at_time"]]
    toml = toml_of(propose(world, tmp_path))
    assert toml["split"] == {"leave_last_out": True}
    # An example has no moment then, from which the age of an item would count.
    assert "time_since" not in {feature["kind"] for feature in toml["features"]["item"]}
    assert toml["tables"]["items"]["types"]["listed"] == "timestamp"
    assert "listed" in toml["index"]["attributes"]
    assert toml["evaluation"]["first_seen"] == "listed"


def test_a_split_column_cut_by_time_becomes_two_dates(tmp_path: Path) -> None:
    world = shop()
    bounds = [START + datetime.timedelta(days=days) for days in (80, 100)]
    world.events["part"] = [
        ("train", "valid", "test")[sum(time >= one for one in bounds)] for time in world.events["at_time"]
    ]
    split = toml_of(propose(world, tmp_path))["split"]
    assert split == {"valid_from": bounds[0].date(), "test_from": bounds[1].date()}


def test_a_split_column_by_chance_is_the_split(tmp_path: Path) -> None:
    world = shop()
    del world.events["at_time"]
    world.events["part"] = [("train", "train", "test")[row % 3] for row in range(len(world.events["who"]))]
    toml = toml_of(propose(world, tmp_path))
    assert toml["split"] == {"column": "part", "valid_fraction": 0.1}
    assert toml["tables"]["events"]["unordered"] is True


def test_integers_that_tell_the_events_of_a_user_apart_are_their_order(tmp_path: Path) -> None:
    world = shop()
    del world.events["at_time"]
    seen: dict[Any, int] = {}
    places = []
    for user in world.events["who"]:
        seen[user] = seen.get(user, -1) + 1
        places.append(seen[user])
    world.events["k"] = places
    toml = toml_of(propose(world, tmp_path))
    assert toml["tables"]["events"]["order"] == "k"
    assert toml["split"] == {"leave_last_out": True}


def test_events_without_any_order_or_split_are_refused(tmp_path: Path) -> None:
    world = shop()
    del world.events["at_time"]
    with pytest.raises(SchemaError, match="when an event happened"):
        propose(world, tmp_path)


def test_rarer_actions_weigh_more_and_impressions_are_context(tmp_path: Path) -> None:
    world = shop()
    n = len(world.events["who"])
    world.events["verb"] = ["impression"] * (n - 1_111) + ["click"] * 1_000 + ["cart"] * 100 + ["purchase"] * 11
    assert toml_of(propose(world, tmp_path))["actions"] == {
        "impression": 0.0,
        "click": 1.0,
        "cart": 2.0,
        "purchase": 3.0,
    }


def test_actions_whose_names_say_nothing_are_a_question(tmp_path: Path) -> None:
    world = renamed(shop(), {"verb": "action"})
    world.events["action"] = [{"view": "x1", "click": "x2", "buy": "x3"}[verb] for verb in world.events["action"]]
    draft = propose(world, tmp_path)
    assert "# check: How much does each action count" in draft.toml
    assert toml_of(draft)["actions"] == {"x1": 1.0, "x2": 1.5, "x3": 2.0}
    equal = propose(world, tmp_path, ask=lambda question: question.choices[-1])
    assert set(toml_of(equal)["actions"].values()) == {1.0}


def test_odd_names_of_columns_are_written_so_that_they_are_read_back(tmp_path: Path) -> None:
    world = renamed(shop(), {"kind": 'the "kind" (2)', "cost": "cost.eur", "what": "item no.", "time": "time"})
    toml = toml_of(propose(world, tmp_path))
    columns = {feature.get("column", feature["name"]) for feature in toml["features"]["item"]}
    assert {'the "kind" (2)', "cost.eur", "item no."} <= columns


def test_one_wrong_price_in_many_is_a_comment_not_another_type(tmp_path: Path) -> None:
    world = shop()
    paid: list[Any] = [None if one is None else str(one) for one in world.events["paid"]]
    world.events["paid"] = [*paid[:-1], "free"]
    toml = toml_of(propose(world, tmp_path))
    assert toml["tables"]["events"]["value"] == "paid"
