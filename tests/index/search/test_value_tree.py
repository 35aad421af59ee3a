"""The value dimension: its dot product is the utility; bad columns and damaged files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort
from index.search.utility import Utility
from index.search.value_tree import ValueSearcher, ValueSpec, augmented, load_value, log_values_of, save_value
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError
from tests import oracles
from tests.index import serving_bundles

ITEMS, DIM = 2000, 16


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return serving_bundles.clustered(ITEMS, DIM, 3)


@pytest.fixture(scope="module")
def bids() -> pa.ChunkedArray:
    return pa.chunked_array([np.random.default_rng(4).lognormal(0.0, 0.7, ITEMS)])


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


def test_a_steep_weight_finds_the_most_valuable_whatever_the_effort(vectors: np.ndarray, bids: pa.ChunkedArray) -> None:
    """One leaf holds a tenth of the items; all 2000 are among the most valuable that are scored too."""
    logs = log_values_of(bids, "bid")
    spec = ValueSpec(attribute="bid", scale=0.2, center=float(logs.mean()))
    tree = TreeSettings(leaves=10, leaves_to_search=1, reorder=60)
    built = ScannSearcher.build(augmented(vectors, logs, spec.scale, spec.center), tree)
    searcher, utility = ValueSearcher(built, spec, logs), Utility(0.2, logs)
    for query in vectors[:10]:
        expected = np.argsort(-(vectors @ query + np.float32(0.2) * logs), kind="stable")[:30]
        found = searcher.search_utility(query, 30, utility, Effort(1, 60))
        assert len(np.intersect1d(found.rows, expected)) >= 29  # Two sums of the same numbers: near ties may swap.
        np.testing.assert_allclose(found.scores, vectors[found.rows] @ query + 0.2 * logs[found.rows], atol=1e-5)


def test_a_damaged_value_is_refused(vectors: np.ndarray, bids: pa.ChunkedArray, tmp_path: Path) -> None:
    assert load_value(tmp_path) is None
    logs = log_values_of(bids, "bid")
    save_value(tmp_path, ValueSpec(attribute="bid", scale=1.0, center=0.0), logs, augmented(vectors, logs, 1.0, 0.0))
    (tmp_path / "value" / "value.json").write_text("{}")
    with pytest.raises(ArtifactError, match="Build the bundle again"):
        load_value(tmp_path)


@pytest.mark.parametrize("steepness", [1.0, 3.0, 50.0])
def test_a_steep_weight_finds_valuable_items_that_lie_in_no_searched_leaf(steepness: float) -> None:
    """The query's own leaf alone is searched; the most valuable items lie anywhere. A row comes once."""
    vectors = serving_bundles.clustered(ITEMS, DIM, 3)
    logs = np.random.default_rng(4).normal(0.0, 1.5, ITEMS).astype(np.float32)
    spec = ValueSpec(attribute="bid", scale=0.25, center=0.5)
    longer = augmented(vectors, logs, spec.scale, spec.center)
    tree = ScannSearcher.build(longer, TreeSettings(leaves=40, leaves_to_search=1, reorder=60))
    searcher = ValueSearcher(tree, spec, logs)
    weight = steepness * spec.scale
    for query in vectors[:3]:
        utilities = vectors @ query + np.float32(weight) * logs
        found = searcher.search_utility(query, 20, Utility(weight, logs), Effort(1, 60))
        assert found.rows.tolist() == oracles.top_k(utilities, 20)
        np.testing.assert_allclose(found.scores, utilities[found.rows], rtol=1e-4, atol=1e-4)
