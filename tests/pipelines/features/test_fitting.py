"""Fitting: exact, mergeable, independent of the cut."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.kinds import CategoricalFeature, Feature, ListFeature, NumericFeature, TextFeature
from pipelines.contracts.kinds.summary import Moments, exact_sum
from pipelines.contracts.vocabulary import FittedCodes, FittedNumbers
from pipelines.features.fitting import fit, summarise

floats = st.floats(allow_nan=False, allow_infinity=False, width=64)


@given(st.lists(floats, max_size=50))
def test_the_sum_has_no_rounding(values: list[float]) -> None:
    assert exact_sum(np.array(values)) == sum((Fraction(value) for value in values), Fraction(0))


def test_moments_of_three_numbers() -> None:
    # 1, 2, 6: mean 3, squares of the distances 4 + 1 + 9 = 14, a third of it 14/3.
    moments = Moments.of(np.array([1.0, 2.0])).plus(Moments.of(np.array([6.0])))
    assert moments.mean == 3.0
    assert moments.spread == pytest.approx(math.sqrt(14 / 3), rel=1e-15)
    assert (Moments().mean, Moments().spread) == (0.0, 0.0)


FEATURES: tuple[Feature, ...] = (
    CategoricalFeature(name="color", kind="categorical"),
    TextFeature(name="title", kind="text", min_frequency=2),
    ListFeature(name="tags", kind="list"),
    NumericFeature(name="price", kind="numeric", scale="log"),
    NumericFeature(name="rank", kind="numeric", scale="quantile"),
)


def some_table(rows: int) -> pa.Table:
    rng = np.random.default_rng(3)
    return pa.table(
        {
            "color": [["red", "blue", None][value] for value in rng.integers(0, 3, rows)],
            "title": [f"Lamp {value} Old" for value in rng.integers(0, 4, rows)],
            "tags": [[f"t{value}", "x"] if value else None for value in rng.integers(0, 3, rows)],
            "price": pa.array([None if value < 1 else value for value in rng.lognormal(1, 1, rows)]),
            "rank": rng.integers(0, 9, rows),
        }
    )


@given(cuts=st.lists(st.integers(0, 60), max_size=4))
def test_any_cut_of_the_table_fits_the_same(cuts: list[int]) -> None:
    table, ids = some_table(60), pa.array(np.arange(60))
    frequency = np.arange(60) % 4
    bounds = [0, *sorted(cuts), 60]
    parts = [
        summarise(FEATURES, table.slice(low, high - low), ids.slice(low, high - low), frequency[low:high], 0)
        for low, high in itertools.pairwise(bounds)
    ]
    whole = fit(FEATURES, [summarise(FEATURES, table, ids, frequency, 0)])
    cut = fit(FEATURES, parts)
    for feature in FEATURES:
        one, other = whole[feature.name], cut[feature.name]
        if isinstance(one, FittedCodes) and isinstance(other, FittedCodes):
            assert one.values.equals(other.values)
            assert one.frequencies.tolist() == other.frequencies.tolist()
        else:
            assert isinstance(one, FittedNumbers)
            assert isinstance(other, FittedNumbers)
            assert (one.center, one.spread, one.scale) == (other.center, other.spread, other.scale)
            assert (one.quantiles is None) == (other.quantiles is None)
            assert one.quantiles is None or (one.quantiles == other.quantiles).all()


def test_values_are_counted_by_train_events_and_rows_without_any_do_not_count() -> None:
    table = pa.table({"color": ["red", "blue", "blue", "green"], "price": [1.0, 3.0, 5.0, 1000.0]})
    features = (
        CategoricalFeature(name="color", kind="categorical"),
        NumericFeature(name="price", kind="numeric"),
    )
    fitted = fit(features, [summarise(features, table, pa.array([1, 2, 3, 4]), np.array([7, 1, 2, 0]), 0)])
    color, price = fitted["color"], fitted["price"]
    assert isinstance(color, FittedCodes)
    assert (color.values.to_pylist(), color.frequencies.tolist()) == (["red", "blue"], [7, 3])
    assert isinstance(price, FittedNumbers)
    assert price.center == 3.0
