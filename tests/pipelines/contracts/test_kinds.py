"""Every kind of feature goes the whole way: types, check, summary, fit, table and record."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest
from pydantic import TypeAdapter

from pipelines.contracts import kinds
from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import INT64, LIST
from pipelines.contracts.kinds import Feature, ListFeature
from pipelines.contracts.kinds.feature import FeatureKind, TrainRows
from pipelines.contracts.kinds.summary import Summary

DAY = datetime.datetime(2025, 1, 11, tzinfo=datetime.UTC)
AS_OF_US = int(DAY.timestamp()) * 1_000_000
DAYS_AGO = [DAY - datetime.timedelta(days=days) for days in range(4)]

# A column of each kind with a missing value, and one that its check rejects (row -> rule), where it has a check.
EXAMPLES: dict[str, tuple[dict[str, Any], pa.Array, dict[int, str]]] = {
    "id": ({}, pa.array([7, 11, 7, None]), {}),
    "categorical": ({}, pa.array(["a", "b", "a", None]), {}),
    "list": ({"max_length": 2}, pa.array([["a", "b", "c"], ["a"], [], None]), {}),
    "text": ({"max_length": 3, "min_frequency": 1}, pa.array(["Red lamp", "red RUG!", "", None]), {}),
    "numeric": ({"scale": "log"}, pa.array(["1.5", "2", "many", None]), {2: "type"}),
    "time_since": ({}, pa.array([DAYS_AGO[0].isoformat(), DAYS_AGO[3].isoformat(), "never", None]), {2: "type"}),
    "count": ({"window_days": (1, 7)}, pa.array([0, 3, 1, 0]), {}),
    "embedding": (
        {"dim": 2},
        pa.array([[1.0, 2.0], [1.0], [0.0, 0.0], [np.nan, 1.0], None]),
        {1: "dimension", 2: "zero", 3: "nan"},
    ),
}
KINDS = {cls.model_fields["kind"].annotation.__args__[0]: cls for cls in get_args(get_args(Feature)[0])}


def make(kind: str) -> FeatureKind:
    return TypeAdapter(Feature).validate_python({"name": "f", "kind": kind, **EXAMPLES[kind][0]})


def checked(feature: FeatureKind, column: pa.Array, wrong: dict[int, str]) -> pa.Array:
    """The rows that the feature's check accepts, as the job stores them; rejects are as expected."""
    rules: dict[int, str] = {}

    def reject(bad: np.ndarray, rule: str) -> None:
        for row in np.flatnonzero(bad):
            rules.setdefault(int(row), rule)

    kind = feature.value_type(None) if column.type != pa.int64() else INT64
    converted = convert(column, kind if not isinstance(feature, ListFeature) else LIST)
    reject(converted.wrong, "type")
    stored = converted.values
    assert feature.accepts(stored.type)
    feature.check(stored, reject)
    assert rules == wrong
    return stored.filter(pa.array([row not in wrong for row in range(len(column))]))


def test_each_kind_has_a_module_of_its_name_and_an_example() -> None:
    assert KINDS.keys() == EXAMPLES.keys()
    for name, cls in KINDS.items():
        assert cls.__module__ == f"{kinds.__name__}.{name}"
        assert (Path(kinds.__file__).parent / f"{name}.py").exists()


@pytest.mark.parametrize("kind", EXAMPLES)
def test_a_kind_goes_from_its_column_to_the_towers_input(kind: str) -> None:
    feature, (_, column, wrong) = make(kind), EXAMPLES[kind]
    column = column if feature.made_of_events else checked(feature, column, wrong)
    table = pa.table(dict.fromkeys(feature.raw_columns, column))
    rows = len(table)

    def summary(low: int, high: int) -> Summary:
        part = TrainRows(table.slice(low, high - low), pa.array(range(low, high)), np.arange(low, high) + 1, AS_OF_US)
        return feature.summarise(part)

    fitted = feature.fit([summary(0, 1), summary(1, rows)])
    encoded = feature.encode(fitted, table, AS_OF_US)
    assert encoded.shape == (rows, *feature.input_shape)
    assert encoded.dtype == feature.input_dtype
    assert not encoded[-1].any()  # Missing, or a count of 0.
    assert not feature.is_known(encoded[-1:])
    assert any(feature.is_known(encoded[row : row + 1]) for row in range(rows))
    np.testing.assert_array_equal(feature.encode(feature.fit([summary(0, rows)]), table, AS_OF_US), encoded)
    write = feature.writer(fitted)
    for row, record in enumerate(table.to_pylist()):
        np.testing.assert_array_equal(feature.encode_record(fitted, record, AS_OF_US)[0], encoded[row])
        target = np.full((1, *feature.input_shape), 9, feature.input_dtype)
        write(target, record, AS_OF_US)
        np.testing.assert_allclose(target[0], encoded[row], rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("id", pa.list_(pa.string())),
        ("categorical", pa.list_(pa.string())),
        ("list", pa.string()),
        ("list", pa.list_(pa.list_(pa.string()))),
        ("text", pa.int64()),
        ("time_since", pa.date32()),
        ("numeric", pa.timestamp("us")),
        ("time_since", pa.float64()),
        ("time_since", pa.int32()),
        ("count", pa.int64()),
        ("embedding", pa.list_(pa.string())),
        ("embedding", pa.float32()),
    ],
)
def test_a_kind_refuses_columns_it_cannot_read(kind: str, refused: pa.DataType) -> None:
    assert not make(kind).accepts(refused)


@pytest.mark.parametrize("kind", EXAMPLES)
def test_every_key_of_a_kind_is_described(kind: str) -> None:
    described = {name: field.description for name, field in KINDS[kind].model_fields.items() if name != "kind"}
    assert all(text and text[0].isupper() and text.endswith(".") for text in described.values()), described
