"""The law of erasure, over random data sets: after users are forgotten, no artifact has a byte of their ids.

The oracle reads every file by itself: raw bytes, and each column of Parquet and Arrow files as Python values. It does
not use the search of ``erasure-report``, which must find exactly what the oracle finds.
"""

from __future__ import annotations

import csv
import json
import random
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.contracts.schema import DatasetSchema
from pipelines.features import job as features
from pipelines.tables.erasure.forget_list import ForgetList
from tests.pipelines.conftest import EVENTS, ITEMS, at, raw_schema, schema_of
from tests.traces import find_traces

Id = int | str
LETTERS = "abcdefgxyzABC0123456789é中 -_.|;#@&<'"


@dataclass
class World:
    """A data set of a few nights: ``nights`` are its files of events so far."""

    folder: Path
    draw: random.Random
    users: list[Id]
    with_users_table: bool
    with_id_feature: bool
    form: str
    color: bool = True
    nights: list[list[dict[str, Any]]] = field(default_factory=list)

    @classmethod
    def random(cls, folder: Path, seed: int) -> World:
        draw = random.Random(seed)
        users: list[Id] = [draw.randrange(-(10**17), 10**17) for _ in range(6)]
        if draw.random() < 0.5:
            users = [f"id{draw.randrange(10**6)}" + "".join(draw.choices(LETTERS, k=8)) + "z" for _ in range(6)]
        flags = [draw.random() < 0.6 for _ in range(2)]
        return cls(folder, draw, users, *flags, draw.choice(["parquet", "csv", "jsonl"]))

    def new_night(self) -> None:
        """A file with events of all users, some of which are rejected, and the other tables."""
        rows = [
            {
                **event,
                "user": self.draw.choice(self.users),
                "time": event["time"].isoformat(),
                "item": str(event["item"]),
            }
            for event in EVENTS + EVENTS
        ]
        rows += [{**rows[0], "user": user, "price": self.draw.random()} for user in self.users]
        for user in self.users:
            change = self.draw.choice(
                [{"time": "soon"}, {"action": "stare"}, {"price": "cheap"}, {"action": f"x {user} y"}]
            )
            rows.append({**rows[0], "user": user, **change})
        self.draw.shuffle(rows)
        self.nights.append(rows)
        name = f"events-{len(self.nights)}"
        path = self.folder / f"{name}.{self.form}"
        if self.form == "csv":
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), quoting=csv.QUOTE_ALL)
                writer.writeheader()
                writer.writerows(rows[:9])
                for user in self.users:  # Lines that are no rows.
                    csv.writer(file).writerow([user, "10"])
                    csv.writer(file).writerow([*rows[0].values(), "for", user])
                writer.writerows(rows[9:])
        elif self.form == "jsonl":
            lines = [json.dumps(row, ensure_ascii=self.draw.random() < 0.5) for row in rows]
            lines += [json.dumps({"user": user, "note": [user]})[:-2] for user in self.users]
            path.write_text("\n".join(lines) + "\n")
        else:
            texts = [{**row, "price": str(row["price"])} for row in rows]
            pq.write_table(pa.Table.from_pylist(texts), path)
        pq.write_table(
            pa.Table.from_pylist([{**item, "item": str(item["item"])} for item in ITEMS]), self.folder / "items.parquet"
        )
        profiles = [{"user": user, "country": self.draw.choice(["US", "DE"])} for user in self.users[1:]]
        pq.write_table(pa.Table.from_pylist(profiles), self.folder / "users.parquet")

    @property
    def schema(self) -> DatasetSchema:
        raw = raw_schema(self.folder)
        raw["ids"] = {"user": "int64" if isinstance(self.users[0], int) else "string", "item": "string"}
        raw["validation"] = {"max_reject_rate": 1.0, "earliest": at(-1).isoformat()}
        raw["features"]["user"] = []
        if self.with_id_feature:
            raw["features"]["user"].append({"name": "member", "column": "user", "kind": "id"})
        if self.with_users_table:
            raw["features"]["user"].append({"name": "country", "kind": "categorical"})
        else:
            del raw["tables"]["users"]
            raw["features"]["user"].append({"name": "bought", "kind": "count", "window_days": [28]})
            if self.with_id_feature:
                raw["features"]["user"] = [{"name": "bought", "kind": "count", "window_days": [28]}]
        if not self.color:
            raw["features"]["item"] = [one for one in raw["features"]["item"] if one["name"] != "color"]
            raw["actions"] = {"click": 2.0, "purchase": 3.0}
        return schema_of(raw)


def decoded(path: Path) -> str:
    """All values of a file as Python prints them; of other files nothing."""
    if path.suffix == ".parquet":
        table = pq.ParquetFile(path).read()
    elif path.suffix == ".arrow":
        with pa.OSFile(str(path), "rb") as source:
            table = pa.ipc.open_file(source).read_all()
    else:
        return ""
    values = [value for column in table.columns for value in column.to_pylist()]
    return "\n".join(value if isinstance(value, str) else repr(value) for value in values)


def places_of(user: Id, folder: Path) -> set[str]:
    """Files below the folder that have the id's text or its eight bytes."""
    text = str(user)
    patterns = [text.encode(), json.dumps(text)[1:-1].encode()]
    if isinstance(user, int):
        patterns.append(struct.pack("<q", user))
    found = set()
    for path in folder.rglob("*"):
        if path.is_file():
            raw, values = path.read_bytes(), decoded(path)
            if any(one in raw for one in patterns) or text in values or json.dumps(text)[1:-1] in values:
                found.add(str(path.relative_to(folder)))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_no_byte_of_a_forgotten_id_is_in_any_later_artifact(tmp_path: Path, seed: int) -> None:
    folder, tables = tmp_path, tmp_path / "tables"
    tables.mkdir()
    world = World.random(tables, seed)
    draw, out = world.draw, folder / "work" / "features"
    for _ in range(draw.choice([1, 2])):
        world.new_night()
        features.run(world.schema, out, previous=out if out.exists() else None, partitions=draw.choice([None, 2]))
    gone: list[Id] = []
    for _ in range(draw.choice([1, 2])):
        asked = draw.sample(world.users, draw.choice([1, 2]))
        _searched_as_by_the_oracle(out, world.users)
        gone += asked
        if draw.random() < 0.5:
            world.new_night()
        elsewhere = draw.random() < 0.3
        target = folder / "work" / f"features-{len(gone)}" if elsewhere else out
        previous = out if elsewhere or draw.random() < 0.6 else None
        features.run(world.schema, target, previous=previous, forget=ForgetList.of(asked))
        _is_gone(gone, world.users, target)
        out = target
        for _ in range(draw.choice([1, 2])):  # Later runs, without a list.
            change = draw.choice(["night", "full", "schema", "nothing"])
            if change == "night":
                world.new_night()
            world.color = world.color and change != "schema"
            features.run(world.schema, out, previous=None if change == "full" else out)
            _is_gone(gone, world.users, out)


def _is_gone(gone: list[Id], users: list[Id], out: Path) -> None:
    for user in gone:
        assert places_of(user, out.parent / out.name) == set()
        assert places_of(user, out.parent / f"{out.name}.forgotten.arrow") == set()
    parts = (out / "sequences").glob("*.parquet")
    kept = [user for part in parts for user in pq.ParquetFile(part).read(["user_id"])["user_id"].to_pylist()]
    assert kept
    assert set(kept) <= set(users) - set(gone)
    assert find_traces([out], gone) == []


def _searched_as_by_the_oracle(out: Path, users: list[Id]) -> None:
    """The search finds each id in the files in which the oracle finds it."""
    traces = {trace.file: {*trace.users, *trace.possible} for trace in find_traces([out], users)}
    for user in users:
        assert {file for file, found in traces.items() if str(user) in found} == places_of(user, out)
