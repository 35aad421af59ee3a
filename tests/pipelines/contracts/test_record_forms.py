"""A record's value, in any form that its column's type allows, encodes to the same arrays as the row of a table."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from pipelines.contracts.conversion import convert
from pipelines.contracts.conversion.column_type import EMBEDDING, FLOAT64, INT64, LIST, STRING, TIMESTAMP, ColumnType
from pipelines.contracts.encoding import RecordEncoder, encode_record, encode_table
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.feature import FeatureKind
from pipelines.contracts.vocabulary import Fitted, FittedCodes, FittedNumbers, ValueTable

NOW_US = 1_760_000_000_000_000
LARGE = [2**63 - 1, -(2**63), 9_007_199_254_740_993, 1_234_567_890_123_456_789, 0, 7]
SECONDS = ColumnType(type="timestamp", unit="s", timezone="Europe/Berlin")
INT_LIST = ColumnType(type="list", of="int64")
DAY = datetime.datetime(2025, 1, 11, 12, 30, 15, tzinfo=datetime.UTC)


def feature(**keys: Any) -> FeatureKind:
    return TypeAdapter(Feature).validate_python({"name": "f", **keys})


def codes(values: list[Any]) -> FittedCodes:
    return FittedCodes(pa.array(values), np.arange(len(values)))


def forms_of_moment(moment: datetime.datetime) -> list[Any]:
    east = moment.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=30)))
    text = moment.isoformat().removesuffix("+00:00")
    return [
        moment,
        east,
        moment.isoformat(),
        east.isoformat(),
        text + "Z",
        text.replace("T", " ") + " UTC",
        text + "+0000",
    ]


# Kind, fitted entry, type, values, and the forms of a value.
CASES: dict[str, tuple[FeatureKind, Fitted | None, ColumnType, st.SearchStrategy[Any], Callable[[Any], list[Any]]]] = {
    "number": (
        feature(kind="numeric", scale="log"),
        FittedNumbers("log", 0.3, 1.7),
        FLOAT64,
        st.integers(-(10**6), 10**6),
        lambda value: [value, float(value), str(value), f" {value}.0 ", np.float64(value), f"{value}e0"],
    ),
    "declared integer": (
        feature(kind="numeric"),
        FittedNumbers("standard", 3.0, 2.0),
        INT64,
        st.integers(-(10**6), 10**6),
        lambda value: [value, float(value), str(value), f"{value}.0", np.int32(value)],
    ),
    "categorical integer": (
        feature(kind="categorical"),
        codes(LARGE),
        INT64,
        st.sampled_from([*LARGE, 5]),
        lambda value: [value, str(value), f"{value}.0"],
    ),
    "categorical text": (
        feature(kind="categorical"),
        codes(["7", "0", "true", "a"]),
        STRING,
        st.sampled_from([7, 0, 5]),
        lambda value: [value, str(value), float(value)],
    ),
    "moment": (feature(kind="time_since"), FittedNumbers("log", 1.0, 2.0), TIMESTAMP, st.just(DAY), forms_of_moment),
    "moment in seconds": (
        feature(kind="time_since"),
        FittedNumbers("log", 1.0, 2.0),
        SECONDS,
        st.just(DAY),
        lambda moment: [
            int(moment.timestamp()),
            str(int(moment.timestamp())),
            "2025-01-11 13:30:15",
            *forms_of_moment(moment),
        ],
    ),
    "list": (
        feature(kind="list", max_length=3),
        codes(["1", "2", "b"]),
        LIST,
        st.lists(st.sampled_from([1, 2, 3]), max_size=4),
        lambda values: [values, tuple(values), list(map(str, values)), np.array(values, np.int64), json.dumps(values)],
    ),
    "list of integers": (
        feature(kind="list", max_length=3),
        codes([1, 2**62]),
        INT_LIST,
        st.lists(st.sampled_from([1, 2**62, 3]), max_size=4),
        lambda values: [values, list(map(str, values)), json.dumps(values), "{" + ",".join(map(str, values)) + "}"],
    ),
    "embedding": (
        feature(kind="embedding", dim=2),
        None,
        EMBEDDING,
        st.lists(st.floats(1, 9, width=32), min_size=2, max_size=2),
        lambda values: [values, tuple(values), np.array(values, np.float32), np.array(values), json.dumps(values)],
    ),
}


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_record_in_any_form_encodes_to_the_row_of_its_table(case: str, data: st.DataObject) -> None:
    spec, entry, kind, values, forms = CASES[case]
    fitted = {} if entry is None else {"f": entry}
    encoder = RecordEncoder((spec,), fitted, {"f": kind})
    encoded = []
    for form in forms(data.draw(values)):
        column = convert(pa.array([form]), kind)
        assert not column.wrong[0]
        encoded.append(encode_table([spec], fitted, pa.table({"f": column.values}), as_of_us=NOW_US)["f"][0])
        encoded.append(encode_record([spec], fitted, {"f": form}, as_of_us=NOW_US, types={"f": kind})["f"][0])
        target = np.full((1, *spec.input_shape), 9, spec.input_dtype)
        encoder.writers[0](target, {"f": form}, NOW_US)
        encoded.append(target[0])
    for row in encoded[1:]:
        np.testing.assert_allclose(row, encoded[0], rtol=1e-6, atol=1e-6)
    if kind.type in ("timestamp", "float64", "int64") and spec.input_shape == (2,):
        assert encoded[0][1] == 1


@pytest.mark.parametrize(
    ("case", "value", "message"),
    [
        ("number", "many", "feature 'f': expected a finite number, got 'many'"),
        ("number", float("inf"), "feature 'f': expected a finite number, got inf"),
        ("declared integer", 2.5, "feature 'f': expected an integer from .* got 2.5"),
        ("categorical integer", "007", "feature 'f': expected an integer from .* got '007'"),
        ("categorical integer", 2**63, "feature 'f': expected an integer from .* got 9223372036854775808"),
        ("moment", 1_767_225_600, r'feature .f.: .*\[tables.TABLE.types\] f = \{ type = "timestamp", unit = "s" \}'),
        ("moment", "01/02/2026", "feature 'f': expected a time from 1990 to 2099"),
        ("list of integers", [2**63], "feature 'f': expected a list"),
        ("embedding", "[1, x]", "feature 'f': expected a list of numbers"),
    ],
)
def test_a_record_value_that_does_not_fit_is_refused_with_feature_value_and_type(
    case: str, value: Any, message: str
) -> None:
    spec, entry, kind, _, _ = CASES[case]
    fitted = {} if entry is None else {"f": entry}
    target = np.zeros((1, *spec.input_shape), spec.input_dtype)
    with pytest.raises(SchemaError, match=message):
        encode_record([spec], fitted, {"f": value}, as_of_us=NOW_US, types={"f": kind})
    with pytest.raises(SchemaError, match=message):
        RecordEncoder((spec,), fitted, {"f": kind}).writers[0](target, {"f": value}, NOW_US)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=40, unique=True))
def test_every_id_is_found_as_a_number_and_as_text(ids: list[int]) -> None:
    places = list(range(len(ids)))
    for values in (pa.array(ids), pa.array(list(map(str, ids)))):
        table = ValueTable(values)
        assert table.places(pa.array(ids)).tolist() == places
        assert table.places(pa.array(list(map(str, ids)))).tolist() == places
        assert [table.place(value) for value in ids] == [table.place(str(value)) for value in ids] == places
        assert table.places(pa.array([f"0{ids[0]}", "x", None])).tolist() == [-1, -1, -1]
        assert [table.place(value) for value in (f"0{abs(ids[0])}", [1], None, 0.5, 2**64)] == [-1] * 5
