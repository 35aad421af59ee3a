"""The planner on trees: what one method does not find, the next one does; shards use their tuned effort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.rules import planner as planning
from index.rules.eligible import Eligible
from index.rules.planner import Planner
from index.search.exact import ExactSearcher
from index.search.leaves import Leaves
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Neighbors, Searcher, Vectors
from index.search.shards import ShardedSearcher
from index.settings import TreeSettings
from tests import oracles
from tests.index import serving_bundles

ITEMS, DIM, M = 1200, 16, 100
# A leaf holds about 30 rows (15 with shards): the leaves that a fetch searches, two per tree, hold fewer than ``M``.
TREE = TreeSettings(leaves=40, leaves_to_search=1, reorder=120, training_sample=ITEMS)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return serving_bundles.clustered(ITEMS, DIM, 8)


@pytest.fixture(scope="module", params=["scann", "sharded"])
def searcher(request: pytest.FixtureRequest, vectors: Vectors, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    folder: Path = tmp_path_factory.mktemp(request.param)
    if request.param == "scann":
        ScannSearcher.build(vectors, TREE).save(folder)
        return ScannSearcher.load(folder, vectors)
    ShardedSearcher([ScannSearcher.build(part, TREE) for part in np.split(vectors, 2)]).save(folder)
    return ShardedSearcher.load(folder, vectors, 2)


@pytest.mark.parametrize("gather_bytes", [0, 1 << 20])
def test_where_a_fetch_finds_too_few_the_leaves_are_scored(
    searcher: Searcher, vectors: Vectors, monkeypatch: pytest.MonkeyPatch, gather_bytes: int
) -> None:
    monkeypatch.setattr(planning, "_EXACT_NUMBERS", 0)
    planner = Planner.of(searcher, vectors, None)
    mask = np.arange(ITEMS) % 10 > 0
    eligible = Eligible.of(mask, planner.leaves, vectors, None, gather_bytes=gather_bytes)
    methods = set()
    for query in serving_bundles.clustered(12, DIM, 8):
        found = planner.nearest(query, M, eligible)
        methods.add(found.method)
        expected = np.argsort(-np.where(mask, vectors @ query, -np.inf), kind="stable")[:M]
        if found.method == "leaves":
            assert found.neighbors.rows.tolist() == expected.tolist()
        assert len(found.neighbors.rows) == M
        assert not found.exhausted
    assert "leaves" in methods
    assert methods <= {"leaves", "fetch"}


def test_leaves_are_chosen_by_the_tuned_effort_of_all_shards(
    searcher: Searcher, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the tuned leaves are scored at least: two of one tree, four of two shards."""
    for name, value in {"_EXACT_NUMBERS": 0, "_LEAF_ROWS": 1, "_LEAF_ROWS_PER_NEIGHBOR": 1, "_MAX_FETCH": 0}.items():
        monkeypatch.setattr(planning, name, value)
    planner = Planner.of(searcher, vectors, None)
    assert planner.leaves is not None
    eligible = Eligible.of(np.ones(ITEMS, bool), planner.leaves, vectors, None, gather_bytes=0)
    trees = len(searcher.parts) if isinstance(searcher, ShardedSearcher) else 1
    for query in serving_bundles.clustered(12, DIM, 8):
        nearest = np.argsort(-(planner.leaves.centroids @ query))
        found = planner.nearest(query, 1, eligible)
        assert found.scored == planner.leaves.sizes[nearest[: 2 * trees]].sum()


def test_a_weight_of_0_ranks_by_score_alone(searcher: Searcher, vectors: Vectors) -> None:
    planner = Planner.of(searcher, vectors, np.zeros(ITEMS, np.float32))
    assert planner.utility(0.0) is None
    utility = planner.utility(0.5)
    assert utility is not None
    assert utility.weight == 0.5


FEW, FEW_LEAVES = 400, 8


class Forgetful(ExactSearcher):
    """Exact, but for a share of its rows that it never finds."""

    forgets = np.zeros(FEW, np.bool_)

    def search(self, query: np.ndarray, k: int, effort: Effort | None = None) -> Neighbors:
        found = super().search(query, FEW, effort)
        kept = ~self.forgets[found.rows]
        return Neighbors(found.rows[kept][:k], found.scores[kept][:k])

    @property
    def leaves_searched(self) -> int:
        return 2


def planner_over(vectors: np.ndarray, forgets: np.ndarray) -> Planner:
    leaf_of_row = (np.arange(FEW) % FEW_LEAVES).astype(np.int32)
    rows = np.argsort(leaf_of_row, kind="stable").astype(np.int32)
    offsets = np.arange(FEW_LEAVES + 1, dtype=np.int64) * (FEW // FEW_LEAVES)
    centroids = np.stack([vectors[leaf_of_row == leaf].mean(axis=0) for leaf in range(FEW_LEAVES)])
    searcher = Forgetful(vectors)
    searcher.forgets = forgets
    return Planner(searcher, vectors, Leaves(rows, offsets, centroids, leaf_of_row), None, None)


@pytest.mark.parametrize(("found", "method"), [(20, "fetch"), (19, "leaves"), (0, "leaves")])
def test_where_a_fetch_brings_too_few_eligible_rows_leaves_are_scored(
    monkeypatch: pytest.MonkeyPatch, found: int, method: str
) -> None:
    """Two thirds of the rows are eligible; the searcher knows ``found`` of them, and 20 are asked for."""
    monkeypatch.setattr(planning, "_EXACT_NUMBERS", 0)
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(FEW, 4)).astype(np.float32)
    query = rng.normal(size=4).astype(np.float32)
    passes = np.arange(FEW) % 3 > 0
    order = [row for row in oracles.top_k(vectors @ query, FEW) if passes[row]]
    forgets = passes.copy()
    forgets[order[:found]] = False
    plans = planner_over(vectors, forgets)
    eligible = Eligible.of(passes, plans.leaves, vectors, None, gather_bytes=0)
    answer: Any = plans.nearest(query, 20, eligible)
    assert answer.method == method
    assert answer.neighbors.rows.tolist() == order[:20]
