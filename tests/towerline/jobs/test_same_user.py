"""The same user gets the same answer by record, by id, on the command line and in the batch job."""

from __future__ import annotations

import contextlib
import datetime
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import SchemaError
from tests.index.serving_bundles import CATEGORIES, COUNTRIES, SCHEMA, write_bundle
from towerline.commands.cli import main
from towerline.jobs import candidates as candidates_job

ITEMS, K = 300, 6
UTC = datetime.UTC
USERS: dict[str, list[Any]] = {
    "int64": [5, -7, 0, 2**63 - 1, -(2**63), 10**18 + 1, 9007199254740993, 42],
    "string": ["5", "-7", "007", "NA", "null", "a,b", "é", "1000000000000000001"],
}


@dataclass(frozen=True)
class World:
    """A published version, its TOML, and its users as plain records, by kind of ids."""

    config: Path
    registry: Path
    records: dict[Any, dict[str, Any]]
    retriever: Retriever


def records_of_users(kind: str) -> dict[Any, dict[str, Any]]:
    rng = np.random.default_rng(4)
    records: dict[Any, dict[str, Any]] = {}
    for place, user_id in enumerate(USERS[kind]):
        n = place * 2
        rows = rng.integers(0, ITEMS, n)
        at = datetime.datetime(2025, 2, 20, 12, 30, 15, 250_000, UTC)
        records[user_id] = {
            "user_id": user_id,
            "country": COUNTRIES[place % 3],
            "age": 20 + place,
            "interests": list(CATEGORIES[: place % 4]),
            "history": [f"ad{row:06d}" if kind == "string" else int(1000 + 3 * row) for row in rows],
            "history_time": [at - datetime.timedelta(hours=37 * (n - event)) for event in range(n)],
            "history_action": [("click", "purchase")[int(row) % 2] for row in rows],
            "time": at,
        }
    return records


def publish(root: Path, kind: str) -> World:
    records = records_of_users(kind)
    users = pa.Table.from_pylist(list(records.values()))
    write_bundle(root / "bundle", items=ITEMS, text_ids=kind == "string", users=users)
    Registry(root / "registry").publish(root / "bundle")
    (root / "served.toml").write_text(tomli_w.dumps(SCHEMA))
    return World(root / "served.toml", root / "registry", records, Retriever.open(root / "registry"))


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, World]:
    return {kind: publish(tmp_path_factory.mktemp(kind), kind) for kind in USERS}


def on_the_command_line(world: World, *words: str) -> dict[str, Any]:
    shown = io.StringIO()
    common = ["--config", str(world.config), "--registry", str(world.registry), "--k", str(K), "--json"]
    with contextlib.redirect_stdout(shown):
        assert main(["retrieve", *common, *words]) == 0
    answer: dict[str, Any] = json.loads(shown.getvalue())
    return answer


def is_number(text: str) -> bool:
    return text.lstrip("-").isdigit() and str(int(text)) == text


def form_of_id(value: Any) -> st.SearchStrategy[Any]:
    """The forms of an id: of a number its text, of a text that is a number that number."""
    if isinstance(value, int):
        forms = [value, str(value), np.int64(value), pa.scalar(value), f"{value}.0"]
        return st.sampled_from(forms + ([float(value)] if abs(value) < 2**53 else []))
    return st.sampled_from([value, np.str_(value), pa.scalar(value)] + ([int(value)] if is_number(value) else []))


MOMENTS: list[Callable[[datetime.datetime], Any]] = [
    lambda time: time,
    lambda time: time.replace(tzinfo=None),
    lambda time: time.isoformat(),
    lambda time: time.astimezone(datetime.timezone(datetime.timedelta(hours=-5))).isoformat(" "),
    lambda time: np.datetime64(time.replace(tzinfo=None), "us"),
]


def retyped(record: dict[str, Any], data: st.DataObject) -> dict[str, Any]:
    """The record with ids and moments in other forms."""
    moment = data.draw(st.sampled_from(MOMENTS))
    other = dict(record)
    other["user_id"] = data.draw(form_of_id(record["user_id"]))
    other["history"] = [data.draw(form_of_id(item_id)) for item_id in record["history"]]
    other["history_time"] = [moment(time) for time in record["history_time"]]
    other["time"] = moment(record["time"])
    return other


def same(found: Candidates, expected: Candidates) -> None:
    assert found.item_ids.tolist() == expected.item_ids.tolist()
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-6)
    assert found.cold_start == expected.cold_start


@given(st.sampled_from(sorted(USERS)), st.integers(0, 7), st.data())
@settings(deadline=None, max_examples=60)
def test_by_record_by_id_and_on_the_command_line(
    worlds: dict[str, World], kind: str, place: int, data: st.DataObject
) -> None:
    world, user_id = worlds[kind], USERS[kind][place]
    record = world.records[user_id]
    expected = world.retriever.retrieve(record, K)
    same(world.retriever.retrieve(retyped(record, data), K), expected)
    by_id = world.retriever.retrieve_by_id(data.draw(form_of_id(user_id)), K)
    same(by_id, expected)
    assert by_id.known_user
    written = json.dumps(record, default=lambda time: time.isoformat())
    words = data.draw(st.sampled_from([["--user", str(user_id)], ["--record", written]]))
    shown = on_the_command_line(world, *words)
    assert [row["item_id"] for row in shown["candidates"]] == expected.item_ids.tolist()
    assert shown["known"] is (True if words[0] == "--user" else None)
    excluded = expected.item_ids.tolist()[:2]
    forms = [data.draw(form_of_id(item_id)) for item_id in excluded]
    without = world.retriever.retrieve(record, K, exclude=forms)
    assert not set(excluded) & set(without.item_ids.tolist())
    words += [word for item_id in excluded for word in ("--exclude", str(item_id))]
    shown = on_the_command_line(world, *words)
    assert [row["item_id"] for row in shown["candidates"]] == without.item_ids.tolist()


def as_csv(records: list[dict[str, Any]]) -> str:
    lines = [",".join(records[0])]
    for record in records:
        cells = [value if isinstance(value, str) else json.dumps(value, default=str) for value in record.values()]
        lines.append(",".join('"' + cell.strip('"').replace('"', '""') + '"' for cell in cells))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("kind", sorted(USERS))
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("only_ids", [True, False])
def test_in_the_batch_job(worlds: dict[str, World], tmp_path: Path, kind: str, form: str, only_ids: bool) -> None:
    world, file = worlds[kind], tmp_path / f"users.{form}"
    records = [{"user_id": user_id} for user_id in USERS[kind]] if only_ids else list(world.records.values())
    if form == "csv":
        file.write_text(as_csv(records))
    elif form == "jsonl":
        file.write_text("".join(json.dumps(record, default=str) + "\n" for record in records))
    else:
        pq.write_table(pa.Table.from_pylist(records), file)
    out = candidates_job.run(str(world.registry), tmp_path / "out", k=K, users=file)
    found: dict[Any, list[Any]] = {}
    for row in pq.read_table(out / "candidates").to_pylist():
        found.setdefault(row["user_id"], []).append(row["item_id"])
    assert list(found) == USERS[kind]
    for user_id, record in world.records.items():
        assert found[user_id] == world.retriever.retrieve(record, K).item_ids.tolist()


def test_a_user_in_no_table_is_said_to_be_new(worlds: dict[str, World], capsys: pytest.CaptureFixture[str]) -> None:
    world = worlds["string"]
    common = ["--config", str(world.config), "--registry", str(world.registry)]
    assert main(["retrieve", *common, "--user", "abc"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "user abc is in no table; answered as a new user"
    assert main(["retrieve", *common, "--user", "abc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["known"] is False
    world = worlds["int64"]
    common = ["--config", str(world.config), "--registry", str(world.registry)]
    assert main(["retrieve", *common, "--user", "404"]) == 0
    assert capsys.readouterr().out.startswith("user 404 is in no table")
    assert main(["retrieve", *common, "--user", "abc"]) == 0
    assert capsys.readouterr().out.startswith("user abc is in no table")
    with pytest.raises(SchemaError, match="user_id: expected an integer"):
        world.retriever.retrieve_by_id(5.5, K)
