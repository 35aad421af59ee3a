"""A user of whom the towers can say nothing is answered by popularity and marked so, however the call is made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.retrieval.live.telling import telling_dimensions
from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from tests import oracles
from tests.index import serving_bundles

ITEMS, DIM, SILENT = 200, 16, 12


def half_silent(items: int, dim: int, seed: int) -> np.ndarray:
    """The first items are zeros, and all items are alike in the second half of the dimensions."""
    vectors = np.random.default_rng(seed).normal(size=(items, dim)).astype(np.float32)
    vectors[:, dim // 2 :] = 0.0
    vectors[:SILENT] = 0.0
    return vectors


@pytest.fixture(scope="module", params=[None, 8])
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    path = tmp_path_factory.mktemp("silent") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_bundles, "clustered", half_silent)
        # A tower of the history alone: what is missing of the profile adds nothing.
        patch.setattr(serving_bundles, "user_tables", lambda dim: [np.zeros((n, dim), np.float32) for n in (5, 7, 2)])
        patch.setattr(serving_bundles, "query_tower", serving_bundles.query_tower.__wrapped__)
        serving_bundles.write_bundle(path, items=ITEMS, dim=DIM, leaves=request.param)
    return Retriever.open(path)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, SILENT + 2), max_size=8), st.integers(1, 50))
def test_scores_that_are_all_the_same_rank_nobody(retriever: Retriever, rows: list[int], k: int) -> None:
    record = {"history": [1000 + 3 * row for row in rows]}
    silent = all(row < SILENT for row in rows)
    single = retriever.retrieve(record, k)
    assert (single.cold_start == "popularity") == silent
    assert set(single.sources.tolist()) == {"popularity" if silent else "towers"}
    for found in (retriever.retrieve_batch([record] * 2, k)[1], retriever.retrieve(record, k, exclude=[5])):
        assert found.cold_start == single.cold_start
        assert found.sources.tolist() == single.sources.tolist()
        assert found.rows.tolist() == single.rows.tolist() or not silent
    if silent:
        frequency = retriever.bundle.vocabulary.item_frequency
        assert single.rows.tolist() == oracles.top_k(frequency, k)
        np.testing.assert_allclose(single.scores, np.log1p(frequency)[single.rows], rtol=1e-6)


def test_a_vector_in_which_no_two_items_differ_is_answered_by_popularity(retriever: Retriever) -> None:
    popular = retriever.retrieve({}, 20)
    for vector in (np.zeros(DIM), np.repeat([0.0, 3.0], DIM // 2)):
        found = retriever.retrieve_vector(vector, retriever.space, 20)
        assert found.rows.tolist() == popular.rows.tolist()
        assert (found.cold_start, found.sources[0]) == ("popularity", "popularity")
    assert retriever.retrieve_vector(np.ones(DIM), retriever.space, 20).cold_start is None


def test_a_catalogue_of_equal_vectors_is_ranked_by_popularity(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_bundles, "clustered", lambda items, dim, _: np.ones((items, dim), np.float32))
    path = serving_bundles.write_bundle(tmp_path / "bundle", items=ITEMS, dim=DIM, retriever=RetrieverSettings())
    retriever = Retriever.open(path)
    found = retriever.retrieve({"history": [1000], "country": "US"}, 10)
    assert found.cold_start == "popularity"
    assert found.rows.tolist() == oracles.top_k(retriever.bundle.vocabulary.item_frequency, 10)


@given(st.data())
def test_the_telling_dimensions_are_those_in_which_items_differ(data: st.DataObject) -> None:
    items, dim = data.draw(st.integers(2, 300)), data.draw(st.integers(1, 4))
    vectors = np.zeros((items, dim), np.float32)
    for row, column in data.draw(st.lists(st.tuples(st.integers(0, items - 1), st.integers(0, dim - 1)), max_size=5)):
        vectors[row, column] = 1.0
    expected = [len(set(column)) > 1 for column in vectors.T.tolist()]
    found = telling_dimensions(vectors)
    assert ([True] * dim if found is None else found.tolist()) == expected
