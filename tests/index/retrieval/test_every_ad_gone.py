"""Where every ad is paused or removed, every call has an empty answer, whatever its rules."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.registry import delta_writer
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from tests.index.serving_bundles import write_bundle

ITEMS, DIM = 60, 16
RECORDS: list[dict[str, Any]] = [{}, {"history": [1000, 1003]}, {"country": "US"}]
RULES: list[dict[str, Any]] = [
    {},
    {"where": "in_stock"},
    {"exclude": [1000]},
    {"max_per": {"category": 1, "advertiser_id": 1}},
    {"diversity": 0.5},
    {"where": "price > 0", "exclude": list(range(5000)), "max_per": {"category": 2}, "diversity": 1.0},
]


@pytest.fixture(scope="module", params=list(itertools.product([None, 8], [(0.0, 0.0), (0.4, 0.1)])))
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    leaves, (own, new) = request.param
    root: Path = tmp_path_factory.mktemp("gone")
    settings = RetrieverSettings(own_items_share=own, new_items_share=new)
    Registry(root / "registry").publish(
        write_bundle(root / "bundle", items=ITEMS, dim=DIM, leaves=leaves, retriever=settings, new=5)
    )
    changes = ["pause" if item % 2 else "remove" for item in range(ITEMS)]
    gone = pa.table({"item_id": [1000 + 3 * item for item in range(ITEMS)], "change": changes})
    delta_writer.apply(root / "registry", gone)
    return Retriever.open(root / "registry")


def empty(found: Candidates) -> bool:
    return len(found) == 0 and found.fill == 0.0 and found.plan.exhausted


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("k", [1, 10, 1000])
def test_every_call_is_answered_with_nothing(retriever: Retriever, rules: dict[str, Any], k: int) -> None:
    assert retriever.num_items == 0
    for count in (0, 1, 300):
        answers = retriever.retrieve_batch((RECORDS * 100)[:count], k, **rules)
        assert len(answers) == count
        assert all(map(empty, answers))
    for record in RECORDS:
        found = retriever.retrieve(record, k, explain=True, **rules)
        assert empty(found)
        assert found.explanation is not None
        assert found.explanation.of(1000).removed_by == "paused or removed"
    assert empty(retriever.retrieve_vector(np.ones(DIM), retriever.space, k, **rules))
    assert empty(retriever.retrieve_by_id("u0", k, **rules))
