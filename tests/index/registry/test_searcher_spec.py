"""``searcher.json`` in words: why exact search is served although trees were tried."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from index.registry.searcher_spec import Measured, SearcherSpec
from index.settings import TreeSettings


def measured(p50: float, recall: float, *, tree: bool = True) -> Measured:
    return Measured(
        tree=TreeSettings(leaves=10, leaves_to_search=5, reorder=100) if tree else None,
        ann_recall_at_100=recall,
        p50_us=p50,
        p99_us=2 * p50,
        build_seconds=1.0,
        queries=100,
    )


EXACT = measured(12_345.0, 1.0, tree=False)


@given(st.lists(st.tuples(st.floats(10, 9_999), st.floats(0.1, 0.98)), min_size=1, max_size=6), st.integers(0, 9))
def test_the_reason_names_exact_searchs_time_the_best_tree_and_the_target(
    trees: list[tuple[float, float]], beaten: int
) -> None:
    points = tuple(measured(p50, recall) for p50, recall in trees)
    number = len(points) + beaten
    spec = SearcherSpec(engine="exact", target=0.99, chosen=EXACT, frontier=(*points, EXACT), points=number + 1)
    best = max(recall for _, recall in trees)
    assert spec.why_exact is not None
    assert "exact search is served, 12,345 µs at the median" in spec.why_exact
    assert f"none of {number} trees measured meets the recall target of 0.99; the best has {best:.4f}" in spec.why_exact
    for key in ("index.ann_recall_at_100", "towers.embedding_dim", "towers.item_norm", "index.tuning_seconds"):
        assert key in spec.why_exact


def test_where_every_tree_is_slower_the_reason_says_so() -> None:
    spec = SearcherSpec(engine="exact", target=0.99, chosen=EXACT, frontier=(EXACT,), points=4)
    assert "each of 3 trees measured is slower" in (spec.why_exact or "")


def test_there_is_no_reason_where_nothing_was_tried_or_a_tree_is_served() -> None:
    tree = measured(50.0, 0.995)
    assert SearcherSpec(engine="exact").why_exact is None
    assert SearcherSpec(engine="exact", chosen=EXACT, frontier=(EXACT,), points=1).why_exact is None
    served = SearcherSpec(engine="scann", tree=tree.tree, chosen=tree, frontier=(tree, EXACT), points=2)
    assert served.why_exact is None
    # Compaction left too few items for its tree: that says nothing about trees.
    assert served.model_copy(update={"engine": "exact", "tree": None}).why_exact is None
