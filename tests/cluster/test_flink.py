"""The features job on a Flink cluster: the same rows as on this machine alone."""

from __future__ import annotations

import os
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import xxhash

from pipelines import features
from pipelines.schema import DatasetSchema, parse_schema, resolve_paths
from tests.cluster.flink import Cluster, fetch
from tests.marketplace import write_marketplace

pytestmark = [pytest.mark.cluster, pytest.mark.filterwarnings("default")]

PARTITIONS = 6


def content_hash(out: Path) -> dict[str, str]:
    """For each folder of an artifact, a hash of its rows in sorted order."""
    found = {}
    for folder in ("sequences", "users", "items", "users_encoded", "items_encoded"):
        rows = sorted(repr(row) for file in (out / folder).iterdir() for row in pq.ParquetFile(file).read().to_pylist())
        found[folder] = xxhash.xxh3_128_hexdigest("\n".join(rows))
    return found


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> DatasetSchema:
    folder = tmp_path_factory.mktemp("tables")
    raw = tomllib.loads(write_marketplace(folder, users=2_000, items=1_000, events=200_000).read_text())
    del raw["index"]
    return parse_schema(resolve_paths(raw, folder), "marketplace")


@pytest.fixture(scope="module")
def local(schema: DatasetSchema, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("local") / "features"
    return content_hash(features.run(schema, out, progress=False, partitions=PARTITIONS))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if shutil.which("java") is None or shutil.which("mvn") is None:
        pytest.skip("a Flink cluster needs java and mvn")
    cache = Path(os.environ.get("TOWERLINE_CLUSTER_CACHE", Path.home() / ".cache" / "towerline-cluster"))
    fetch(cache)
    with Cluster(tmp_path_factory.mktemp("cluster"), cache) as running:
        yield running


def test_flink_gives_the_rows_of_a_local_run(
    cluster: Cluster, schema: DatasetSchema, local: dict[str, str], tmp_path: Path
) -> None:
    out = features.run(schema, tmp_path / "flink", cluster.beam_args, progress=False, partitions=PARTITIONS)
    assert content_hash(out) == local


def test_several_local_processes_give_the_rows_of_one(
    schema: DatasetSchema, local: dict[str, str], tmp_path: Path
) -> None:
    out = features.run(schema, tmp_path / "many", ["--direct_num_workers=2"], progress=False, partitions=PARTITIONS)
    assert content_hash(out) == local
