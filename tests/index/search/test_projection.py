"""The projection keeps what the scores say: nothing is lost with all directions, and as little as possible with few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.building.tuning.measurement import Queries
from index.building.tuning.projections import Projections
from index.building.tuning.tuner import tune
from index.search.projection import PROJECTION_FILE, Projection
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Vectors
from index.settings import IndexSettings, TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError

DIM, ITEMS = 256, 8000


def of_rank(rng: np.random.Generator, rows: int, dim: int, rank: int, fall: float = 0.5) -> Vectors:
    """``[rows, dim]`` with ``rank`` directions, each ``fall`` times as strong as the one before."""
    strengths = fall ** np.arange(rank)
    found: Vectors = ((rng.normal(size=(rows, rank)) * strengths) @ rng.normal(size=(rank, dim))).astype(np.float32)
    return found


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 30), st.integers(0, 30), st.integers(0, 12))
def test_all_directions_keep_every_score(seed: int, dim: int, items: int, users: int, rank: int) -> None:
    """Whatever is asked later: users of one direction, of none, or none at all, and queries unlike all of them."""
    rng = np.random.default_rng(seed)
    vectors, queries = rng.normal(size=(items, dim)).astype(np.float32), of_rank(rng, users, dim, rank)
    whole = Projection.learned(vectors, queries)
    asked = np.concatenate([queries, rng.normal(size=(5, dim)).astype(np.float32)])
    expected = asked.astype(np.float64) @ vectors.T
    scale = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(vectors, axis=1) + 1e-6
    assert (np.abs((asked @ whole.queries) @ whole.of_items(vectors).T - expected) <= 1e-3 * scale).all()


@pytest.mark.parametrize("width", [1, 2, 5, 10])
def test_no_other_map_of_the_same_width_keeps_the_scores_much_better(width: int) -> None:
    """The best matrix of that rank is the truncated singular value decomposition of the scores (Eckart and Young
    1936). Users who ask in a few directions of many."""
    rng = np.random.default_rng(3)
    vectors, queries = rng.normal(size=(400, 24)).astype(np.float32), of_rank(rng, 300, 24, 24, fall=0.8)
    cut = Projection.learned(vectors, queries).first(width)
    scores = queries.astype(np.float64) @ vectors.T
    error = ((scores - (queries @ cut.queries) @ cut.of_items(vectors).T) ** 2).sum()
    best = (np.linalg.svd(scores, compute_uv=False)[width:] ** 2).sum()
    assert best * (1 - 1e-6) <= error <= 1.05 * best


@pytest.mark.parametrize("vectors", [np.zeros((3, 4)), np.ones((1, 4)), np.tile([1.0, 2.0, 0.0, 0.0], (9, 1))])
@pytest.mark.parametrize("queries", [np.zeros((0, 4)), np.zeros((2, 4)), np.ones((1, 4))])
def test_vectors_that_say_little_give_finite_maps(vectors: Vectors, queries: Vectors) -> None:
    found = Projection.learned(vectors.astype(np.float32), queries.astype(np.float32)).first(1)
    assert (found.items.shape, found.queries.shape, found.dim) == ((4, 1), (4, 1), 1)
    assert np.isfinite(found.items).all()
    assert np.isfinite(found.queries).all()


def test_one_more_number_counts_as_it_is() -> None:
    rng = np.random.default_rng(0)
    vectors, query = rng.normal(size=(50, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32)
    longer = np.concatenate([vectors, rng.normal(size=(50, 1)).astype(np.float32)], axis=1)
    asked = np.append(query, np.float32(0.7))
    cut = Projection.learned(vectors, rng.normal(size=(20, 6)).astype(np.float32)).first(3)
    more = cut.with_one_more()
    expected = (query @ cut.queries) @ cut.of_items(vectors).T + 0.7 * longer[:, -1]
    np.testing.assert_allclose((asked @ more.queries) @ more.of_items(longer).T, expected, rtol=1e-4, atol=1e-5)


def test_a_damaged_projection_is_an_artifact_error(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    settings = TreeSettings(leaves=2, leaves_to_search=2, reorder=40, training_sample=40, projection=2)
    ScannSearcher.build(vectors, settings, projection=Projection.learned(vectors, vectors).first(2)).save(tmp_path)
    np.save(tmp_path / PROJECTION_FILE, np.zeros((3, 4, 2), np.float32))
    with pytest.raises(ArtifactError, match="cannot read its assets"):
        ScannSearcher.load(tmp_path, vectors)
    (tmp_path / PROJECTION_FILE).unlink()
    with pytest.raises(ArtifactError, match="cannot read its assets"):
        ScannSearcher.load(tmp_path, vectors)


def few_directions(seed: int) -> tuple[Vectors, Vectors, Vectors]:
    """Items and two sets of users whose scores differ in about six of 256 directions."""
    rng = np.random.default_rng(seed)
    strong, weak = rng.normal(size=(6, DIM)), 0.05 * rng.normal(size=(DIM, DIM))
    parts = [rng.normal(size=(n, 6)) @ strong + rng.normal(size=(n, DIM)) @ weak for n in (ITEMS, 200, 200)]
    items, users, others = (part.astype(np.float32) for part in parts)
    return items, users, others


def test_a_catalogue_of_few_directions_gets_a_projection_that_meets_the_target() -> None:
    items, users, others = few_directions(1)
    settings = IndexSettings(engine="scann", ann_recall_at_100=0.95, recall_margin=0.02, tuning_seconds=5)
    tuned = tune(items, Queries.of(users, items), Queries.of(others, items), settings)
    assert isinstance(tuned.searcher, ScannSearcher)
    assert tuned.spec.tree is not None
    assert tuned.spec.check is not None
    assert tuned.spec.tree.projection is not None
    assert tuned.searcher.projection is not None
    assert tuned.spec.check.ann_recall_at_100 >= 0.95


def test_both_with_and_without_are_measured_and_the_faster_is_taken() -> None:
    items, users, others = few_directions(2)
    settings = IndexSettings(engine="scann", ann_recall_at_100=0.9, recall_margin=0.0, tuning_seconds=60)
    tuned = tune(items, Queries.of(users, items), Queries.of(others, items), settings)
    measured = [one for one in tuned.spec.frontier if one.tree is not None]
    assert tuned.spec.chosen is not None
    reaching = [one.p50_us for one in measured if one.ann_recall_at_100 >= 0.9]
    # A tree is taken if it is faster by three percent.
    assert tuned.spec.chosen.p50_us <= min(reaching) / 0.97**6


def test_directions_that_are_all_alike_are_not_worth_a_tree() -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(ITEMS, DIM)).astype(np.float32)
    queries = Queries.of(rng.normal(size=(40, DIM)).astype(np.float32), items)
    assert Projections(items, queries, 0.99).worth_a_trial() == []


def test_more_directions_than_dimensions_are_refused() -> None:
    items, users, others = (part[:100] for part in few_directions(1))
    tree = TreeSettings(leaves=2, leaves_to_search=2, reorder=100, training_sample=100, projection=DIM + 1)
    with pytest.raises(ConfigError, match="at most the 256 dimensions of the vectors, got 257"):
        tune(items, Queries.of(users, items), Queries.of(others, items), IndexSettings(tree=tree))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rescore": 5}, "projection is not set"), ({"projection": 2, "rescore": 11}, "at most the 10 candidates")],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreeSettings.model_validate({"leaves": 2, "leaves_to_search": 1, "reorder": 10, **changes})
