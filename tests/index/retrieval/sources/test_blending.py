"""Laws of a blend: shares in every beginning, each item once, limits over all sources, and filled if it can be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from index.retrieval.sources.blending import blended
from index.retrieval.sources.ranking import Listed
from index.rules.crowding import Limit
from index.search.searcher import Rows

_PARTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)
_ROWS = 41


def listed(rows: Sequence[int]) -> Listed:
    return Listed(np.array(rows, np.int32), lambda rows: np.zeros(len(rows), np.float32))


def blend(sources: Sequence[Sequence[int]], shares: Sequence[float], k: int, limits: tuple[Limit, ...] = ()) -> Rows:
    """The rows of the first k places."""
    rankings = [listed(rows) for rows in sources]
    found = blended(rankings, shares, k, limits)
    rows = [int(rankings[source].rows[place]) for source, place in zip(found.sources, found.places, strict=True)]
    return np.array(rows, np.int32)


@given(_PARTS)
def test_each_source_has_its_share_of_every_beginning(parts: list[int]) -> None:
    shares = [part / sum(parts) for part in parts]
    sources = [range(1000 * place, 1000 * place + 100) for place in range(len(parts))]
    owners = blend(sources, shares, 60) // 1000
    for length in range(1, 60):
        for place, share in enumerate(shares):
            most = 0.5 + share * (len(parts) - 2) / 2
            assert abs(np.count_nonzero(owners[:length] == place) - share * length) <= most + 1e-9


_SOURCES = st.lists(st.lists(st.integers(0, _ROWS - 1), unique=True, max_size=12), min_size=4, max_size=4)
_GROUPS = st.lists(st.integers(-1, 3), min_size=_ROWS, max_size=_ROWS)


@settings(max_examples=300)
@given(_SOURCES, _PARTS, st.lists(st.tuples(_GROUPS, st.integers(1, 3)), max_size=3))
def test_a_blend_has_each_item_once_and_each_source_in_its_order(
    sources: list[list[int]], parts: list[int], limited: list[tuple[list[int], int]]
) -> None:
    sources, shares = sources[: len(parts)], [part / sum(parts) for part in parts]
    limits = tuple(Limit(f"a{n}", np.array(groups, np.int32), most) for n, (groups, most) in enumerate(limited))
    everything = {row for source in sources for row in source}
    merged = blend(sources, shares, 60, limits).tolist()
    assert len(merged) == len(set(merged))
    assert set(merged) <= everything
    for groups, most in limited:
        counts = np.bincount([groups[row] + 1 for row in merged], minlength=5)
        assert counts[1:].max(initial=0) <= most
    # Filled, or truly exhausted: whatever is left has no room in one of its groups.
    for row in everything - set(merged):
        assert any(
            groups[row] >= 0 and sum(groups[one] == groups[row] for one in merged) >= most for groups, most in limited
        )
    if not limits:
        # Without an item in two sources: apart, by adding a thousand a source.
        apart = [[row + 1000 * place for row in source] for place, source in enumerate(sources)]
        found = blend(apart, shares, 60)
        for place, source in enumerate(apart):
            assert found[found // 1000 == place].tolist() == source
    for k in range(1, len(merged) + 1):
        assert blend(sources, shares, k, limits).tolist() == merged[:k]


def test_places_of_a_source_that_has_no_more_go_to_the_last_one() -> None:
    """Shares of a half, a quarter and a quarter give places 0 1 2 0 0 1 2 0: the first source has one item, then the
    last one fills its places, and the second keeps its own."""
    assert blend([[1], [10, 11, 12], range(20, 30)], [0.5, 0.25, 0.25], 8).tolist() == [1, 10, 20, 21, 22, 11, 23, 24]


def test_items_with_no_room_in_one_group_take_none_in_the_others() -> None:
    """Row 1 is refused for its shop, so that row 2 of the same brand still has room."""
    shop, brand = np.array([0, 0, 1], np.int32), np.array([0, 1, 1], np.int32)
    limits = (Limit("shop", shop, 1), Limit("brand", brand, 1))
    assert blend([[0], [1, 2]], [0.5, 0.5], 3, limits).tolist() == [0, 2]
