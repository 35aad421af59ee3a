"""``towerline check``: its table, its findings, its exit code, and the time it takes."""

from __future__ import annotations

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.worlds import write_marketplace
from towerline.commands.cli import main

Output = pytest.CaptureFixture[str]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write_marketplace(tmp_path / "tables", users=60, items=60, events=2_000)


def call(config: Path, *words: str) -> int:
    return main(["check", "--config", str(config), "--work", str(config.parents[1] / "run"), "--quiet", *words])


def test_what_is_well_ends_with_0_and_one_table(config: Path, capsys: Output) -> None:
    before = sorted(config.parents[1].rglob("*"))
    assert call(config) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in said[:3]] == ["users", "items", "events"]
    assert said[2].split()[1] == "2,000"
    assert "features  would run  there are no features yet" in said
    assert any(line.startswith("ok       split: train 1,5") for line in said)
    assert said[-1] == "0 errors, 0 warnings"
    assert sorted(config.parents[1].rglob("*")) == before


def test_errors_come_first_and_end_with_1(config: Path, capsys: Output) -> None:
    text = config.read_text().replace('"in_stock"]', '"in_stok"]').replace("2025-02-23", "2030-02-23")
    config.write_text(text)
    assert call(config) == 1
    said = capsys.readouterr().out
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert errors[0].startswith("error    index.attributes: expected a column of the items table, got 'in_stok'.")
    assert "Did you mean 'in_stock'?" in errors[0]
    assert errors[1].startswith("error    [split]: expected events in test, found none (train")
    assert "Here: they run from 2025-01-01 01:53 to 2025-03-01" in errors[1]
    assert said.splitlines()[-1].startswith("2 errors")


def test_ids_that_do_not_join_are_shown_with_an_example_of_each_side(config: Path, capsys: Output) -> None:
    items = config.parent / "items.parquet"
    table = pq.read_table(items)
    ids = [f"0{item}" for item in table["item_id"].to_pylist()]
    pq.write_table(table.set_column(0, "item_id", [ids]), items)
    assert call(config) == 1
    said = capsys.readouterr().out
    assert "0.00% of 2,000 events have a user and an item that are in their tables" in said
    assert "events have '1" in said
    assert "tables.items has '01" in said


def test_a_toml_that_cannot_be_read_is_a_finding(config: Path, capsys: Output) -> None:
    config.write_text(config.read_text().replace("attributes =", "atributes ="))
    assert call(config) == 1
    assert "did you mean index.attributes?" in capsys.readouterr().out


def test_the_result_as_json(config: Path, capsys: Output) -> None:
    assert call(config, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["errors"], facts["warnings"]) == (True, 0, 0)
    assert sum(facts["summary"]["events"].values()) == facts["summary"]["rows"]["events"] == 2_000
    assert {finding["verdict"] for finding in facts["findings"]} == {"ok"}
    assert [state["stage"] for state in facts["stages"]] == ["features", "train", "embed", "build"]


def test_estimates_of_a_sample_are_marked(config: Path, capsys: Output) -> None:
    assert call(config, "--sample", "500") == 0
    said = capsys.readouterr().out
    assert "sampled 500 of 2,000 events" in said
    assert re.search(r"^events +~2,000  train ~", said, re.MULTILINE)


def test_a_check_of_misspelt_columns_takes_less_than_two_seconds_and_loads_no_tensorflow(config: Path) -> None:
    config.write_text(config.read_text().replace('time = "time"', 'time = "tyme"'))
    program = (
        "import sys; from towerline.commands.cli import main; code = main(sys.argv[1:]); "
        "print([name for name in ('tensorflow', 'apache_beam', 'pandas') if name in sys.modules]); sys.exit(code)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", program, "check", "--config", str(config), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (1, "[]")
    assert "tables.events.time: expected a column of the events table, got 'tyme'. Did you mean 'time'?" in done.stdout
    # Processor time: what others do on the machine is no matter here.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_days_without_events_and_actions_that_nobody_does_are_warnings(config: Path, capsys: Output) -> None:
    config.write_text(config.read_text().replace("[actions]", "[actions]\nwishlist = 1.0"))
    events = config.parent / "events.parquet"
    table = pq.read_table(events)
    kept = [moment.date().isoformat() != "2025-01-20" for moment in table["time"].to_pylist()]
    pq.write_table(table.filter(kept), events)
    assert call(config) == 0
    said = capsys.readouterr().out
    assert "warning  actions: no event has the action 'wishlist'." in said
    assert "warning  tables.events.time: no event on 2025-01-20." in said


def test_a_rule_is_tried_on_the_items(config: Path, capsys: Output) -> None:
    assert call(config, "--set", 'evaluation.eligible="category > 3"') == 1
    assert "error    evaluation.eligible: where: 'category' is text" in capsys.readouterr().out
    assert call(config, "--set", 'evaluation.eligible="price < 0"') == 0
    assert "warning  evaluation.eligible: 0 of 60 items pass." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ('index.value="category"', "index.value: expected a column of numbers, 'category' is string"),
        (
            'evaluation.price="category"',
            "evaluation.price: expected a column of numbers, got 'category' of type string.",
        ),
        ('evaluation.first_seen="price"', "evaluation.first_seen: expected a column of times, got 'price'"),
        ("index.shards=50", "index.shards: expected at most 3 for 60 items, got 50."),
        ("index.memory_gib=0.01", "index.memory_gib: the build is predicted to need"),
    ],
)
def test_what_the_index_and_the_report_would_refuse_is_found(
    config: Path, override: str, said: str, capsys: Output
) -> None:
    assert call(config, "--set", override) == 1
    assert f"error    {said}" in capsys.readouterr().out


def rolling(config: Path) -> None:
    """Windows of a week each that end after the newest event, 2025-03-01."""
    lines = config.read_text().splitlines()
    first = lines.index("[split]")
    assert lines[first + 1].startswith("valid_from")
    assert lines[first + 2].startswith("test_from")
    lines[first + 1 : first + 3] = ["valid_days = 7", "test_days = 7", "history_days = 40"]
    config.write_text("\n".join(lines))


def test_rolling_windows_are_shown_with_their_dates_and_events(config: Path, capsys: Output) -> None:
    rolling(config)
    assert call(config) == 0
    said = capsys.readouterr().out
    windows = "history from 2025-01-21, valid from 2025-02-16, test from 2025-02-23, end 2025-03-02"
    assert re.search(rf"^windows +{windows}$", said, re.MULTILINE)
    assert re.search(rf"^ok +split: {windows}: train [0-9,]+, valid [0-9,]+, test [0-9,]+ events", said, re.MULTILINE)
    assert re.search(r"^ok +split.history_days: [0-9,]+ events before then are not used", said, re.MULTILINE)


def test_events_later_than_today_are_a_warning(config: Path, capsys: Output) -> None:
    rolling(config)
    events = config.parent / "events.parquet"
    table = pq.read_table(events)
    times = table["time"].to_pylist()
    times[0] = times[0].replace(year=2098)
    kind = table.schema.field("time").type
    pq.write_table(table.set_column(table.column_names.index("time"), "time", pa.array(times, kind)), events)
    assert call(config) == 0
    said = capsys.readouterr().out
    assert "events later than today: 1. They are not used before their day." in said
    assert "end 2025-03-02" in said


def test_features_as_of_a_day_and_what_the_next_night_would_do(config: Path, capsys: Output) -> None:
    rolling(config)
    common = ["--config", str(config), "--work", str(config.parents[1] / "run"), "--quiet"]
    assert main(["features", *common, "--as-of", "2025-02-20"]) == 0
    assert "end 2025-02-20" in capsys.readouterr().out
    assert call(config) == 0
    said = capsys.readouterr().out
    assert re.search(r"^features .* would append +the windows move, 0 new files of events", said, re.MULTILINE), said
    previous = ["--previous", str(config.parents[1] / "run" / "features")]
    assert main(["features", *common, *previous]) == 0
    assert "end 2025-03-02" in capsys.readouterr().out
    assert call(config) == 0
    assert re.search(r"^features +up to date", capsys.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("verb", ["features", "refresh"])
def test_as_of_is_refused_with_dates_in_the_split_and_where_it_is_none(config: Path, verb: str, capsys: Output) -> None:
    common = ["--config", str(config), "--work", str(config.parents[1] / "run"), "--quiet"]
    assert main([verb, *common, "--as-of", "2025-02-20"]) == 2
    assert (
        "as-of moves rolling windows, and [split] has none. Write valid_days and test_days" in capsys.readouterr().err
    )
    assert main([verb, *common, "--as-of", "last week"]) == 2
    assert "--as-of: expected a date, or a time with its zone" in capsys.readouterr().err
