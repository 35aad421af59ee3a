"""The best k: the higher score first, and with equal scores the lower row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.top_k import top_k, top_k_batch

score_lists = st.lists(st.sampled_from([-np.inf, -2.0, -1.0, 0.0, 1.0, 3.0]), min_size=1, max_size=40)


@given(score_lists, st.integers(1, 50))
@settings(deadline=None)
def test_the_best_are_those_of_a_sort_by_score_and_place(scores: list[float], k: int) -> None:
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]
    array = np.asarray(scores, np.float32)
    assert top_k(array, k).tolist() == expected
    assert top_k_batch(np.stack([array, array[::-1]]), k)[0].tolist() == expected


@given(score_lists, st.integers(1, 50), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_ties_are_broken_by_the_rows_that_are_given(scores: list[float], k: int, random: object) -> None:
    rows = list(range(100, 100 + len(scores)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    expected = sorted(range(len(scores)), key=lambda place: (-scores[place], rows[place]))[:k]
    assert top_k(np.asarray(scores, np.float32), k, np.asarray(rows, np.int32)).tolist() == expected


@pytest.mark.parametrize("k", [1, 3, 6])
def test_places_are_int32_in_any_case(k: int) -> None:
    scores = np.array([2.0, 5.0, 5.0, 1.0, 5.0], np.float32)
    assert top_k(scores, k).tolist() == [1, 2, 4, 0, 3][:k]
    assert top_k(scores, k).dtype == top_k_batch(scores[None], k).dtype == np.int32


def test_an_empty_batch_has_no_lines() -> None:
    assert top_k_batch(np.zeros((0, 7), np.float32), 3).shape == (0, 3)
    assert top_k(np.zeros(0, np.float32), 3).shape == (0,)
