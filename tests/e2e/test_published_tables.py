"""The benchmark of public tables takes a folder as it is, and adds what its protocol needs."""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import published_tables
from benchmarks.published_tables import events_of, schema_of
from towers.settings import settings_for

USERS, ITEMS = 60, 40


def folder_of(place: Path, table: pa.Table) -> Path:
    place.mkdir()
    pq.write_table(table, place / "interactions.parquet")
    return place


def behaviours(seed: int = 0) -> list[dict[str, object]]:
    """Users who view items and buy some; one bought item per user is held out, with no time and no view left."""
    draw, rows = np.random.default_rng(seed), []
    for user in range(USERS):
        own = draw.permutation(ITEMS)[:12]
        for item in own[1:]:
            kinds = ("view", "buy") if draw.random() < 0.5 else ("view",)
            rows += [(user, int(item), kind, int(draw.integers(10_000)), "train") for kind in kinds]
        rows += [(user, int(own[1]), "buy", int(draw.integers(10_000)), "train")]
        rows += [(user, int(own[0]), "buy", None, "test")]
    names = ("user_id", "item_id", "behavior", "timestamp", "split")
    return [dict(zip(names, rows[place], strict=True)) for place in draw.permutation(len(rows))]


def test_held_out_events_without_a_time_come_last_and_the_last_purchase_before_them_is_validation(
    tmp_path: Path,
) -> None:
    rows = behaviours()
    folder = folder_of(tmp_path / "shop", pa.Table.from_pylist(rows))
    made = pq.read_table(events_of(folder, tmp_path / "work")).to_pylist()
    assert len(made) == len(rows)
    bought = {}
    for row in sorted((row for row in rows if row["timestamp"] is not None), key=lambda row: row["timestamp"]):
        if row["behavior"] == "buy":
            bought[row["user_id"]] = row["item_id"]
    for before, after in zip(rows, made, strict=True):
        assert (before["user_id"], before["item_id"], before["behavior"]) == (
            after["user_id"], after["item_id"], after["behavior"],
        )  # fmt: skip
        wanted = "valid" if bought[before["user_id"]] == before["item_id"] else "train"
        assert after["split"] == ("test" if before["split"] == "test" else wanted)
        assert after["pos"] == (before["timestamp"] if before["split"] == "train" else max(row["pos"] for row in made))
    schema = schema_of(folder, events_of(folder, tmp_path / "work"))
    assert settings_for(schema).protocol == "positions"
    assert set(schema.actions) == {"view", "buy"}


def test_an_item_that_is_bought_again_is_validated_by_its_last_purchase_alone(tmp_path: Path) -> None:
    rows = behaviours()
    known = {row["user_id"]: row["item_id"] for row in rows if row["split"] == "train"}
    rows = [row | {"item_id": known[row["user_id"]]} if row["split"] == "test" else row for row in rows]
    folder = folder_of(tmp_path / "shop", pa.Table.from_pylist(rows))
    made = pq.read_table(events_of(folder, tmp_path / "work")).to_pylist()
    assert sorted(row["user_id"] for row in made if row["split"] == "valid") == list(range(USERS))


@pytest.mark.parametrize(("days", "protocol"), [((1, 2, 3), "windows"), ((1, 1, 1), "positions")])
def test_times_are_a_split_where_one_moment_parts_them(days: tuple[int, ...], protocol: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [
        {
            "user_id": f"u{user}",
            "item_id": f"i{draw.integers(ITEMS)}",
            "timestamp": datetime.datetime(2026, 1, day, user % 24, place, tzinfo=datetime.UTC),
            "split": split,
        }
        for user in range(USERS)
        for place, (split, day) in enumerate(zip(("train", "valid", "test"), days, strict=True))
    ]
    folder = folder_of(tmp_path / "shop", pa.Table.from_pylist(rows))
    schema = schema_of(folder, events_of(folder, tmp_path / "work"))
    assert settings_for(schema).protocol == protocol


@pytest.mark.filterwarnings("ignore:Method expects CSR")  # the library, of a matrix it made itself
def test_the_command_writes_an_entry_and_baselines_and_makes_no_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder_of(tmp_path / "shop", pa.Table.from_pylist(behaviours()))
    results = tmp_path / "results.json"
    command = ["published_tables", "--data", str(tmp_path), "--seeds", "1", "--work", str(tmp_path / "work")]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(results), "--set", "epochs=1", "embedding_dim=9"])
    published_tables.main()
    stored = json.loads(results.read_text())
    (run,) = stored["runs"]
    assert (run["dataset"], run["protocol"], run["k"], run["seed"]) == ("shop", "leave last out", 10, 1)
    # 10 of 40 items at random hold a quarter of the truth.
    assert 0.05 < run["recall"] < 0.7
    assert run["figures"]["removed"]["users"] == USERS
    assert set(stored["baselines"]["shop"]) == {"popularity", "als", "item_knn"}
    published_tables.main()
    assert json.loads(results.read_text()) == stored
    assert "already in" in capsys.readouterr().out
