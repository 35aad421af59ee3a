"""The scale of the value dimension is chosen by measurement, and what is written is read again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.building.tuning.tuner import Tuned
from index.building.value_scale import SCALES, WEIGHTS, add_value
from index.registry.searcher_spec import SearcherSpec
from index.search.exact import ExactSearcher
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Vectors
from index.search.shards import ShardedSearcher
from index.search.utility import Utility
from index.search.value_tree import ValueSearcher, load_value, log_values_of
from index.settings import TreeSettings
from pipelines.contracts.errors import ConfigError
from tests.index import serving_bundles

ITEMS, DIM = 2000, 16
TREE = TreeSettings(leaves=10, leaves_to_search=6, reorder=300)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return serving_bundles.clustered(ITEMS, DIM, 3)


@pytest.fixture(scope="module")
def bids() -> pa.ChunkedArray:
    return pa.chunked_array([np.random.default_rng(4).lognormal(0.0, 0.7, ITEMS)])


def exact(vectors: Vectors) -> Tuned:
    return Tuned(ExactSearcher(vectors), SearcherSpec(engine="exact"))


def test_a_tree_with_a_value_serves_every_weight(vectors: Vectors, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    queries = serving_bundles.clustered(60, DIM, 3)
    tuned = Tuned(ScannSearcher.build(vectors, TREE), SearcherSpec(engine="scann", tree=TREE))
    (tmp_path / "scann").mkdir()
    add_value(tmp_path, tuned, vectors, bids, "bid", queries).save(tmp_path / "scann")
    value = load_value(tmp_path)
    assert value is not None
    assert value.spec.scale in SCALES
    assert value.spec.weights == WEIGHTS
    assert min(value.spec.recall_at_100) > 0.9
    loaded = ValueSearcher(ScannSearcher.load(tmp_path / "scann", value.vectors), value.spec, value.log_values)
    assert (loaded.dim, loaded.num_items) == (DIM, ITEMS)
    for query in queries[:5]:
        scores = vectors @ query
        np.testing.assert_allclose(loaded.search(query, 10).scores, np.sort(scores)[::-1][:10], atol=1e-4)
        best = np.argsort(-(scores + 0.1 * value.log_values))[:50]
        found = loaded.search_utility(query, 50, Utility(0.1, value.log_values))
        assert len(np.intersect1d(found.rows, best)) >= 47
    batch = loaded.search_batch(queries[:5], 10)
    assert batch.rows[0].tolist() == loaded.search(queries[0], 10).rows.tolist()


def test_exact_search_keeps_its_searcher(vectors: Vectors, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    tuned = exact(vectors)
    assert add_value(tmp_path, tuned, vectors, bids, "bid", vectors[:5]) is tuned.searcher
    value = load_value(tmp_path)
    assert value is not None
    np.testing.assert_array_equal(value.log_values, log_values_of(bids, "bid"))


def test_shards_have_no_value_dimension(vectors: Vectors, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    sharded = ShardedSearcher([ScannSearcher.build(part, TREE) for part in (vectors[:1000], vectors[1000:])])
    tuned = Tuned(sharded, SearcherSpec(engine="scann", tree=TREE, shards=2))
    with pytest.raises(ConfigError, match=r"needs one shard"):
        add_value(tmp_path, tuned, vectors, bids, "bid", vectors[:5])
