"""Exact search in blocks equals exact search, including ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.evaluation.measures.exact_top_k import exact_top_k
from pipelines.contracts.errors import SchemaError
from tests import oracles


@given(st.integers(0, 10_000), st.integers(1, 300), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_equals_sorting_everything(seed, items, k):
    rng = np.random.default_rng(seed)
    # Small whole numbers: scores are exact, and many are equal.
    vectors = rng.integers(-2, 3, (items, 4)).astype(np.float32)
    queries = rng.integers(-2, 3, (7, 4)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index.evaluation.measures.exact_top_k.QUERIES_AT_ONCE", 3)
        patch.setattr("index.search.running_best._SCORES_OF_BLOCK", 48)
        found = exact_top_k(queries, vectors, k, threads=2)
    assert found.rows.tolist() == [oracles.top_k(vectors @ query, k) for query in queries]
    assert (found.scores == np.take_along_axis(queries @ vectors.T, found.rows, axis=1)).all()


def test_equals_the_exact_searcher():
    from index.search.exact import ExactSearcher

    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(30_000, 16)).astype(np.float32)
    queries = rng.normal(size=(300, 16)).astype(np.float32)
    ours, theirs = exact_top_k(queries, vectors, 500), ExactSearcher(vectors).search_batch(queries, 500)
    # Products of several blocks may differ in the last bit, so that near ties may change places.
    assert (ours.rows == theirs.rows).mean() > 0.999
    assert np.abs(ours.scores - theirs.scores).max() < 1e-5


def test_k_above_the_items_and_no_users():
    vectors = np.eye(3, dtype=np.float32)
    assert exact_top_k(vectors[:1], vectors, 10).rows.tolist() == [[0, 1, 2]]
    assert exact_top_k(np.zeros((0, 3), np.float32), vectors, 2).rows.shape == (0, 2)


def test_bad_queries_are_refused():
    vectors = np.eye(3, dtype=np.float32)
    with pytest.raises(SchemaError, match="k: expected 1 or more, got 0"):
        exact_top_k(vectors, vectors, 0)
    with pytest.raises(SchemaError, match=r"expected shape \(batch, 3\), got \(1, 2\)"):
        exact_top_k(np.zeros((1, 2), np.float32), vectors, 1)
    with pytest.raises(SchemaError, match="1 that are NaN"):
        exact_top_k(np.array([[np.nan, 0, 0]], np.float32), vectors, 1)
