"""Law: under the same rules, the answer for a smaller k is the beginning of the answer for a larger one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.registry import delta_writer
from index.registry.registry import Registry
from index.retrieval.candidates import Candidates
from index.retrieval.retriever import Retriever
from index.rules import planner
from index.settings import RetrieverSettings
from tests.index.serving_bundles import write_bundle

ITEMS, DIM = 4000, 16
KINDS = ["exact", "tree", "tree with a value", "tree with sources", "exact with sources", "tree with changes"]
RULES = st.fixed_dictionaries(
    {},
    optional={
        "where": st.sampled_from(["in_stock", "price < 3", "category == 'shoes'", "stock < 20", "price > 1e9"]),
        "exclude": st.lists(st.integers(0, ITEMS - 1).map(lambda item: 1000 + 3 * item), max_size=60),
        "max_per": st.dictionaries(st.sampled_from(["advertiser_id", "category"]), st.integers(1, 40), min_size=1),
        "value_weight": st.sampled_from([0.05, 0.5]),
        "diversity": st.sampled_from([0.2, 1.0]),
    },
)
RECORDS = st.fixed_dictionaries(
    {"history": st.lists(st.integers(0, ITEMS - 1).map(lambda item: 1000 + 3 * item), max_size=30)},
    optional={"country": st.just("US")},
)
# Around the number that a tree is tuned for, and those of its further searches.
KS = st.lists(st.integers(1, 130) | st.sampled_from([499, 500, 501, 700]), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=KINDS)
def retriever(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Retriever:
    kind, root = request.param, tmp_path_factory.mktemp("beginnings")
    share = RetrieverSettings(own_items_share=0.3, new_items_share=0.2) if "sources" in kind else None
    leaves, scale = None if "exact" in kind else 64, 0.3 if "value" in kind else None
    bundle = write_bundle(
        root / "bundle", items=ITEMS, dim=DIM, leaves=leaves, value_scale=scale, retriever=share, new=300
    )
    return changed(bundle, root) if "changes" in kind else Retriever.open(bundle)


def changed(bundle: Path, root: Path) -> Retriever:
    """Every fifth ad is paused."""
    Registry(root / "registry").publish(bundle)
    paused = [1000 + 3 * item for item in range(0, ITEMS, 5)]
    delta_writer.apply(root / "registry", pa.table({"item_id": paused, "change": ["pause"] * len(paused)}))
    return Retriever.open(root / "registry")


def check_beginning(short: Candidates, long: Candidates) -> None:
    n = len(short)
    assert n == min(short.k, len(long))
    assert short.rows.tolist() == long.rows[:n].tolist()
    assert short.sources.tolist() == long.sources[:n].tolist()
    np.testing.assert_allclose(short.scores, long.scores[:n], atol=1e-5)
    assert short.plan.exhausted or n == short.k


@settings(max_examples=60, deadline=None)
@given(st.data(), RECORDS, RULES, KS)
@pytest.mark.parametrize("scored", [1 << 21, 0])
def test_a_shorter_answer_is_the_beginning_of_a_longer_one(
    retriever: Retriever, scored: int, data: st.DataObject, record: dict[str, Any], rules: dict[str, Any], ks: list[int]
) -> None:
    """With all eligible rows scored, as in a small catalogue, and found in the tree, as in a large one."""
    if retriever.bundle.value is None:
        rules = {name: value for name, value in rules.items() if name != "value_weight"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "_EXACT_NUMBERS", scored)
        patch.setattr(planner, "_LEAF_ROWS", 300)
        patch.setattr(planner, "_LEAF_ROWS_PER_NEIGHBOR", 3)
        longest = retriever.retrieve(record, max(ks), **rules)
        for k in ks:
            check_beginning(retriever.retrieve(record, k, **rules), longest)
        k = data.draw(st.sampled_from(ks))
        vector = retriever.embed(record)
        check_beginning(
            retriever.retrieve_vector(vector, retriever.space, k, **rules),
            retriever.retrieve_vector(vector, retriever.space, max(ks), **rules),
        )


@settings(max_examples=30, deadline=None)
@given(st.lists(RECORDS, min_size=1, max_size=5), KS)
def test_the_same_holds_for_many_records_at_once(
    retriever: Retriever, records: list[dict[str, Any]], ks: list[int]
) -> None:
    longest = retriever.retrieve_batch(records, max(ks))
    for k in ks:
        for short, long in zip(retriever.retrieve_batch(records, k), longest, strict=True):
            check_beginning(short, long)


def test_all_rows_come_in_the_end(retriever: Retriever) -> None:
    found = retriever.retrieve({"history": [1000, 1300]}, 2 * ITEMS)
    assert len(found) == retriever.num_items
    assert found.plan.exhausted
