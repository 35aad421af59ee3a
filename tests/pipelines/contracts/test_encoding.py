"""Vocabulary and encoding: expected codes by hand, and one law: a table's row and a record encode to the same."""

from __future__ import annotations

import datetime
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipelines.contracts.conversion import US_PER_DAY, time_us
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.encoding import encode_record, encode_table
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.kinds.text import words
from pipelines.contracts.vocabulary import Fitted, FittedCodes, FittedNumbers, ValueTable, Vocabulary, plain_values

DAY = datetime.datetime(2025, 1, 11, tzinfo=datetime.UTC)
AS_OF_US = int(DAY.timestamp()) * 1_000_000


def feature(**fields: Any) -> Any:
    return TypeAdapter(Feature).validate_python(fields)


def fit(spec: Any, counts: dict[Any, int]) -> Any:
    summary = Summary.of_values(pa.array(list(counts)), np.array(list(counts.values()), np.int64))
    return spec.fit([summary])


def encode_one(spec: Any, fitted: Fitted | None, column: pa.Array) -> np.ndarray:
    entries = {} if fitted is None else {spec.name: fitted}
    encoded = encode_table([spec], entries, pa.table({spec.source: column}), as_of_us=AS_OF_US)[spec.name]
    assert encoded.shape == (len(column), *spec.input_shape)
    assert encoded.dtype == spec.input_dtype
    return encoded


def test_values_are_coded_by_falling_frequency_then_value() -> None:
    spec = feature(name="c", kind="categorical", min_frequency=2)
    fitted = fit(spec, {"rare": 1, "b": 2, "a": 2, "often": 9})
    assert fitted.values.to_pylist() == ["often", "a", "b"]
    assert fitted.size == 5
    assert encode_one(spec, fitted, pa.array(["a", "rare", None, "often", "new"])).tolist() == [3, 1, 0, 2, 1]


def test_pinned_values_keep_their_order() -> None:
    spec = feature(name="c", kind="categorical", values=["x", "y"])
    fitted = fit(spec, {"y": 5, "z": 9})
    assert fitted.values.to_pylist() == ["x", "y"]
    assert fitted.frequencies.tolist() == [0, 5]
    assert encode_one(spec, fitted, pa.array(["z", "y", "x"])).tolist() == [1, 3, 2]


def test_numbers_and_texts_of_one_meaning_have_one_code() -> None:
    spec = feature(name="c", kind="id")
    fitted = fit(spec, {5: 1, 17: 1})
    for column in (pa.array([17, 5]), pa.array(["17", "5"]), pa.array([17.0, 5.0]), pa.array([17, 5], pa.int32())):
        assert encode_one(spec, fitted, column).tolist() == [3, 2]
    assert encode_one(spec, fitted, pa.array(["017", "5x", "17 ", "17.0"])).tolist() == [1, 1, 3, 3]


def test_floats_are_cast_value_by_value() -> None:
    assert plain_values(pa.array([3.0, 2.5, None])).to_pylist() == ["3", "2.5", None]
    assert plain_values(pa.array([3.0])).to_pylist() == ["3"]
    assert plain_values(pa.array([True, False])).to_pylist() == ["true", "false"]


def test_hashed_codes_need_no_vocabulary_and_stay_in_range() -> None:
    spec = feature(name="c", kind="id", hash_buckets=7)
    fitted = fit(spec, {})
    codes = encode_one(spec, fitted, pa.array([*range(1000), None]))
    assert codes[-1] == 0
    assert set(codes[:-1].tolist()) == set(range(2, 9))
    assert encode_one(spec, fitted, pa.array(["42"])).tolist() == [codes[42]]


def test_lists_are_cut_and_padded_and_skip_nulls() -> None:
    spec = feature(name="l", kind="list", max_length=3)
    fitted = fit(spec, {"a": 3, "b": 2, "c": 1})
    column = pa.array([["a", None, "zz", "c", "b"], [], None, ["b"]])
    assert encode_one(spec, fitted, column).tolist() == [[2, 1, 4], [0, 0, 0], [0, 0, 0], [3, 0, 0]]


def test_words() -> None:
    texts = pa.array(["  Red--SHOES, 3x (new)!", "", None, "Ünïcode 日本", "..."])
    expected = [["red", "shoes", "3x", "new"], [], None, ["ünïcode", "日本"], []]
    decomposed = [None if row is None else [unicodedata.normalize("NFKD", word) for word in row] for row in expected]
    assert words(texts).to_pylist() == decomposed


def test_numbers_are_scaled_and_missing_ones_marked() -> None:
    column = pa.array([1.0, None, 5.0, float("nan"), float("inf")])
    standard = encode_one(feature(name="n", kind="numeric"), FittedNumbers("standard", 3.0, 2.0), column)
    assert standard.tolist() == [[-1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]
    log = encode_one(
        feature(name="n", kind="numeric", scale="log"), FittedNumbers("log", 0.0, 2.0), pa.array([np.e - 1])
    )
    np.testing.assert_allclose(log, [[0.5, 1.0]], rtol=1e-6)


def test_a_constant_number_is_zero_not_a_division_by_zero() -> None:
    encoded = encode_one(feature(name="n", kind="numeric"), FittedNumbers("standard", 3.0, 0.0), pa.array([3, 4]))
    assert encoded.tolist() == [[0.0, 1.0], [1.0, 1.0]]


def test_quantiles_run_from_minus_one_to_one_and_ties_meet_in_the_middle() -> None:
    fitted = FittedNumbers("quantile", quantiles=np.array([0.0, 1.0, 1.0, 1.0, 10.0]))
    encoded = encode_one(
        feature(name="n", kind="numeric", scale="quantile"), fitted, pa.array([-5.0, 0.0, 1.0, 5.5, 99.0])
    )
    np.testing.assert_allclose(encoded[:, 0], [-1.0, -1.0, 0.0, 0.75, 1.0])


def test_days_since_a_moment() -> None:
    spec = feature(name="t", kind="time_since")
    days = np.array([10, 0])
    fitted = FittedNumbers("log")
    dates = pa.array([DAY - datetime.timedelta(days=10), DAY + datetime.timedelta(days=1)])
    encoded = encode_one(spec, fitted, dates)
    np.testing.assert_allclose(encoded[:, 0], np.log1p(days), rtol=1e-6)
    assert encode_one(spec, fitted, pa.array([DAY.date(), None])).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    with pytest.raises(SchemaError, match=r't = \{ type = "timestamp", unit = "s" \}'):
        encode_one(spec, fitted, dates.cast(pa.int64()))


def test_embeddings_keep_their_numbers_and_refuse_wrong_ones() -> None:
    spec = feature(name="e", kind="embedding", dim=2)
    assert encode_one(spec, None, pa.array([[1.0, 2.0], None])).tolist() == [[1.0, 2.0], [0.0, 0.0]]
    with pytest.raises(SchemaError, match="expected vectors of 2 numbers, row 1 of column 'e' has 3"):
        encode_one(spec, None, pa.array([[1.0, 2.0], [1.0, 2.0, 3.0]]))
    with pytest.raises(SchemaError, match="row 2 of column 'e' has a NaN"):
        encode_one(spec, None, pa.array([[1.0, 2.0], None, [1.0, float("nan")]]))


def test_a_column_of_the_wrong_type_is_reported_with_feature_and_column() -> None:
    with pytest.raises(
        SchemaError, match=r"feature 'n' of kind 'numeric' cannot be read from column 'p' of type string"
    ):
        encode_one(feature(name="n", kind="numeric", column="p"), FittedNumbers("standard"), pa.array(["x"]))
    with pytest.raises(SchemaError, match="feature 'l' of kind 'list'"):
        spec = feature(name="l", kind="list")
        encode_one(spec, fit(spec, {"a": 1}), pa.array(["a"]))
    with pytest.raises(SchemaError, match="feature 'n': expected a finite number, got 'x'"):
        encode_record([feature(name="n", kind="numeric")], {"n": FittedNumbers("standard")}, {"n": "x"}, as_of_us=0)
    with pytest.raises(SchemaError, match=r"feature 'c': expected an integer from .*, got \[1\]"):
        encode_record(
            [feature(name="c", kind="id")], {"c": fit(feature(name="c", kind="id"), {1: 1})}, {"c": [1]}, as_of_us=0
        )


def test_an_absent_column_is_missing() -> None:
    spec = feature(name="c", kind="categorical")
    encoded = encode_table([spec], {"c": fit(spec, {"a": 1})}, pa.table({"x": [1, 2]}), as_of_us=0)
    assert encoded["c"].tolist() == [0, 0]


def test_times_are_read_in_every_plain_form() -> None:
    for value in (DAY, DAY.replace(tzinfo=None), DAY.date(), "2025-01-11", "2025-01-11T00:00:00+00:00"):
        assert time_us(value, "at") == AS_OF_US
    assert time_us(AS_OF_US, "at", ColumnType(type="timestamp", unit="us")) == AS_OF_US
    assert time_us("1969-12-31T23:59:59.999999Z", "at") == -1
    for wrong in (3.5, AS_OF_US, "yesterday", None, True):
        with pytest.raises(SchemaError, match="at: expected a time"):
            time_us(wrong, "at")


def test_places_of_few_values_and_of_many_agree() -> None:
    table = ValueTable(pa.array([f"v{number}" for number in range(1000)]))
    wanted = pa.array([f"v{number}" for number in range(0, 1200, 3)] + [None])
    singly = [table.place(value) for value in wanted.to_pylist()]
    assert table.places(wanted).tolist() == singly
    assert table.places(wanted.slice(0, 10)).tolist() == singly[:10]
    assert singly[-1] == -1
    assert singly[1] == 3


def test_a_vocabulary_survives_save_and_load(tmp_path: Path) -> None:
    codes = fit(feature(name="c", kind="id"), {"a": 3, "b": 1})
    hashed = fit(feature(name="h", kind="id", hash_buckets=5), {})
    numbers = FittedNumbers("quantile", quantiles=np.array([0.0, 0.1, 7.0]))
    vocabulary = Vocabulary({"n": numbers}, {"c": codes, "h": hashed}, pa.array([4, 9]), np.array([2, 0]))
    vocabulary.save(tmp_path / "v")
    loaded = Vocabulary.load(tmp_path / "v")
    assert loaded.item_rows([9, 4, 7]).tolist() == [1, 0, -1]
    assert loaded.item_frequency.tolist() == [2, 0]
    assert isinstance(loaded.item["c"], FittedCodes)
    assert loaded.item["c"].values == codes.values
    assert loaded.item["c"].frequencies.tolist() == [3, 1]
    assert isinstance(loaded.item["h"], FittedCodes)
    assert loaded.item["h"].size == 7
    assert isinstance(loaded.user["n"], FittedNumbers)
    assert loaded.user["n"].quantiles is not None
    assert loaded.user["n"].quantiles.tolist() == [0.0, 0.1, 7.0]
    (tmp_path / "v" / "item.c.arrow").write_bytes(b"junk")
    with pytest.raises(ArtifactError, match="the vocabulary cannot be read"):
        Vocabulary.load(tmp_path / "v")


TEXT = st.text(max_size=12)
VALUES = {
    "id": st.one_of(st.none(), st.integers(-5, 30)),
    "categorical": st.one_of(st.none(), st.sampled_from(["a", "b", "ç", "", "zz"]), TEXT),
    "hashed": st.one_of(st.none(), TEXT),
    "list": st.one_of(st.none(), st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "q"])), max_size=6)),
    "text": st.one_of(st.none(), st.text(max_size=40), st.sampled_from(["Red shoe", "red SHOES x"])),
    "numeric": st.one_of(st.none(), st.floats(width=64, allow_infinity=False), st.integers(-(10**6), 10**6).map(float)),
    "quantile": st.one_of(st.none(), st.floats(-3, 12)),
    "age": st.one_of(st.none(), st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2030, 1, 1))),
    "embedding": st.one_of(st.none(), st.lists(st.floats(-9, 9, width=32), min_size=2, max_size=2)),
}
SPECS = {
    "id": feature(name="id", kind="id"),
    "categorical": feature(name="categorical", kind="categorical"),
    "hashed": feature(name="hashed", kind="categorical", hash_buckets=11),
    "list": feature(name="list", kind="list", max_length=3),
    "text": feature(name="text", kind="text", max_length=4, min_frequency=1),
    "numeric": feature(name="numeric", kind="numeric", scale="log"),
    "quantile": feature(name="quantile", kind="numeric", scale="quantile"),
    "age": feature(name="age", kind="time_since"),
    "embedding": feature(name="embedding", kind="embedding", dim=2),
}
FITTED: dict[str, Fitted] = {
    "id": fit(SPECS["id"], dict.fromkeys(range(20), 1)),
    "categorical": fit(SPECS["categorical"], {"a": 2, "b": 1, "ç": 1, "": 3}),
    "hashed": fit(SPECS["hashed"], {}),
    "list": fit(SPECS["list"], {"a": 1, "b": 1}),
    "text": fit(SPECS["text"], {"red": 2, "shoe": 1}),
    "numeric": FittedNumbers("log", 0.3, 1.7),
    "quantile": FittedNumbers("quantile", quantiles=np.array([0.0, 1.0, 1.0, 4.0])),
    "age": FittedNumbers("log", 1.0, 2.0),
}
TYPES = {"id": pa.int64(), "list": pa.list_(pa.string()), "numeric": pa.float64(), "quantile": pa.float64()}
TYPES |= {"age": pa.timestamp("us"), "embedding": pa.list_(pa.float32())}


@given(
    records=st.lists(st.fixed_dictionaries(VALUES), min_size=1, max_size=8),
    chosen=st.sets(st.sampled_from(sorted(SPECS)), min_size=1),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_record_encodes_to_the_row_of_its_table(records: list[dict[str, Any]], chosen: set[str]) -> None:
    specs = [SPECS[name] for name in sorted(chosen)]
    columns = {
        name: pa.array([record[name] for record in records], TYPES.get(name, pa.string())) for name in sorted(chosen)
    }
    batch = encode_table(specs, FITTED, pa.table(columns), as_of_us=AS_OF_US)
    for row, record in enumerate(records):
        single = encode_record(specs, FITTED, record, as_of_us=AS_OF_US)
        for name in chosen:
            np.testing.assert_array_equal(single[name][0], batch[name][row], err_msg=f"{name} of {record}")


def test_a_day_has_its_microseconds() -> None:
    assert US_PER_DAY == 24 * 60 * 60 * 1_000_000


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(max_size=20)), max_size=20))
def test_few_texts_and_many_have_the_same_words(texts: list[str | None]) -> None:
    few = pa.array(texts, pa.string())
    many = pa.concat_arrays([few, pa.nulls(300, pa.string())])
    assert words(few).to_pylist() == words(many).to_pylist()[: len(texts)]
