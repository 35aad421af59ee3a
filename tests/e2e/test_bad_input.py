"""Bad input by the real command: one clear message with the place and the remedy, exit 1 or 2, nothing harmed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import Towerline


@pytest.fixture
def copy(marketplace: Path, tmp_path: Path) -> Path:
    """The marketplace's tables in a folder of their own, to be spoiled; no run."""
    for name in ("events.parquet", "items.parquet", "users.parquet", "marketplace.toml"):
        shutil.copy(marketplace.parent / name, tmp_path / name)
    return tmp_path / "marketplace.toml"


def edit(name: str, change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        pq.write_table(change(pq.read_table(folder / name)), folder / name)

    return apply


def replace(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        toml = folder / "marketplace.toml"
        assert old in toml.read_text()
        toml.write_text(toml.read_text().replace(old, new, 1))

    return apply


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def as_text(name: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(
        table.column_names.index(name), name, pa.array(["soon"] * len(table), pa.string())
    )


@pytest.mark.parametrize(
    ("spoil", "exit_code", "expected"),
    [
        (remove("events.parquet"), 1, ["events", "events.parquet"]),
        (edit("events.parquet", lambda table: table.drop_columns(["item_id"])), 1, ["item_id", "events"]),
        (edit("events.parquet", as_text("time")), 1, ["time"]),
        (edit("items.parquet", as_text("price")), 1, ["price"]),
        (edit("items.parquet", lambda table: pa.concat_tables([table, table.slice(5, 1)])), 1, ["1005", "item_id"]),
        (edit("events.parquet", lambda table: table.slice(0, 0)), 1, ["events"]),
        (replace('kind = "categorical"', 'kind = "colour"'), 2, ["colour", "categorical"]),
        (replace("[split]", "[split]\nvalid_untill = 3"), 2, ["split.valid_untill", "unknown key"]),
        (replace("test_from = 2025-02-23", "test_from = 2035-02-23"), 1, ["test"]),
        (replace("[dataset]", "[dataset"), 2, ["marketplace.toml", "not valid TOML"]),
    ],
    ids=[
        "missing table",
        "missing column",
        "time is text",
        "number is text",
        "duplicate item id",
        "empty events",
        "unknown kind",
        "unknown key",
        "no test events",
        "broken TOML",
    ],
)
def test_a_bad_table_or_config_ends_with_one_message(
    copy: Path, towerline: Towerline, spoil: Callable[[Path], None], exit_code: int, expected: list[str]
) -> None:
    spoil(copy.parent)
    done = towerline("features", copy)
    assert done.returncode == exit_code, done.stderr
    assert "Traceback" not in done.stderr
    for word in expected:
        assert word in done.stderr
    assert not (copy.parent / "run" / "features").exists()


def test_an_earlier_artifact_survives_a_failing_stage(marketplace: Path, copy: Path, towerline: Towerline) -> None:
    shutil.copytree(marketplace.parent / "run" / "features", copy.parent / "run" / "features")
    before = (copy.parent / "run" / "features" / "manifest.json").read_bytes()
    edit("events.parquet", lambda table: table.slice(0, 0))(copy.parent)
    assert towerline("features", copy).returncode == 1
    assert (copy.parent / "run" / "features" / "manifest.json").read_bytes() == before
    assert [path.name for path in (copy.parent / "run").iterdir()] == ["features"]


def test_a_nan_in_the_embeddings_stops_the_build(marketplace: Path, copy: Path, towerline: Towerline) -> None:
    run = copy.parent / "run"
    for name in ("features", "model", "embeddings"):
        shutil.copytree(marketplace.parent / "run" / name, run / name)
    spoil_vectors(run / "embeddings")
    done = towerline("build", copy)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "row 7" in done.stderr
    assert not (run / "bundle").exists()


def spoil_vectors(embeddings: Path) -> None:
    """Writes the embeddings again with one NaN, sealed as a stage would have."""
    from pipelines.contracts.manifest import read_manifest, write_artifact

    manifest = read_manifest(embeddings)
    vectors = np.load(embeddings / "vectors.npy")
    vectors[7, 3] = np.nan
    with write_artifact(embeddings, kind="embeddings", inputs=manifest.inputs, config=manifest.config) as draft:
        np.save(draft.dir / "vectors.npy", vectors)
        draft.facts.update(manifest.facts)


@pytest.mark.parametrize("file", ["vectors.npy", "query_tower.tflite", "items.parquet", "manifest.json"])
def test_a_damaged_bundle_file_is_named_and_not_served(
    marketplace: Path, copy: Path, towerline: Towerline, file: str
) -> None:
    registry = copy.parent / "run" / "registry"
    shutil.copytree(marketplace.parent / "run" / "registry", registry)
    version = json.loads(towerline("versions", copy, "--json").stdout)["versions"][0]["name"]
    path = registry / "versions" / version / file
    path.write_bytes(path.read_bytes()[:-9])
    done = towerline("retrieve", copy, "--user", "u3")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert file in done.stderr


def test_a_registry_without_current_says_what_to_run(copy: Path, towerline: Towerline) -> None:
    (copy.parent / "run" / "registry" / "versions").mkdir(parents=True)
    done = towerline("retrieve", copy, "--user", "u3")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "CURRENT" in done.stderr
    assert "towerline" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--record", "[1, 2]"), "expected a JSON object"),
        (("--record", "@nowhere.json"), "nowhere.json"),
        (("--user", "u3", "--k", "0"), "k: expected 1 or more"),
        (("--user", "u3", "--where", "colour = 3"), "colour"),
        (("--user", "u3", "--version", "yesterday"), "yesterday"),
    ],
)
def test_a_bad_request_is_refused(
    marketplace: Path, towerline: Towerline, arguments: tuple[str, ...], expected: str
) -> None:
    done = towerline("retrieve", marketplace, *arguments)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert expected in done.stderr
