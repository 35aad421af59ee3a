"""Law: with several sources and several limits, an answer is filled, or no other item of the catalogue fits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from tests.index import serving_bundles

ITEMS, DIM = 1500, 16
HISTORIES = st.lists(st.integers(0, ITEMS - 1), max_size=60)
LIMITS = st.dictionaries(st.sampled_from(["advertiser_id", "category", "price"]), st.integers(1, 30), min_size=1)


@pytest.fixture(scope="module", params=[(None, 0.5, 0.1), (40, 0.5, 0.1), (40, 0.6, 0.4), (40, 0.0, 0.3)])
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    leaves, own, new = request.param
    share = RetrieverSettings(own_items_share=own, new_items_share=new)
    path = tmp_path_factory.mktemp("limits") / "bundle"
    return Retriever.open(
        serving_bundles.write_bundle(path, items=ITEMS, dim=DIM, leaves=leaves, retriever=share, new=100)
    )


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return serving_bundles.attributes(serving_bundles.clustered(ITEMS, DIM, 0), 0)


@settings(max_examples=60, deadline=None)
@given(HISTORIES, LIMITS, st.integers(1, 300), st.booleans(), st.sampled_from([0.0, 0.4]))
def test_an_answer_is_filled_or_nothing_else_fits(
    retriever: Retriever,
    values: dict[str, Any],
    history: list[int],
    limits: dict[str, int],
    k: int,
    in_stock: bool,
    diversity: float,
) -> None:
    where = "in_stock" if in_stock else None
    record = {"history": [1000 + 3 * row for row in history]}
    found = retriever.retrieve(record, k, where=where, max_per=limits, diversity=diversity)
    rows = found.rows.tolist()
    assert len(rows) == len(set(rows))
    taken = {name: Counter(values[name][row] for row in rows if values[name][row] is not None) for name in limits}
    assert all(max(counts.values(), default=0) <= limits[name] for name, counts in taken.items())
    assert all(values["in_stock"][row] for row in rows) or not in_stock
    if len(rows) < k:
        assert found.plan.exhausted
        for row in set(range(ITEMS)) - set(rows):
            full = any(taken[name][values[name][row]] >= most for name, most in limits.items())
            assert full or (in_stock and not values["in_stock"][row])


def test_own_items_are_answered_with_popular_ones_where_the_towers_say_nothing(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving_bundles, "clustered", lambda items, dim, _: np.ones((items, dim), np.float32))
    share = RetrieverSettings(own_items_share=0.5)
    retriever = Retriever.open(serving_bundles.write_bundle(tmp_path / "bundle", items=50, dim=DIM, retriever=share))
    popular = [row for row in retriever.retrieve({}, 50).rows.tolist() if row not in (7, 9)]
    found = retriever.retrieve({"history": [1000 + 3 * 7, 1000 + 3 * 9]}, 6)
    assert found.cold_start == "popularity"
    # Places of halves are own, popular, own, popular; the rest is popular, since there are two own items.
    assert found.rows.tolist() == [9, popular[0], 7, *popular[1:4]]
    assert found.sources.tolist() == ["own items", "popularity", "own items", *["popularity"] * 3]
