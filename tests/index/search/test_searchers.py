"""One contract for every searcher: full effort finds what exact search finds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.registry.delta_search import DeltaSearcher, MaskedSearcher
from index.search.exact import ExactSearcher, scores_of
from index.search.projection import Projection
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort, Neighbors, SavableSearcher, Searcher, Vectors
from index.search.shards import ShardedSearcher
from index.search.utility import Utility
from index.search.value_tree import ValueSearcher, ValueSpec, augmented
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from tests import oracles

ITEMS, DIM = 600, 16


def by_hand(vectors: Vectors, query: Vectors, k: int, utility: Utility | None = None) -> tuple[list[int], list[float]]:
    """The k best rows and their scores, in double precision; scores that are equal to five digits are ties."""
    scores = [float(np.dot(vector.astype(np.float64), query.astype(np.float64))) for vector in vectors]
    if utility is not None:
        scores = [score + utility.weight * float(utility.log_values[row]) for row, score in enumerate(scores)]
    rows = oracles.top_k(np.round(scores, 5), k)
    return rows, [scores[row] for row in rows]


def log_values(items: int) -> np.ndarray:
    """``[items] float32``: quarters, which float32 adds up exactly; the same again after 150 rows."""
    quarters = np.round(4 * np.random.default_rng(9).normal(size=ITEMS // 4)) / 4
    return np.resize(quarters, items).astype(np.float32)


def tree(**changes: object) -> TreeSettings:
    plain = {"leaves": 20, "leaves_to_search": 6, "reorder": 150, "training_sample": ITEMS}
    return TreeSettings.model_validate({**plain, **changes})


def sharded(vectors: Vectors) -> Searcher:
    half = len(vectors) // 2
    parts = [ScannSearcher.build(vectors[:half], tree(leaves=10)), ScannSearcher.build(vectors[half:], tree(leaves=10))]
    return ShardedSearcher(parts)


def projection_of(vectors: Vectors, width: int = 6) -> Projection:
    users = np.random.default_rng(7).normal(size=(200, DIM)).astype(np.float32)
    return Projection.learned(vectors, users).first(width)


def projected(vectors: Vectors, **changes: object) -> ScannSearcher:
    settings = tree(projection=6, rescore=100, **changes)
    return ScannSearcher.build(vectors, settings, projection=projection_of(vectors))


def sharded_projected(vectors: Vectors) -> Searcher:
    half, projection, settings = len(vectors) // 2, projection_of(vectors), tree(leaves=10, projection=6, rescore=100)
    parts = [ScannSearcher.build(part, settings, projection=projection) for part in (vectors[:half], vectors[half:])]
    return ShardedSearcher(parts)


def utility_for(name: str, weight: float) -> Utility:
    """Over all rows of the searcher of this name, dead ones included."""
    return Utility(weight, log_values(ITEMS + 50 if name.startswith(("masked", "delta")) else ITEMS))


def value_spec() -> ValueSpec:
    return ValueSpec(attribute="bid", scale=0.5, center=0.0)


def valued(vectors: Vectors) -> ValueSearcher:
    logs = log_values(len(vectors))
    longer = augmented(vectors, logs, value_spec().scale, value_spec().center)
    return ValueSearcher(ScannSearcher.build(longer, tree()), value_spec(), logs)


def valued_projected(vectors: Vectors) -> ValueSearcher:
    logs = log_values(len(vectors))
    longer = augmented(vectors, logs, value_spec().scale, value_spec().center)
    projection = projection_of(vectors).with_one_more()
    return ValueSearcher(ScannSearcher.build(longer, tree(projection=6), projection=projection), value_spec(), logs)


def masked(base: Searcher) -> Searcher:
    """Only the first ``ITEMS`` rows live."""
    return MaskedSearcher(base, np.arange(base.num_items) >= ITEMS)


def with_deltas(base: Searcher, fresh: Vectors) -> Searcher:
    """The fresh rows live up to ``ITEMS`` rows in all; those after them are removed."""
    rows = base.num_items
    gone = np.arange(rows + len(fresh)) >= ITEMS
    return DeltaSearcher(base, fresh, gone, None)


def again(vectors: Vectors) -> Vectors:
    """The vectors, and the first ones a second time: dead rows that would be found if they were not masked."""
    return np.concatenate([vectors, vectors[:50]])


FRESH = ITEMS - 150
BUILDERS: dict[str, Callable[[Vectors], Searcher]] = {
    "exact": ExactSearcher,
    "scann": lambda vectors: ScannSearcher.build(vectors, tree()),
    "scann-soar": lambda vectors: ScannSearcher.build(vectors, tree(soar_lambda=1.5)),
    "scann-plain": lambda vectors: ScannSearcher.build(vectors, tree(anisotropic_threshold=None)),
    "scann-int8": lambda vectors: ScannSearcher.build(vectors, tree(reorder_type="int8")),
    "scann-bf16": lambda vectors: ScannSearcher.build(vectors, tree(reorder_type="bf16")),
    "scann-projected": projected,
    "scann-projected-int8": lambda vectors: projected(vectors, reorder_type="int8"),
    "sharded": sharded,
    "sharded-projected": sharded_projected,
    "value": valued,
    "masked": lambda vectors: masked(ScannSearcher.build(again(vectors), tree())),
    "value-projected": valued_projected,
    "masked-value": lambda vectors: masked(valued(again(vectors))),
    "delta-exact": lambda vectors: with_deltas(ExactSearcher(vectors[:FRESH]), again(vectors)[FRESH:]),
    "delta-value": lambda vectors: with_deltas(valued(vectors[:FRESH]), again(vectors)[FRESH:]),
    "delta-projected": lambda vectors: with_deltas(projected(vectors[:FRESH]), again(vectors)[FRESH:]),
    "delta-value-projected": lambda vectors: with_deltas(valued_projected(vectors[:FRESH]), again(vectors)[FRESH:]),
}
# int8 and bf16 choose the last few of a cut by rounded scores; what they return is scored exactly.
ROUNDED = ("scann-int8", "scann-bf16")


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(12, DIM))
    found = centers[rng.integers(12, size=ITEMS)] + 0.4 * rng.normal(size=(ITEMS, DIM))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> Vectors:
    return np.random.default_rng(6).normal(size=(24, DIM)).astype(np.float32)


@pytest.fixture(scope="module", params=list(BUILDERS))
def named(request: pytest.FixtureRequest, vectors: Vectors) -> tuple[str, Searcher]:
    return request.param, BUILDERS[request.param](vectors)


def test_full_effort_equals_sorting_by_hand(named: tuple[str, Searcher], vectors: Vectors, queries: Vectors) -> None:
    name, searcher = named
    for query in queries:
        expected_rows, expected_scores = by_hand(vectors, query, 25)
        found = searcher.search(query, 25, searcher.full_effort)
        assert found.rows.dtype == np.int32
        assert found.scores.dtype == np.float32
        if name in ROUNDED:
            assert len(set(found.rows.tolist()) & set(expected_rows)) >= 23
            np.testing.assert_allclose(found.scores, vectors[found.rows] @ query, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(found.rows, expected_rows)
            np.testing.assert_allclose(found.scores, expected_scores, rtol=1e-4, atol=1e-5)


def test_batch_equals_single(named: tuple[str, Searcher], queries: Vectors) -> None:
    _, searcher = named
    batch = searcher.search_batch(queries, 40, searcher.full_effort)
    assert batch.rows.shape == (len(queries), 40)
    for line, query in enumerate(queries):
        single = searcher.search(query, 40, searcher.full_effort)
        np.testing.assert_array_equal(batch.rows[line], single.rows)
        np.testing.assert_allclose(batch.scores[line], single.scores, rtol=1e-4, atol=1e-5)


def test_k_above_the_corpus_gives_the_corpus(named: tuple[str, Searcher], queries: Vectors) -> None:
    _, searcher = named
    found = searcher.search(queries[0], 10 * ITEMS)
    assert sorted(found.rows.tolist()) == list(range(ITEMS))
    assert (np.diff(found.scores) <= 0).all()
    batch = searcher.search_batch(queries[:3], 10 * ITEMS)
    assert batch.rows.shape == (3, ITEMS)
    np.testing.assert_array_equal(np.sort(batch.rows, axis=1), np.tile(np.arange(ITEMS), (3, 1)))


def test_without_an_effort_k_rows_come_back(named: tuple[str, Searcher], queries: Vectors) -> None:
    _, searcher = named
    for k in (1, 100, 400, 599):
        assert searcher.search(queries[1], k).rows.shape == (k,)


@pytest.mark.parametrize("name", [name for name in BUILDERS if name not in ROUNDED])
def test_of_equal_scores_the_lower_row_comes_first(name: str, vectors: Vectors, queries: Vectors) -> None:
    """Every vector is there four times, so that ties cross every cut. Sums of whole numbers are the same everywhere."""
    repeated, queries = np.round(4 * np.tile(vectors[: ITEMS // 4], (4, 1))), np.round(4 * queries)
    searcher, utility = BUILDERS[name](repeated), utility_for(name, 0.25)
    for query in queries[:6]:
        for k in (1, 2, 3, 10, 31):
            expected, _ = by_hand(repeated, query, k)
            np.testing.assert_array_equal(searcher.search(query, k, searcher.full_effort).rows, expected)
            expected, _ = by_hand(repeated, query, k, utility)
            found = searcher.search_utility(query, k, utility, searcher.full_effort)
            np.testing.assert_array_equal(found.rows, expected)
        batch = searcher.search_batch(queries[:6], 10, searcher.full_effort)
        for line in range(6):
            np.testing.assert_array_equal(batch.rows[line], by_hand(repeated, queries[line], 10)[0])


@pytest.mark.parametrize("weight", [0.05, 0.3, 1.0])
def test_utility_at_full_effort_equals_sorting_by_hand(
    named: tuple[str, Searcher], vectors: Vectors, queries: Vectors, weight: float
) -> None:
    name, searcher = named
    utility = utility_for(name, weight)
    for query in queries[:12]:
        expected_rows, expected_utilities = by_hand(vectors, query, 25, utility)
        found = searcher.search_utility(query, 25, utility, searcher.full_effort)
        np.testing.assert_array_equal(found.rows, expected_rows)
        np.testing.assert_allclose(found.scores, expected_utilities, rtol=1e-4, atol=1e-5)
        assert found.rows.dtype == np.int32
        assert found.scores.dtype == np.float32


def test_utility_without_an_effort_finds_nearly_all(
    named: tuple[str, Searcher], vectors: Vectors, queries: Vectors
) -> None:
    name, searcher = named
    utility = utility_for(name, 0.1)
    found = [set(searcher.search_utility(query, 25, utility).rows.tolist()) for query in queries]
    truth = [set(by_hand(vectors, query, 25, utility)[0]) for query in queries]
    recall = np.mean([len(one & other) / 25 for one, other in zip(found, truth, strict=True)])
    assert recall > (0.75 if searcher.indexes_value else 0.999)
    assert len(searcher.search_utility(queries[0], 10 * ITEMS, utility).rows) == ITEMS


def test_the_tuned_effort_is_that_of_a_search_without_one(named: tuple[str, Searcher], queries: Vectors) -> None:
    name, searcher = named
    exact = name in ("exact", "delta-exact")
    assert searcher.num_items == ITEMS
    assert searcher.dim == DIM
    assert searcher.effort == (None if exact else Effort(6, 150))
    assert (searcher.full_effort is None) == exact
    assert searcher.leaves_searched == (0 if exact else 12 if name.startswith("sharded") else 6)
    assert searcher.indexes_value == ("value" in name)
    assert _same(searcher.search_batch(queries, 20, searcher.effort), searcher.search_batch(queries, 20))


@pytest.mark.parametrize("name", list(BUILDERS))
def test_zero_vectors_and_a_zero_query_are_answered(name: str, queries: Vectors) -> None:
    searcher = BUILDERS[name](np.zeros((ITEMS, DIM), np.float32))
    found = searcher.search(queries[0], 5, searcher.full_effort)
    np.testing.assert_array_equal(found.scores, np.zeros(5))
    assert len(searcher.search(np.zeros(DIM, np.float32), 7).rows) == 7


def test_a_bad_query_is_refused(named: tuple[str, Searcher]) -> None:
    name, searcher = named
    bad = np.full(DIM, np.nan, np.float32)
    with pytest.raises(SchemaError, match=f"expected finite numbers, got {DIM}"):
        searcher.search(bad, 5)
    with pytest.raises(SchemaError, match=f"got {DIM} that are NaN"):
        searcher.search_batch(bad[None], 5)
    with pytest.raises(SchemaError, match=r"shape \(16,\), got \(15,\)"):
        searcher.search(np.zeros(DIM - 1, np.float32), 5)
    with pytest.raises(SchemaError, match=r"\(batch, 16\), got \(16,\)"):
        searcher.search_batch(np.zeros(DIM, np.float32), 5)
    with pytest.raises(SchemaError, match=r"expected numbers up to 1e\+15, got 1e\+30"):
        searcher.search(np.full(DIM, 1e30, np.float32), 5)
    utility = utility_for(name, 0.5)
    with pytest.raises(SchemaError, match=f"expected finite numbers, got {DIM}"):
        searcher.search_utility(bad, 5, utility)
    for k in (0, -3):
        with pytest.raises(SchemaError, match=f"expected 1 or more, got {k}"):
            searcher.search(np.zeros(DIM, np.float32), k)
        with pytest.raises(SchemaError, match=f"expected 1 or more, got {k}"):
            searcher.search_utility(np.zeros(DIM, np.float32), k, utility)


def test_an_empty_batch_is_an_empty_answer(named: tuple[str, Searcher]) -> None:
    _, searcher = named
    assert searcher.search_batch(np.zeros((0, DIM), np.float32), 5).rows.shape == (0, 5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_vector_that_is_not_finite_is_refused_before_scann_sees_it(vectors: Vectors, value: float) -> None:
    damaged = vectors.copy()
    damaged[417, 3] = value
    for build in (ExactSearcher, BUILDERS["scann"]):
        with pytest.raises(ArtifactError, match="row 417 holds NaN, infinity or a number above"):
            build(damaged)


def test_more_leaves_than_items_are_refused(vectors: Vectors) -> None:
    with pytest.raises(ConfigError, match="at most the 18 items, got 20"):
        ScannSearcher.build(vectors[:18], tree())


def test_fewer_items_than_a_code_has_values_are_refused(vectors: Vectors) -> None:
    with pytest.raises(ConfigError, match="needs at least 16 items, got 15"):
        ScannSearcher.build(vectors[:15], tree(leaves=2, leaves_to_search=1))


def test_settings_refuse_a_search_beyond_the_tree() -> None:
    with pytest.raises(ValueError, match="at most the 20 leaves, got 21"):
        tree(leaves_to_search=21)


TREES = {
    "scann": tree(),
    "scann-soar": tree(soar_lambda=1.5),
    "scann-int8": tree(reorder_type="int8"),
    "scann-bf16": tree(reorder_type="bf16"),
    "scann-projected": tree(projection=6, rescore=100),
}


@pytest.mark.parametrize("place", ["../", "/etc/", "a/../../", ".hidden/"])
def test_assets_outside_their_folder_are_not_read(place: str, vectors: Vectors, tmp_path: Path) -> None:
    ScannSearcher.build(vectors, TREES["scann"]).save(tmp_path)
    listed = tmp_path / "scann_assets.pbtxt"
    listed.write_text(listed.read_text().replace('asset_path: "', f'asset_path: "{place}', 1))
    with pytest.raises(ArtifactError, match="expected the name of a file below the folder"):
        ScannSearcher.load(tmp_path, vectors)


@pytest.mark.parametrize("name", list(TREES))
def test_what_is_saved_and_loaded_answers_the_same(
    name: str, vectors: Vectors, queries: Vectors, tmp_path: Path
) -> None:
    projection = None if TREES[name].projection is None else projection_of(vectors)
    built = ScannSearcher.build(vectors, TREES[name], projection=projection)
    assert built.leaf_of_row is None
    built.save(tmp_path)
    assert not list(tmp_path.glob("*.pkl"))
    assert str(tmp_path) not in (tmp_path / "scann_assets.pbtxt").read_text()
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    loaded = ScannSearcher.load(moved, vectors)
    assert _same(loaded.search_batch(queries, 30), built.search_batch(queries, 30))
    leaves = loaded.leaf_of_row
    assert leaves is not None
    assert leaves.shape == (ITEMS,)
    assert 0 <= leaves.min() <= leaves.max() < 20


def test_rows_of_a_leaf_lie_together(tmp_path: Path) -> None:
    """Twenty tight clusters, twenty leaves: most rows of a cluster have one leaf as their first, SOAR or not."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(20), 50)
    vectors = (rng.normal(size=(20, DIM))[clusters] + 0.01 * rng.normal(size=(1000, DIM))).astype(np.float32)
    for soar in (None, 1.5):
        place = tmp_path / str(soar)
        place.mkdir()
        ScannSearcher.build(vectors, tree(soar_lambda=soar, training_sample=1000)).save(place)
        leaves = ScannSearcher.load(place, vectors).leaf_of_row
        assert leaves is not None
        most = [np.bincount(leaves[clusters == cluster]).max() / 50 for cluster in range(20)]
        assert np.mean(most) > 0.8


def loaded(name: str, vectors: Vectors, folder: Path) -> tuple[Searcher, list[ScannSearcher]]:
    """A searcher over trees that were saved, and the trees."""
    if name == "sharded":
        shards = sharded(vectors)
        assert isinstance(shards, ShardedSearcher)
        shards.save(folder)
        parts = ShardedSearcher.load(folder, vectors, 2)
        return parts, list(parts.parts)
    base = vectors[:FRESH] if name == "delta-value" else again(vectors) if name.startswith("masked") else vectors
    logs, spec = log_values(len(base)), value_spec()
    built: SavableSearcher = valued(base) if "value" in name else ScannSearcher.build(base, tree())
    built.save(folder)
    rows = augmented(base, logs, spec.scale, spec.center) if "value" in name else base
    plain = ScannSearcher.load(folder, rows)
    searcher: Searcher = ValueSearcher(plain, spec, logs) if "value" in name else plain
    if name.startswith("masked"):
        searcher = masked(searcher)
    elif name == "delta-value":
        searcher = with_deltas(searcher, again(vectors)[FRESH:])
    return searcher, [plain]


@pytest.mark.parametrize("name", ["scann", "sharded", "value", "masked", "masked-value", "delta-value"])
def test_a_search_of_one_leaf_finds_the_rows_of_one_leaf(
    name: str, vectors: Vectors, queries: Vectors, tmp_path: Path
) -> None:
    """All of them that live; with shards, one leaf of each. Fresh rows are in no leaf. Some leaves are empty."""
    searcher, trees = loaded(name, vectors, tmp_path)
    leaf_of_row = searcher.leaf_of_row
    assert leaf_of_row is not None
    for query in queries:
        rows = searcher.search(query, ITEMS, Effort(1, ITEMS)).rows
        rows = rows[rows < len(leaf_of_row)]
        leaves = np.unique(leaf_of_row[rows])
        assert len(leaves) <= len(trees)
        of_these = np.flatnonzero(np.isin(leaf_of_row, leaves))
        assert sorted(rows.tolist()) == of_these[of_these < ITEMS].tolist()


@pytest.mark.parametrize("name", ["exact", "delta-exact"])
def test_exact_search_has_no_leaves(name: str, vectors: Vectors) -> None:
    searcher = BUILDERS[name](vectors)
    assert searcher.leaf_of_row is None


def test_exact_search_is_saved_and_loaded(vectors: Vectors, queries: Vectors, tmp_path: Path) -> None:
    built = ExactSearcher(vectors)
    built.save(tmp_path)
    assert _same(ExactSearcher.load(tmp_path).search_batch(queries, 30), built.search_batch(queries, 30))


def test_damaged_assets_are_an_artifact_error(vectors: Vectors, tmp_path: Path) -> None:
    ScannSearcher.build(vectors, tree()).save(tmp_path)
    (tmp_path / "datapoint_to_token.npy").unlink()
    with pytest.raises(ArtifactError, match="ScaNN cannot read its assets"):
        ScannSearcher.load(tmp_path, vectors)
    with pytest.raises(ArtifactError, match="expected a float32 matrix"):
        ExactSearcher.load(tmp_path)


def test_search_among_rows_sees_those_rows_alone(vectors: Vectors, queries: Vectors) -> None:
    rows = np.arange(7, ITEMS, 13, dtype=np.int32)
    found = ExactSearcher(vectors).search_rows(queries[0], 5, rows)
    expected, _ = by_hand(vectors[rows], queries[0], 5)
    np.testing.assert_array_equal(found.rows, rows[expected])


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1300])
def test_scattered_rows_are_scored_in_their_order(vectors: Vectors, queries: Vectors, n: int) -> None:
    rows = np.random.default_rng(n).integers(0, ITEMS, n).astype(np.int32)
    expected = [float(np.dot(vectors[row].astype(np.float64), queries[0].astype(np.float64))) for row in rows]
    np.testing.assert_allclose(scores_of(vectors, rows, queries[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in BUILDERS if "projected" in name])
def test_what_is_tuned_for_a_hundred_finds_the_same_beginning_for_fewer(
    name: str, vectors: Vectors, queries: Vectors
) -> None:
    searcher = BUILDERS[name](vectors)
    for query in queries[:8]:
        hundred = searcher.search(query, 99, searcher.effort).rows.tolist()
        for k in (1, 7, 20, 60):
            assert searcher.search(query, k, searcher.effort).rows.tolist() == hundred[:k]


@pytest.mark.parametrize("name", ["scann", "scann-soar", "scann-projected", "sharded", "sharded-projected"])
def test_of_many_ads_alike_the_lowest_rows_come_first_however_few_are_scored_again(name: str, queries: Vectors) -> None:
    """200 copies of each of three vectors, more than a search fetches. Whole numbers, whose sums are exact."""
    few = np.array([[4, 1, 0, 2], [1, 3, 1, 0], [-2, 0, 5, 1]], np.float32)
    copies = np.repeat(np.pad(few, ((0, 0), (0, DIM - 4))), 200, axis=0)[np.random.default_rng(0).permutation(ITEMS)]
    searcher = BUILDERS[name](copies)
    for query in np.round(4 * queries[:6]):
        for k in (5, 120):
            expected, _ = by_hand(copies, query, k)
            found = searcher.search(query, k, Effort(20, 150)).rows
            np.testing.assert_array_equal(found, expected)


def test_more_effort_finds_no_less(vectors: Vectors, queries: Vectors) -> None:
    searcher = ScannSearcher.build(vectors, tree())
    truth = ExactSearcher(vectors).search_batch(queries, 20).rows
    recalls = []
    for effort in (Effort(1, 20), Effort(5, 60), Effort(20, ITEMS)):
        found = searcher.search_batch(queries, 20, effort).rows
        recalls.append(np.mean([len(set(a) & set(b)) / 20 for a, b in zip(found, truth, strict=True)]))
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1.0


def test_blocks_of_a_batch_are_merged(monkeypatch: pytest.MonkeyPatch, vectors: Vectors, queries: Vectors) -> None:
    """With blocks of 7 rows and a batch cut into parts, the answer is the same, ties across blocks included.

    The vectors are whole numbers, whose products every BLAS kernel sums exactly. Otherwise equal rows would differ in
    their last digit, depending on their place in a block.
    """
    repeated, queries = np.round(4 * np.tile(vectors[:50], (4, 1))), np.round(4 * queries)
    whole = ExactSearcher(repeated).search_batch(queries, 9)
    monkeypatch.setattr("index.search.exact.QUERIES_AT_ONCE", 5)
    monkeypatch.setattr("index.search.running_best._SCORES_OF_BLOCK", 35)
    assert _same(ExactSearcher(repeated).search_batch(queries, 9), whole)


def _same(a: Neighbors, b: Neighbors) -> bool:
    return np.array_equal(a.rows, b.rows) and np.allclose(a.scores, b.scores, rtol=1e-5, atol=1e-6)
