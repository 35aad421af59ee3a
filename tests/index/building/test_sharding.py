"""Shards: each depends on its rows alone, wherever it is built; together they meet the target."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index.building.forecast import BuildTime, forecast
from index.building.sharding_job import ShardRows, ShardsJob, build_shard
from index.building.tuning.measurement import Queries
from index.building.tuning.tuner import tune
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Vectors
from index.search.shards import ShardedSearcher, shard_bounds
from index.settings import IndexSettings, TreeSettings
from pipelines.contracts.errors import ConfigError
from tests import oracles

ITEMS, DIM = 6000, 16
TREE = TreeSettings(leaves=30, leaves_to_search=10, reorder=300, training_sample=2000)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sorted by their first number, so that shards of consecutive rows differ from one another."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, DIM))
    found = centers[rng.integers(40, size=ITEMS)] + 0.5 * rng.normal(size=(ITEMS, DIM))
    found = found[np.argsort(found[:, 0])]
    path = tmp_path_factory.mktemp("vectors") / "vectors.npy"
    np.save(path, (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32))
    return path


def users(items: Vectors, n: int, seed: int) -> Queries:
    rng = np.random.default_rng(seed)
    made = items[rng.integers(len(items), size=n)] + 0.1 * rng.normal(size=(n, DIM)).astype(np.float32)
    return Queries.of(made.astype(np.float32), items)


def test_shards_are_of_equal_size() -> None:
    assert shard_bounds(10, 3) == [0, 3, 6, 10]
    assert shard_bounds(4, 1) == [0, 4]


@pytest.mark.parametrize("beam_args", [(), ("--direct_num_workers=2",)])
def test_shards_find_at_full_effort_what_exact_search_finds(
    file: Path, tmp_path: Path, beam_args: tuple[str, ...]
) -> None:
    """Built here or by two worker processes; and below full effort each by its own tree."""
    items = np.load(file)
    built = ShardsJob(file, tmp_path / "scann", 3, threads=1, beam_args=beam_args).build(TREE)
    assert sorted(path.name for path in (tmp_path / "scann").iterdir()) == [f"shard-0000{n}" for n in range(3)]
    for query in users(items, 5, 3).vectors:
        merged, scores = built.search(query, 100, built.full_effort), items @ query
        assert merged.rows.tolist() == oracles.top_k(scores, 100)
        np.testing.assert_allclose(merged.scores, scores[merged.rows], rtol=1e-5)
        alone = ScannSearcher.load(tmp_path / "scann" / "shard-00001", items[2000:4000]).search(query, 100).rows + 2000
        merged_rows = built.search(query, 100).rows
        its_own = merged_rows[(merged_rows >= 2000) & (merged_rows < 4000)]
        np.testing.assert_array_equal(its_own, alone[: len(its_own)])


def test_a_second_attempt_at_a_shard_leaves_the_first(file: Path, tmp_path: Path) -> None:
    """Runners repeat work, sometimes both at once: the second finds the shard there and goes away."""
    build_shard(ShardRows(1, 2000, 4000), file, tmp_path, TREE, 1)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shard-00001").iterdir()}
    build_shard(ShardRows(1, 2000, 4000), file, tmp_path, TREE, 1)
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "shard-00001").iterdir()} == written
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00001"]


def test_the_tuned_effort_is_of_all_shards_and_is_what_they_are_loaded_with(file: Path, tmp_path: Path) -> None:
    items = np.load(file)
    check = users(items, 200, 2)
    settings = IndexSettings(engine="scann", shards=3, ann_recall_at_100=0.9, recall_margin=0.02, tuning_seconds=5.0)
    job = ShardsJob(file, tmp_path / "scann", 3)
    tuned = tune(items, users(items, 200, 1), check, settings, shards=job)
    assert isinstance(tuned.searcher, ShardedSearcher)
    assert tuned.spec.shards == 3
    assert tuned.spec.check is not None
    assert tuned.spec.check.ann_recall_at_100 >= 0.9
    assert tuned.spec.tree is not None
    assert tuned.spec.tree.leaves_to_search < tuned.spec.tree.leaves
    tuned.searcher.save(tmp_path / "scann")
    loaded = ShardedSearcher.load(tmp_path / "scann", items, 3)
    assert [part.num_items for part in loaded.parts] == [2000, 2000, 2000]
    assert [part.settings for part in loaded.parts] == 3 * [tuned.spec.tree]


@pytest.mark.parametrize(
    ("shards", "leaves", "message"),
    [(4, 2, "expected at most 3 for 60 items, got 4"), (3, 30, "at most the 20 items of a shard, got 30")],
)
def test_shards_too_small_for_their_trees_are_refused(
    file: Path, tmp_path: Path, shards: int, leaves: int, message: str
) -> None:
    items = np.load(file)[:60]
    np.save(tmp_path / "few.npy", items)
    queries = Queries.of(items[:10], items)
    settings = IndexSettings(tree=TreeSettings(leaves=leaves, leaves_to_search=1, reorder=10), shards=shards)
    with pytest.raises(ConfigError, match=message):
        tune(items, queries, queries, settings, shards=ShardsJob(tmp_path / "few.npy", tmp_path / "scann", shards))
    assert not (tmp_path / "scann").exists()


PEAK = """
import sys
import numpy as np
from pathlib import Path
from index.search.exact import load_vectors
from index.building.tuning.measurement import Queries
from index.settings import IndexSettings
from index.building.sharding_job import ShardsJob
from index.building.tuning.tuner import tune
vectors = load_vectors(Path(sys.argv[1]))
settings = IndexSettings(engine="scann", shards=4, reorder_types=("float32",), tuning_seconds=1.0, tuning_queries=20)
queries = Queries.of(np.random.default_rng(1).normal(size=(20, 64)).astype(np.float32), vectors)
settings = settings.model_copy(update={"ann_recall_at_100": 0.01, "recall_margin": 0.0})
tuned = tune(vectors, queries, queries, settings, shards=ShardsJob(Path(sys.argv[1]), Path(sys.argv[2]), 4))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_the_memory_of_shards_is_within_a_quarter_of_the_forecast(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(400_000, 64)).astype(np.float32))
    command = [sys.executable, "-c", PEAK, str(tmp_path / "vectors.npy"), str(tmp_path / "scann")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    settings = IndexSettings(reorder_types=("float32",), shards=4)
    predicted = forecast(400_000, 64, settings, BuildTime(1.0, 1.0, trees=1))
    assert int(done.stdout.split()[-1]) == pytest.approx(predicted.memory_bytes, rel=0.25)
