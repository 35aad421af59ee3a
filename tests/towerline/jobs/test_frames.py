"""Frames as tables: the same rows from Arrow, Polars and pandas; an unchanged frame leaves the file alone."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import towerline
from pipelines.contracts.errors import ConfigError, SchemaError
from tests.worlds import write_marketplace
from towerline.jobs.frames import write_frames

ROWS: dict[str, list[Any]] = {
    "item": [10, 20, 30],
    "title": ["lamp", None, "rug"],
    "tags": [["a", "b"], [], ["c"]],
    "price": [1.5, 2.0, None],
    "since": [datetime.datetime(2025, 1, day, tzinfo=datetime.UTC) for day in (1, 2, 3)],
}


def as_pandas() -> pd.DataFrame:
    return pd.DataFrame(ROWS)


@pytest.mark.parametrize("frame", [pa.table(ROWS), pl.DataFrame(ROWS), as_pandas()], ids=["arrow", "polars", "pandas"])
def test_every_kind_of_frame_gives_the_same_rows(tmp_path: Path, frame: Any) -> None:
    file = write_frames({"items": frame}, tmp_path)["items"]
    assert file == tmp_path / "tables" / "items.parquet"
    found = pq.read_table(file)
    assert found.column_names == list(ROWS)
    for row, expected in zip(found.to_pylist(), pa.table(ROWS).to_pylist(), strict=True):
        price, wanted = row.pop("price"), expected.pop("price")
        assert (price is None or np.isnan(price)) if wanted is None else price == wanted
        assert row == expected


def test_text_is_plain_text_whatever_the_frame_calls_it(tmp_path: Path) -> None:
    views = pa.table(
        {"title": pa.array(["a", None], pa.string_view()), "large": pa.array(["b", "c"], pa.large_string())}
    )
    file = write_frames({"items": views}, tmp_path)["items"]
    assert pq.read_schema(file).types == [pa.string(), pa.string()]


def test_categories_are_their_values(tmp_path: Path) -> None:
    frame = pd.DataFrame({"country": pd.Categorical(["US", None, "DE"])})
    file = write_frames({"users": frame}, tmp_path)["users"]
    assert pq.read_schema(file).types == [pa.string()]
    assert pq.read_table(file)["country"].to_pylist() == ["US", None, "DE"]


def test_a_column_that_arrow_cannot_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="items: the frame cannot be read through Arrow"):
        write_frames({"items": pd.DataFrame({"price": [1, "two"]})}, tmp_path)


def test_an_unchanged_frame_leaves_the_file_alone(tmp_path: Path) -> None:
    file = write_frames({"items": pa.table(ROWS)}, tmp_path)["items"]
    written = file.stat().st_mtime_ns, file.stat().st_ino
    write_frames({"items": pl.DataFrame(ROWS)}, tmp_path)
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == written
    changed = pa.table({**ROWS, "price": [1.5, 2.5, None]})
    write_frames({"items": changed}, tmp_path)
    assert file.stat().st_ino != written[1]
    assert pq.read_table(file)["price"].to_pylist() == [1.5, 2.5, None]


def test_missing_numbers_are_no_change_and_a_damaged_file_is_written_again(tmp_path: Path) -> None:
    frame = pa.table({"price": [1.5, float("nan"), None]})
    file = write_frames({"items": frame}, tmp_path)["items"]
    written = file.stat().st_ino
    write_frames({"items": frame}, tmp_path)
    assert file.stat().st_ino == written
    file.write_bytes(file.read_bytes()[:-9])
    write_frames({"items": frame}, tmp_path)
    assert pq.read_table(file).num_rows == 3
    assert [one.name for one in file.parent.iterdir()] == ["items.parquet"]


def test_what_is_no_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"events: expected an Arrow table, a Polars or pandas frame.*got list"):
        write_frames({"events": [1, 2]}, tmp_path)
    assert not (tmp_path / "tables").exists()


def test_features_of_frames_are_those_of_files(tmp_path: Path) -> None:
    config = write_marketplace(tmp_path)
    tables = {name: pq.read_table(tmp_path / f"{name}.parquet") for name in ("events", "items", "users")}
    from_files = towerline.open(config, work=tmp_path / "files")
    from_frames = towerline.open(config, work=tmp_path / "frames", **tables)
    assert from_frames.config.tables.events.path == str(tmp_path / "frames" / "tables" / "events.parquet")
    from_files.features()
    from_frames.features()
    for part in ("sequences", "items", "users", "vocabulary", "items_encoded", "users_encoded"):
        for file in (tmp_path / "files" / "features" / part).iterdir():
            assert file.read_bytes() == (tmp_path / "frames" / "features" / part / file.name).read_bytes(), file


def test_the_toml_needs_no_path_for_a_frame(tmp_path: Path) -> None:
    config = write_marketplace(tmp_path)
    lines = [line for line in config.read_text().splitlines() if line != 'path = "events.parquet"']
    config.write_text("\n".join(lines))
    events = pq.read_table(tmp_path / "events.parquet")
    project = towerline.open(config, work=tmp_path / "run", events=events)
    assert project.config.tables.events.path == str(tmp_path / "run" / "tables" / "events.parquet")
    with pytest.raises(ConfigError, match=r"tables\.events\.path: required, but missing"):
        towerline.open(config, work=tmp_path / "run")
