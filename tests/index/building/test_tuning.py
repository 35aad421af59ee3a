"""Tuning: what is chosen meets the target on users it never saw, and nothing cheaper that was measured does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from index.building.forecast import GIB, BuildTime, build_time, check_budget, forecast, predict
from index.building.tuning.measurement import Queries, frontier, measure, recall
from index.building.tuning.tree_search import Climb, first_tree
from index.building.tuning.tuner import tune
from index.registry.searcher_spec import Measured
from index.search.exact import ExactSearcher
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Vectors
from index.settings import IndexSettings, TreeSettings
from pipelines.progress import SILENT
from tests.recorded import Recorded

ITEMS, DIM = 6000, 16


@pytest.fixture(scope="module")
def items() -> Vectors:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(40, DIM))
    found = centers[rng.integers(40, size=ITEMS)] + 0.5 * rng.normal(size=(ITEMS, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def users(items: Vectors, n: int, seed: int) -> Queries:
    rng = np.random.default_rng(seed)
    made = items[rng.integers(ITEMS, size=n)] + 0.1 * rng.normal(size=(n, DIM)).astype(np.float32)
    return Queries.of(made.astype(np.float32), items)


def point(p50: float, found: float) -> Measured:
    return Measured(tree=None, ann_recall_at_100=found, p50_us=p50, p99_us=p50, build_seconds=0.0, queries=1)


def test_recall_by_hand() -> None:
    """Line 1 finds 2 of 3, line 2 finds 1 of 3 (its -1 is nothing): (2/3 + 1/3) / 2."""
    found = np.array([[5, 1, 9], [7, -1, -1]], np.int32)
    truth = np.array([[1, 2, 5], [6, 7, 8]], np.int32)
    assert recall(found, truth) == pytest.approx(0.5)


def test_the_truth_of_queries_is_sorting_by_hand(items: Vectors) -> None:
    queries = users(items, 3, 1)
    for vector, truth in zip(queries.vectors, queries.truth, strict=True):
        assert truth.tolist() == sorted(np.argsort(-(items @ vector), kind="stable")[:100].tolist())


def test_the_frontier_keeps_what_nothing_beats() -> None:
    points = (point(10, 0.5), point(20, 0.4), point(15, 0.7), point(15, 0.6), point(30, 0.7), point(40, 0.9))
    assert [(kept.p50_us, kept.ann_recall_at_100) for kept in frontier(points)] == [(10, 0.5), (15, 0.7), (40, 0.9)]


def test_the_target_is_met_on_users_never_used(items: Vectors) -> None:
    settings = IndexSettings(engine="scann", ann_recall_at_100=0.95, recall_margin=0.01, tuning_seconds=15)
    tuned = tune(items, users(items, 150, 1), users(items, 150, 2), settings)
    assert isinstance(tuned.searcher, ScannSearcher)
    assert tuned.spec.chosen is not None
    assert tuned.spec.check is not None
    assert tuned.spec.chosen.ann_recall_at_100 >= 0.96
    assert tuned.spec.check.ann_recall_at_100 >= 0.95
    assert tuned.spec.points > 10
    again = measure(tuned.searcher, users(items, 150, 2), None, 0.0)
    assert again.ann_recall_at_100 == pytest.approx(tuned.spec.check.ann_recall_at_100)


def test_a_small_catalogue_gets_exact_search(items: Vectors) -> None:
    queries = users(items, 30, 1)
    few = items[:500]
    tuned = tune(few, Queries.of(queries.vectors, few), Queries.of(queries.vectors, few), IndexSettings())
    assert isinstance(tuned.searcher, ExactSearcher)
    assert (tuned.spec.engine, tuned.spec.tree) == ("exact", None)


def test_exact_search_is_taken_where_it_is_fast_enough(items: Vectors) -> None:
    settings = IndexSettings(exact_below_us=1e9)
    assert tune(items, users(items, 20, 1), users(items, 20, 2), settings).spec.engine == "exact"


def test_exact_search_serves_what_no_tree_reaches(items: Vectors, monkeypatch: pytest.MonkeyPatch) -> None:
    """A target of 1 with a margin is above what any tree can promise: then exact search is what meets it."""
    monkeypatch.setattr("index.building.tuning.tree_search._REORDER_STEPS", (1.0,))
    monkeypatch.setattr("index.building.tuning.tree_search._steps_within", lambda leaves: [1])
    settings = IndexSettings(engine="scann", ann_recall_at_100=1.0, tuning_seconds=1, reorder_types=("int8",))
    tuned = tune(items, users(items, 40, 1), users(items, 40, 2), settings)
    assert tuned.spec.engine == "exact"
    assert tuned.spec.check is not None
    assert tuned.spec.check.ann_recall_at_100 == 1.0


def test_a_tree_by_hand_is_built_as_given(items: Vectors) -> None:
    tree = TreeSettings(leaves=30, leaves_to_search=7, reorder=220, soar_lambda=1.5, training_sample=ITEMS)
    tuned = tune(items, users(items, 20, 1), users(items, 20, 2), IndexSettings(tree=tree))
    assert tuned.spec.tree == tree
    assert tuned.spec.points == 2  # the tree, and exact search next to it


def test_the_fastest_effort_meets_its_goal(items: Vectors) -> None:
    tree = TreeSettings(leaves=60, leaves_to_search=60, reorder=1200, training_sample=ITEMS)
    queries = users(items, 100, 1)
    searcher = ScannSearcher.build(items, tree)
    settings = IndexSettings(ann_recall_at_100=0.9, recall_margin=0.0)
    built = Climb(items, queries, settings, SILENT, time.perf_counter()).aimed(searcher, 0.0)
    assert built.meets
    assert measure(built.searcher, queries, None, 0.0).ann_recall_at_100 >= 0.9
    assert built.effort.leaves < 60


ONE_TREE, TWO_TREES = BuildTime(40.0, 5.0, trees=1), BuildTime(40.0, 50.0, trees=2)


def test_the_forecast_counts_what_is_held() -> None:
    """1 M × 64 float32 by hand, on disk: the vectors, the tree's own, a byte for each of 64 codes, 8 for leaves."""
    settings = IndexSettings(reorder_types=("float32",))
    predicted = forecast(1_000_000, 64, settings, TWO_TREES)
    assert predicted.disk_bytes == 256e6 + 256e6 + 64e6 + 8e6
    tree = TreeSettings(leaves=10, leaves_to_search=1, reorder=100)
    one = forecast(1_000_000, 64, IndexSettings(reorder_types=("float32",), tree=tree), ONE_TREE)
    # In memory: the process, the vectors, ScaNN's copy of them and their distances from the centers, codes of half a
    # byte, leaves.
    assert one.memory_bytes == (150 << 20) + 3 * 256e6 + 32e6 + 8e6
    # However a tree stores its vectors in the end, it is built from float32.
    int8 = forecast(1_000_000, 64, IndexSettings(reorder_types=("int8",), tree=tree), ONE_TREE)
    assert one.memory_bytes == int8.memory_bytes
    assert one.disk_bytes - int8.disk_bytes == 192e6
    # The climb holds the best tree while it builds the next.
    assert predicted.memory_bytes - one.memory_bytes == 256e6 + 32e6 + 8e6
    # With four shards the climb holds a quarter; in the end the trees of all shards are held next to the vectors.
    four = forecast(1_000_000, 64, IndexSettings(reorder_types=("float32",), shards=4), TWO_TREES)
    # So is Beam.
    assert four.memory_bytes == (215 << 20) + 256e6 + (256e6 + 32e6 + 8e6)


PEAK = """
import sys
import numpy as np
from pathlib import Path
from index.search.exact import load_vectors
from index.settings import TreeSettings
from index.search.scann_tree import ScannSearcher
vectors = load_vectors(Path(sys.argv[1]))
tree = TreeSettings(leaves=400, leaves_to_search=20, reorder=200, dims_per_block=1, training_sample=50_000)
searcher = ScannSearcher.build(vectors, tree)
searcher.save(Path(sys.argv[2]))
# Not ru_maxrss: that begins with the peak of the process that started this one.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_memory_and_disk_are_within_a_quarter_of_the_forecast(tmp_path: Path) -> None:
    """A build of 200,000 × 64 in a process of its own."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "vectors.npy", rng.normal(size=(200_000, 64)).astype(np.float32))
    (tmp_path / "tree").mkdir()
    command = [sys.executable, "-c", PEAK, str(tmp_path / "vectors.npy"), str(tmp_path / "tree")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    tree = TreeSettings(leaves=400, leaves_to_search=20, reorder=200)
    predicted = forecast(200_000, 64, IndexSettings(reorder_types=("float32",), tree=tree), ONE_TREE)
    assert int(done.stdout) == pytest.approx(predicted.memory_bytes, rel=0.25)
    disk = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
    assert disk == pytest.approx(predicted.disk_bytes, rel=0.25)


def test_the_time_follows_from_two_trials_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 items, 316 leaves: trials of 3,160 and 12,640 items that share a sample of 3,160.

    Were a build 1 s + 1 ms a trained vector + 0.1 ms an item: 4.476 s and 5.424 s; so .1 ms an item, 4.16 s trained on
    3,160. All: 10 s + 100,000 / 3,160 · 4.16 s = 141.6 s; with a budget of 120 s there is one tree.
    """
    monkeypatch.setattr(
        "index.building.forecast._trial_seconds",
        lambda vectors, tree, settings: 1.0 + 1e-3 * tree.training_sample + 1e-4 * len(vectors),
    )
    monkeypatch.setattr("index.building.forecast._exact_seconds", lambda items, dim, settings: 7.0)
    spent = build_time(100_000, 8, IndexSettings())
    assert spent.build_seconds == pytest.approx(10 + 100_000 / 3160 * 4.16)
    assert spent.trees == 1
    # 20 passes of 1,000 searches, .4 ms · √.1 each, and 7 s of exact search.
    assert spent.tune_seconds == pytest.approx(20 * 0.4 * 0.1**0.5 + 7)
    assert build_time(100_000, 8, IndexSettings(tuning_seconds=1e6)).trees == 8
    # Shards of 50,000 with 224 leaves: trials of 2,240 and 8,960, so 5 s + 100,000 / 2,240 · 3.24 s each (the sample
    # has all 50,000), and one more tree for the climb.
    shards = build_time(100_000, 8, IndexSettings(shards=2))
    assert shards.build_seconds == pytest.approx(5 + 50_000 / 2240 * 3.24)
    passes = 20 * 0.4 * 0.05**0.5
    assert shards.build_seconds + shards.tune_seconds == pytest.approx(3 * (shards.build_seconds + passes) + 7)


def test_exact_search_needs_no_tree_but_time_for_the_truth() -> None:
    """In proportion to users and items, as far as two timings of the same work agree."""
    settings = IndexSettings(engine="exact", tuning_queries=10_000)
    one = build_time(2_000_000, 16, settings)
    assert (one.build_seconds, one.trees) == (0.0, 0)
    assert 3 < build_time(20_000_000, 16, settings).tune_seconds / one.tune_seconds < 30


@pytest.mark.slow
def test_the_time_is_within_a_quarter_of_the_forecast() -> None:
    """The median of three, since other work on the machine changes a single one by more."""
    vectors = np.random.default_rng(3).normal(size=(400_000, 64)).astype(np.float32)
    settings = IndexSettings(reorder_types=("float32",))
    ratios = []
    for _ in range(3):
        predicted = build_time(len(vectors), 64, settings).build_seconds
        start = time.perf_counter()
        ScannSearcher.build(vectors, first_tree(len(vectors), settings))
        ratios.append((time.perf_counter() - start) / predicted)
    assert np.median(ratios) == pytest.approx(1.0, rel=0.25), ratios


@pytest.mark.slow
def test_the_time_of_exact_search_is_within_a_quarter_of_the_forecast() -> None:
    vectors = np.random.default_rng(3).normal(size=(1_000_000, 64)).astype(np.float32)
    settings = IndexSettings(engine="exact", tuning_queries=500)
    ratios = []
    for _ in range(3):
        predicted = build_time(len(vectors), 64, settings).tune_seconds
        start = time.perf_counter()
        halves = [Queries.of(vectors[start_ : start_ + 500], vectors) for start_ in (0, 500)]
        measure(ExactSearcher(vectors, checked=True), Queries(halves[0].vectors[:20], halves[0].truth[:20]), None, 0.0)
        ratios.append((time.perf_counter() - start) / predicted)
    assert np.median(ratios) == pytest.approx(1.0, rel=0.25), ratios


def test_a_budget_that_fits_is_kept() -> None:
    settings = IndexSettings(memory_gib=4.0)
    predicted = predict(10_000, 16, settings)
    assert predicted.memory_bytes < 4 * GIB
    assert predicted.line.startswith("plan: 10,000 items × 16: ")
    check_budget(predicted, settings)


SEARCHED = IndexSettings(engine="scann", tuning_seconds=15, ann_recall_at_100=0.95)


def test_last_nights_tree_is_taken_over_if_it_still_meets_the_target(items: Vectors) -> None:
    queries, check = users(items, 60, 1), users(items, 60, 2)
    first = tune(items, queries, check, SEARCHED).spec
    assert (first.tuned_items, first.taken_over) == (ITEMS, False)
    said = Recorded()
    tonight = items[:5000]
    of_tonight = [Queries.of(asked.vectors, tonight) for asked in (queries, check)]
    second = tune(tonight, *of_tonight, SEARCHED, said, last=first).spec
    assert second.taken_over
    assert second.tree is not None
    assert first.tree is not None
    effort = {"leaves_to_search", "reorder"}
    assert second.tree.model_dump(exclude=effort) == first.tree.model_dump(exclude=effort)
    assert second.check is not None
    assert second.check.ann_recall_at_100 >= 0.95
    assert sum("leaves:" in line or "leaves," in line for line in said.lines) == 1
    # What counts is the catalogue that the tree was looked for, so that nights cannot drift away from it.
    assert second.tuned_items == ITEMS


def test_last_nights_tree_is_looked_for_again_if_it_misses_the_target_or_the_catalogue_has_another_size(
    items: Vectors,
) -> None:
    queries, check = users(items, 60, 1), users(items, 60, 2)
    first = tune(items, queries, check, SEARCHED).spec
    # The truth of these users is nothing that search can find.
    wrong = Queries(check.vectors, np.random.default_rng(3).integers(0, ITEMS, check.truth.shape).astype(np.int32))
    said = Recorded()
    missed = tune(items, queries, wrong, SEARCHED, said, last=first).spec
    assert "last night's tree misses the target: tuning in full" in said.lines
    half = items[:2000]
    smaller = tune(half, *(Queries.of(asked.vectors, half) for asked in (queries, check)), SEARCHED, last=first).spec
    for spec, size in ((missed, ITEMS), (smaller, 2000)):
        assert (spec.tuned_items, spec.taken_over) == (size, False)
        assert spec.points > 2
