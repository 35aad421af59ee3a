"""Law of batches: what many records get at once is what each gets alone, where several sources are blended too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.retrieval.retriever import Retriever
from index.settings import RetrieverSettings
from pipelines.contracts.errors import SchemaError
from tests.index.serving_bundles import write_bundle

ITEMS = 300
BLENDS = [(0.5, 0.0), (0.0, 0.3), (0.4, 0.6), (1.0, 0.0)]


def records(count: int) -> list[dict[str, Any]]:
    """Histories of up to 30 items, known and unknown ones, features alone, and nothing at all."""
    rng = np.random.default_rng(0)
    made: list[dict[str, Any]] = []
    for number in range(count):
        history = [int(1000 + 3 * row) for row in rng.integers(0, ITEMS + 20, rng.integers(1, 30))]
        made.append([{"history": history, "country": "US"}, {"history": history}, {"country": "CA"}, {}][number % 4])
    return made


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blended")


def opened(root: Path, own: float, new: float, leaves: int | None) -> Retriever:
    path = root / f"{own}-{new}-{leaves}"
    if not path.exists():
        settings = RetrieverSettings(own_items_share=own, new_items_share=new)
        write_bundle(path, items=ITEMS, leaves=leaves, retriever=settings, new=40)
    return Retriever.open(path)


@pytest.mark.parametrize("leaves", [None, 8])
@pytest.mark.parametrize("k", [1, 7, 100, 2 * ITEMS])
@pytest.mark.parametrize(("own", "new"), BLENDS)
def test_a_blended_batch_is_its_single_calls(root: Path, own: float, new: float, k: int, leaves: int | None) -> None:
    retriever = opened(root, own, new, leaves)
    asked = records(60)
    for record, found in zip(asked, retriever.retrieve_batch(asked, k), strict=True):
        single = retriever.retrieve(record, k)
        assert found.rows.tolist() == single.rows.tolist()
        assert found.sources.tolist() == single.sources.tolist()
        np.testing.assert_allclose(found.scores, single.scores, atol=1e-5)
        assert (found.plan, found.cold_start, found.unknown_history, found.k) == (
            single.plan,
            single.cold_start,
            single.unknown_history,
            k,
        )


def test_a_long_blended_batch_equals_its_parts_and_names_a_bad_record(root: Path) -> None:
    retriever = opened(root, 0.5, 0.0, None)
    asked = records(600)
    found = retriever.retrieve_batch(asked, 10)
    assert [one.rows.tolist() for one in found[::25]] == [
        retriever.retrieve(record, 10).rows.tolist() for record in asked[::25]
    ]
    assert retriever.retrieve_batch([], 10) == []
    asked[501] = {"age": "old"}
    with pytest.raises(SchemaError, match=r"records\[501\]: feature 'age'"):
        retriever.retrieve_batch(asked, 10)
