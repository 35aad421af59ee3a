"""The value dimension: what is written is read again, the scale is chosen by measurement, bad columns are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.search.exact import ExactSearcher
from index.search.scann_tree import ScannSearcher
from index.search.shards import ShardedSearcher
from index.search.value_tree import SCALES, ValueSearcher, add_value, augmented, load_value, log_values_of
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError
from tests.index import serving_bundles

ITEMS, DIM = 2000, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return serving_bundles.clustered(ITEMS, DIM, 3)


@pytest.fixture(scope="module")
def bids() -> pa.ChunkedArray:
    return pa.chunked_array([np.random.default_rng(4).lognormal(0.0, 0.7, ITEMS)])


def tree_of(vectors: np.ndarray) -> ScannSearcher:
    return ScannSearcher.build(vectors, TreeSettings(leaves=10, leaves_to_search=6, reorder=300))


def test_the_dot_product_of_longer_vectors_is_the_utility(vectors: np.ndarray, bids: pa.ChunkedArray) -> None:
    logs = log_values_of(bids, "bid")
    longer = augmented(vectors, logs, 0.3, 0.1)
    query = np.append(vectors[5], np.float32(0.2 / 0.3))
    np.testing.assert_allclose(longer @ query + 0.2 * 0.1, vectors @ vectors[5] + 0.2 * logs, atol=1e-5)


def test_a_missing_value_counts_as_the_smallest() -> None:
    logs = log_values_of(pa.chunked_array([[1.0, None, 4.0, 0.0, -2.0, float("nan"), 0.5]]), "bid")
    np.testing.assert_allclose(logs, np.log([1.0, 0.5, 4.0, 0.5, 0.5, 0.5, 0.5]), rtol=1e-6)


@pytest.mark.parametrize(
    ("column", "message"),
    [(["a"], "expected a column of numbers, 'bid' is string"), ([0.0, None], "no item has a 'bid' above 0")],
)
def test_a_column_that_is_no_value_is_refused(column: list[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        log_values_of(pa.chunked_array([column]), "bid")


def test_a_tree_with_a_value_serves_every_weight(vectors: np.ndarray, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    queries = serving_bundles.clustered(60, DIM, 3)
    searcher = add_value(tmp_path, tree_of(vectors), vectors, bids, "bid", queries)
    assert isinstance(searcher, ValueSearcher)
    assert searcher.spec.scale in SCALES
    assert min(searcher.spec.recall_at_100) > 0.9
    assert (searcher.dim, searcher.num_items) == (DIM, ITEMS)
    (tmp_path / "scann").mkdir()
    searcher.save(tmp_path / "scann")
    value = load_value(tmp_path)
    assert value is not None
    loaded = ValueSearcher(ScannSearcher.load(tmp_path / "scann", value.vectors), value.spec, value.log_values)
    assert loaded.spec == searcher.spec
    for query in queries[:5]:
        scores = vectors @ query
        np.testing.assert_allclose(loaded.search(query, 10).scores, np.sort(scores)[::-1][:10], atol=1e-4)
        best = np.argsort(-(scores + 0.1 * value.log_values))[:50]
        assert len(np.intersect1d(loaded.search_utility(query, 50, 0.1).rows, best)) >= 47
    batch = loaded.search_batch(queries[:5], 10)
    assert batch.rows[0].tolist() == loaded.search(queries[0], 10).rows.tolist()


def test_exact_search_keeps_its_searcher(vectors: np.ndarray, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    exact = ExactSearcher(vectors)
    assert add_value(tmp_path, exact, vectors, bids, "bid", vectors[:5]) is exact
    value = load_value(tmp_path)
    assert value is not None
    np.testing.assert_array_equal(value.log_values, log_values_of(bids, "bid"))


def test_shards_have_no_value_dimension(vectors: np.ndarray, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    sharded = ShardedSearcher([tree_of(vectors[:1000]), tree_of(vectors[1000:])])
    with pytest.raises(ConfigError, match=r"needs one shard"):
        add_value(tmp_path, sharded, vectors, bids, "bid", vectors[:5])


def test_a_damaged_value_is_refused(vectors: np.ndarray, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    assert load_value(tmp_path) is None
    add_value(tmp_path, ExactSearcher(vectors), vectors, bids, "bid", vectors[:5])
    (tmp_path / "value" / "value.json").write_text("{}")
    with pytest.raises(ArtifactError, match="Build the bundle again"):
        load_value(tmp_path)
