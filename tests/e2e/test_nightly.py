"""The nightly job by its real commands: it publishes something good, reuses, and its report agrees with retrieval."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pyarrow.parquet as pq

from tests.e2e.conftest import Towerline


def test_the_error_stream_has_our_progress_and_no_line_of_the_libraries(marketplace: Path) -> None:
    lines = (marketplace.parent / "refresh.log").read_text().splitlines()
    stages = [line for line in lines if line.startswith("stage ")]
    verbs = ("features", "train", "embed", "build", "publish")
    assert stages == [f"stage {number} of 5: {verb}" for number, verb in enumerate(verbs, start=1)]
    foreign = re.compile(
        r"[IWEF]\d{4} |WARNING|INFO|DEBUG|.*(absl|tensorflow|tflite|xnnpack|apache_beam|\.cc:)", re.IGNORECASE
    )
    assert [line for line in lines if foreign.match(line)] == []
    assert not any("\r" in line or "\x1b" in line for line in lines)


def test_the_towers_beat_popularity_on_the_test_part(marketplace: Path, towerline: Towerline) -> None:
    done = towerline("evaluate", marketplace)
    assert done.returncode == 0, done.stderr
    report = json.loads((marketplace.parent / "run" / "report.json").read_text())
    assert done.stdout.rstrip().endswith("report.html")
    assert (marketplace.parent / "run" / "report.html").stat().st_size > 10_000
    ours, popularity = report["recall"]["all"], report["baselines"]["popularity"]["recall"]["all"]
    assert ours["20"] > 1.2 * popularity["20"]
    assert ours["100"] > popularity["100"]


def test_the_report_ranks_what_retrieve_returns(marketplace: Path, towerline: Towerline) -> None:
    towerline("evaluate", marketplace)
    report = json.loads((marketplace.parent / "run" / "report.json").read_text())
    example = report["examples"][0]
    done = towerline("retrieve", marketplace, "--user", str(example["user_id"]), "--k", "10", "--json")
    assert done.returncode == 0, done.stderr
    candidates = json.loads(done.stdout)["candidates"]
    assert [one["item_id"] for one in candidates] == example["item_ids"][:10]


def test_a_second_refresh_reuses_every_stage_and_says_so(marketplace: Path, towerline: Towerline) -> None:
    before = towerline("versions", marketplace, "--json").stdout
    done = towerline("refresh", marketplace)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    for stage in ("features", "model", "embeddings", "bundle"):
        assert f"{stage}: up to date" in said
    assert towerline("versions", marketplace, "--json").stdout == before


def test_candidates_carry_what_the_bundle_knows_of_them(marketplace: Path, towerline: Towerline) -> None:
    done = towerline(
        "retrieve", marketplace, "--user", "u3", "--k", "5", "--where", "in_stock and price < 50", "--json"
    )
    assert done.returncode == 0, done.stderr
    items = {row["item_id"]: row for row in pq.read_table(marketplace.parent / "items.parquet").to_pylist()}
    candidates = json.loads(done.stdout)["candidates"]
    assert [one["rank"] for one in candidates] == [1, 2, 3, 4, 5]
    for one in candidates:
        assert one["title"] == items[one["item_id"]]["title"]
        assert items[one["item_id"]]["in_stock"]
        assert items[one["item_id"]]["price"] < 50


def test_a_record_says_more_than_an_unknown_user(marketplace: Path, towerline: Towerline) -> None:
    done = towerline("retrieve", marketplace, "--record", '{"history": [1001, 1002], "country": "US"}', "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cold_start"] is None
    done = towerline("retrieve", marketplace, "--user", "nobody", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["cold_start"] == "popularity"


def test_stages_one_by_one_give_the_bundle_that_refresh_gives(
    marketplace: Path, towerline: Towerline, tmp_path: Path
) -> None:
    for name in ("events.parquet", "items.parquet", "users.parquet", "marketplace.toml"):
        shutil.copy(marketplace.parent / name, tmp_path / name)
    config = tmp_path / "marketplace.toml"
    for verb in ("features", "train", "embed", "build", "publish"):
        done = towerline(verb, config)
        assert done.returncode == 0, done.stderr
        written = done.stdout.rstrip().splitlines()[-1]
        assert written.endswith("manifest.json")
        assert Path(written).is_file()
    one, two = (
        json.loads((folder / "run" / "features" / "manifest.json").read_text())
        for folder in (tmp_path, marketplace.parent)
    )
    assert {name: entry for name, entry in one["files"].items() if name != "schema.json"} == {
        name: entry for name, entry in two["files"].items() if name != "schema.json"
    }
