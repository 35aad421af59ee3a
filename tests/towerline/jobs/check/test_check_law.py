"""The law of the check: what the features job refuses it finds, with the same words, and what it passes the job takes.

Where both read the tables their figures are equal. The check writes nothing.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import towerline
from pipelines.contracts.errors import TowerlineError
from pipelines.features.reporting import artifact_summary
from towerline.jobs.check.job import CheckResult
from towerline.project import Project

START = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
DAYS = 30
World = dict[str, Any]


def world(seed: int) -> World:
    """Tables as rows, and the TOML as a dictionary: nothing is wrong with it."""
    rng = np.random.default_rng(seed)
    items = [
        {"item": item, "color": "red" if item % 2 else "blue", "price": 1.5 * item, "vector": [0.1 * item, 1.0]}
        for item in range(1, 9)
    ]
    users = [{"user": f"u{user}", "country": "DE"} for user in range(1, 10)]
    events = [
        {
            "user": f"u{rng.integers(1, 10)}",
            "item": int(rng.integers(1, 9)),
            "time": START + datetime.timedelta(hours=int(hour)),
            "action": "click" if rng.random() < 0.7 else "purchase",
            "value": float(rng.integers(1, 100)),
            "part": "test" if hour > 600 else "valid" if hour > 500 else "train",
        }
        for hour in np.sort(rng.integers(0, DAYS * 24, 60))
    ]
    toml: dict[str, Any] = {
        "dataset": {"name": "law"},
        "tables": {
            "events": {"user_id": "user", "item_id": "item", "time": "time", "action": "action", "value": "value"},
            "items": {"item_id": "item"},
            "users": {"user_id": "user"},
        },
        "actions": {"click": 1.0, "purchase": 2.0},
        "features": {
            "item": [
                {"name": "item", "kind": "id"},
                {"name": "color", "kind": "categorical"},
                {"name": "price", "kind": "numeric"},
                {"name": "vector", "kind": "embedding", "dim": 2},
            ],
            "user": [{"name": "country", "kind": "categorical"}],
        },
        "split": {"valid_from": datetime.date(2025, 1, 21), "test_from": datetime.date(2025, 1, 26)},
        "validation": {"max_reject_rate": 0.05},
    }
    return {"events": events, "items": items, "users": users, "toml": toml, "formats": {}, "after": []}


def some(rows: list[dict[str, Any]], share: float, **cells: Any) -> None:
    """Changes the cells of every n-th row."""
    for row in rows[:: max(round(1 / share), 1)]:
        row.update(cells)


SHARES = st.sampled_from([0.02, 0.2, 1.0])
BREAKS: dict[str, Callable[[World, float], object]] = {
    "unknown items": lambda w, share: some(w["events"], share, item=99),
    "unknown users": lambda w, share: some(w["events"], share, user="stranger"),
    "events without a user": lambda w, share: some(w["events"], share, user=None),
    "events without a time": lambda w, share: some(w["events"], share, time=None),
    "a time long ago": lambda w, share: some(
        w["events"], share, time=datetime.datetime(1971, 1, 1, tzinfo=datetime.UTC)
    ),
    "an action that is not listed": lambda w, share: some(w["events"], share, action="view"),
    "a value that is no number": lambda w, share: some(w["events"], share, value=float("inf")),
    "items twice": lambda w, _: w["items"].extend(map(dict, w["items"][:1])),
    "users twice": lambda w, _: w["users"].extend(map(dict, w["users"][:1])),
    "items without an id": lambda w, share: some(w["items"], share, item=None),
    "a vector of another length": lambda w, share: some(w["items"], share, vector=[1.0, 2.0, 3.0]),
    "a vector of zeros": lambda w, share: some(w["items"], share, vector=[0.0, 0.0]),
    "exact repeats": lambda w, share: w["events"].extend(
        [dict(row) for row in w["events"][:: max(round(1 / share), 1)]]
    ),
    "repeats are rejected": lambda w, _: w["toml"]["validation"].update(duplicates="reject"),
    "no events": lambda w, _: w["events"].clear(),
    "no items": lambda w, _: w["items"].clear(),
    "nothing before valid_from": lambda w, _: w["toml"]["split"].update(valid_from=datetime.date(2024, 1, 1)),
    "nothing after test_from": lambda w, _: w["toml"]["split"].update(test_from=datetime.date(2026, 1, 1)),
    "test_until": lambda w, _: w["toml"]["split"].update(test_until=datetime.date(2025, 1, 28)),
    "rolling windows": lambda w, _: w["toml"].update(split={"valid_days": 5, "test_days": 5}),
    "rolling windows over a history": lambda w, share: w["toml"].update(
        split={"valid_days": 2, "test_days": 3, "history_days": 6 + round(20 * share)}
    ),
    "a time to come": lambda w, share: some(
        w["events"], share, time=datetime.datetime(2098, 1, 1, tzinfo=datetime.UTC)
    ),
    "leave last out": lambda w, _: w["toml"].update(split={"leave_last_out": True}),
    "a column of splits": lambda w, _: w["toml"].update(split={"column": "part", "valid_fraction": 0.3}),
    "a rule": lambda w, share: w["toml"]["validation"].update(
        columns={"events": {"value": {"max": 100 - 100 * share}}}
    ),
    "a rule of values": lambda w, _: w["toml"]["validation"].update(columns={"items": {"color": {"allowed": ["red"]}}}),
    "no items table": lambda w, _: (w["toml"]["tables"].pop("items", None), w["toml"]["features"].pop("item", None)),
    "no users table": lambda w, _: (w["toml"]["tables"].pop("users", None), w["toml"]["features"].pop("user", None)),
    "a missing column": lambda w, _: w["toml"]["tables"]["events"].update(value="worth"),
    "a feature without its column": lambda w, _: (
        w["toml"]["features"].get("item", []).append({"name": "size", "kind": "numeric"})
    ),
    "min_joined": lambda w, share: w["toml"]["validation"].update(min_joined=share),
    "anything goes": lambda w, _: w["toml"]["validation"].update(max_reject_rate=1.0),
    "events as CSV": lambda w, _: w["formats"].update(events="csv"),
    "a ragged line": lambda w, _: (w["formats"].update(events="csv"), w["after"].append("ragged")),
    "a broken file": lambda w, _: w["after"].append("truncate"),
    "a missing file": lambda w, _: w["after"].append("remove"),
}


def written(world: World, folder: Path) -> Path:
    """Writes the tables and the TOML; returns the TOML's path."""
    for name in ("events", "items", "users"):
        if name not in world["toml"]["tables"]:
            continue
        rows = world[name]
        columns = {column: [row[column] for row in rows] for column in (rows or WHOLE[name])[0]}
        table = pa.table(columns) if rows else pa.Table.from_pylist(WHOLE[name]).slice(0, 0)
        file = folder / f"{name}.{world['formats'].get(name, 'parquet')}"
        if file.suffix == ".csv":
            pacsv.write_csv(table, file)
        else:
            pq.write_table(table, file)
        world["toml"]["tables"][name]["path"] = file.name
    events = folder / world["toml"]["tables"]["events"]["path"]
    for step in world["after"]:
        if step == "ragged":
            events.write_text(events.read_text() + "u1,3\n")
        elif step == "truncate" and events.exists():
            events.write_bytes(events.read_bytes()[:-20] if events.suffix == ".parquet" else b"")
        elif step == "remove":
            events.unlink(missing_ok=True)
    path = folder / "law.toml"
    path.write_text(tomli_w.dumps(world["toml"]))
    return path


WHOLE = world(0)


def listed(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below, with its size and its time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


def checked(project: Project, folder: Path) -> CheckResult:
    """The check's result; it has written nothing, and what it says can be printed as JSON."""
    before = listed(folder)
    result = project.check()
    assert listed(folder) == before
    json.dumps(result.as_facts(), default=str)
    return result


def figures(summary: Any) -> dict[str, Any]:
    """The figures of a summary; what is no figure of the tables left out."""
    facts = dataclasses.asdict(summary)
    facts["rejects"] = sorted(
        [(one["table"], one["reason"], one["rows"]) for one in facts["rejects"] if one["rows"]], key=str
    )
    facts["unknown"] = {side: one["events"] for side, one in facts["unknown"].items()}
    return {name: value for name, value in facts.items() if name not in ("drift", "sample")}


def refused(project: Project) -> TowerlineError | None:
    """What the features job says against the tables; None where it takes them."""
    try:
        project.features()
    except TowerlineError as err:
        return err
    return None


def hold(world: World, folder: Path) -> None:
    """Runs the check and the job, and compares what they say."""
    try:
        project = towerline.open(written(world, folder), work=folder / "run")
    except TowerlineError:
        return  # The TOML itself is refused, by every verb.
    result = checked(project, folder)
    refusal = refused(project)
    if refusal is not None:
        said = [str(finding) for finding in result.errors if finding.kind == type(refusal).__name__]
        assert any(str(refusal).splitlines()[0] in text for text in said), (str(refusal), result.findings)
        return
    # Without events to validate on the features can be made, but a night is no use.
    assert [str(one) for one in result.errors if "expected events in valid" not in str(one)] == []
    assert result.summary is not None
    assert figures(result.summary) == figures(artifact_summary.summary_of(folder / "run" / "features"))


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_found_as_the_job_finds_it(name: str, tmp_path: Path) -> None:
    one = world(1)
    BREAKS[name](one, 0.02 if name in ("unknown items", "a rule") else 0.2)
    hold(one, tmp_path)


BROKEN = {
    "seed": st.integers(0, 1_000),
    "breaks": st.lists(st.tuples(st.sampled_from(sorted(BREAKS)), SHARES), max_size=4),
}


def hold_broken(seed: int, breaks: list[tuple[str, float]], folder: Path) -> None:
    one = world(seed)
    for name, share in breaks:
        BREAKS[name](one, share)
    hold(one, folder)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(**BROKEN)
def test_what_the_job_refuses_is_found_and_what_is_passed_is_taken(
    seed: int, breaks: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    hold_broken(seed, breaks, tmp_path_factory.mktemp("law"))


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(**BROKEN)
def test_the_same_for_many_worlds(
    seed: int, breaks: list[tuple[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    hold_broken(seed, breaks, tmp_path_factory.mktemp("law"))


def test_a_second_check_says_which_stages_would_run(tmp_path: Path) -> None:
    project = towerline.open(written(world(3), tmp_path), work=tmp_path / "run")
    first = checked(project, tmp_path)
    assert [(state.stage, state.state) for state in first.stages] == [
        (stage, "would run") for stage in ("features", "train", "embed", "build")
    ]
    project.features()
    # A draft that a killed writer left is not the check's to remove.
    (tmp_path / "run" / ".features.999999999.abcdef12.draft").mkdir()
    second = checked(project, tmp_path)
    assert [state.state for state in second.stages] == ["up to date", "would run", "would run", "would run"]
    more = pa.Table.from_pylist([{**WHOLE["events"][-1], "time": START + datetime.timedelta(days=DAYS)}])
    pq.write_table(more, tmp_path / "more.parquet")
    config = tmp_path / "law.toml"
    config.write_text(
        config.read_text().replace('path = "events.parquet"', 'path = ["events.parquet", "more.parquet"]')
    )
    third = checked(towerline.open(config, work=tmp_path / "run"), tmp_path)
    assert (third.stages[0].state, third.stages[0].reason) == ("would append", "1 new file of events")
    with (tmp_path / "events.parquet").open("r+b") as file:
        file.seek(200)
        byte = file.read(1)
        file.seek(200)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(tmp_path / "events.parquet", ns=(1, 1))
    changed = towerline.open(config, work=tmp_path / "run").check()
    assert changed.stages == () or changed.stages[0].reason.startswith("in full: ")
