"""Single gates by hand: what they measure, and that each fails where it must."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.publishing import answer_gates, catalogue_gates
from index.publishing.verdict import Verdict
from index.settings import GatesSettings


def case(**parts: Any) -> Any:
    """What the gates look at, as far as a test gives it."""
    return SimpleNamespace(**{"live": None, "settings": GatesSettings(), **parts})


def asked(gate: Callable[[Any], Verdict | None], **parts: Any) -> Verdict:
    verdict = gate(case(**parts))
    assert verdict is not None
    return verdict


@pytest.mark.parametrize(
    ("items", "measured", "outcome"),
    [(75, 0.25, "passed"), (74, 0.26, "failed"), (100, 0.0, "passed"), (125, 0.25, "passed"), (126, 0.26, "failed")],
)
def test_a_catalogue_that_shrinks_fails_as_one_that_grows(items: int, measured: float, outcome: str) -> None:
    """A quarter more or less than the live version's 100 items is allowed."""
    sizes = {"bundle": SimpleNamespace(num_items=items), "live": SimpleNamespace(num_items=100)}
    found = asked(catalogue_gates.items_change, **sizes, settings=GatesSettings(items_change=0.25))
    assert (found.outcome, found.stage) == (outcome, "features")
    assert found.measured == pytest.approx(measured)


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [(10, 30, "passed"), (10, 60, "passed"), (10, 61, "failed"), (30, 10, "failed"), (99, 149, "passed")],
)
def test_a_small_catalogue_may_grow_by_half_a_hundred_but_not_shrink_by_more_than_half(
    before: int, now: int, outcome: str
) -> None:
    sizes = {"bundle": SimpleNamespace(num_items=now), "live": SimpleNamespace(num_items=before)}
    assert asked(catalogue_gates.items_change, **sizes).outcome == outcome


def advertisers(found: list[list[int]], threshold: float, shops: pa.ChunkedArray | None = None) -> Verdict:
    """Rows 0 to 5 belong to the advertisers a, a, b, b, nobody and c; exact search reaches a, b and c."""
    roles = SimpleNamespace(tables=SimpleNamespace(items=SimpleNamespace(advertiser_id="shop")))
    usual = pa.chunked_array([["a", "a", "b"], ["b", None, "c"]])
    items = pa.table({"shop": usual if shops is None else shops})
    exact = np.array([[0, 2, 4], [3, 5, 1]], np.int32)
    return asked(
        answer_gates.reachable_advertisers,
        bundle=SimpleNamespace(schema=roles, items=items),
        served=SimpleNamespace(answers=SimpleNamespace(rows=np.array(found, np.int32)), with_exact_search=exact),
        settings=GatesSettings(reachable_advertisers=threshold),
    )


@pytest.mark.parametrize(
    ("found", "measured"),
    [
        ([[0, 2, 4], [3, 5, 1]], 1.0),
        # Two rows of one advertiser are one, a row of nobody and an empty place are none.
        ([[0, 1, 4], [0, 2, 3]], 2 / 3),
        ([[0, 1, -1], [0, 4, -1]], 1 / 3),
        ([[4, -1, -1], [-1, -1, -1]], 0.0),
    ],
)
def test_advertisers_that_the_tree_does_not_reach_fail_the_gate(found: list[list[int]], measured: float) -> None:
    verdict = advertisers(found, 0.7)
    assert verdict.measured == pytest.approx(measured)
    assert verdict.outcome == ("passed" if measured >= 0.7 else "failed")
    assert (verdict.gate, verdict.stage, verdict.threshold) == ("reachable advertisers", "build", 0.7)
    assert verdict.detail == f"{round(3 * measured)} of 3 advertisers are in a top 100, with exact search 3"


def test_a_catalogue_without_advertisers_has_none_to_reach() -> None:
    shops = pa.chunked_array([pa.nulls(6, pa.string())])
    verdict = advertisers([[0, 2, 4], [3, 5, 1]], 0.9, shops)
    assert (verdict.outcome, verdict.measured) == ("skipped", None)
    assert verdict.detail == "no item in a top 100 has an advertiser"


def version(lengths: list[float], space: str = "one") -> SimpleNamespace:
    """Vectors of these lengths, in different directions."""
    vectors = np.array([[length, 0] if row % 2 else [0, -length] for row, length in enumerate(lengths)], np.float32)
    return SimpleNamespace(vectors=vectors, space=space)


@pytest.mark.parametrize(
    ("lengths", "measured", "outcome"),
    [
        ([1.0, 3.0], 0.0, "passed"),
        ([2.5, 2.5], 0.25, "passed"),
        ([2.0, 4.0], 0.5, "failed"),
        ([1.0, 1.0], 0.5, "failed"),
    ],
)
def test_vectors_that_grow_or_shrink_fail_the_gate(lengths: list[float], measured: float, outcome: str) -> None:
    """The live version's mean length is 2; three tenths more or less are allowed."""
    live = version([2.0, 1.0, 3.0])
    found = asked(catalogue_gates.norms, bundle=version(lengths), live=live, settings=GatesSettings(norm_change=0.3))
    assert (found.outcome, found.stage) == (outcome, "embed")
    assert found.measured == pytest.approx(measured)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("live", [None, version([1.0])])
def test_vectors_that_are_no_numbers_fail_the_gate(broken: float, live: SimpleNamespace | None) -> None:
    found = asked(catalogue_gates.norms, bundle=version([1.0, broken, 1.0, broken]), live=live)
    assert (found.outcome, found.measured, found.stage) == ("failed", 2.0, "embed")
    assert found.detail == "2 vectors with NaN or infinity"


def test_lengths_of_two_spaces_are_not_compared() -> None:
    found = asked(catalogue_gates.norms, bundle=version([100.0]), live=version([1.0], space="other"))
    assert (found.outcome, found.measured) == ("passed", None)


def test_lengths_after_a_version_of_zeros_are_all_of_the_change() -> None:
    found = [asked(catalogue_gates.norms, bundle=version([length]), live=version([0.0])) for length in (0.0, 1.0)]
    assert [(one.outcome, one.measured) for one in found] == [("passed", 0.0), ("failed", 1.0)]
