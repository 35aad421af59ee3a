"""Laws of comparisons in rules, for columns of every type: ``in`` means ``==``, and numbers compare as they are."""

from __future__ import annotations

import datetime
import decimal
import operator
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index.rules.attributes import Attributes
from index.rules.where import mask_of
from pipelines.contracts.errors import SchemaError

INTEGERS = {f"{sign}int{bits}": (bits, bool(sign)) for sign in ("", "u") for bits in (8, 16, 32, 64)}
FLOATS = {"float16": "e", "float32": "f", "float64": "d"}
HUGE = [0, 2**24 + 1, 2**53 + 1, 2**63, 2**64 - 1, 2**64, 10**400]
SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
CONSTANTS = (
    st.integers(-300, 300)
    | st.sampled_from([sign * huge for huge in HUGE for sign in (1, -1)])
    | st.floats(allow_nan=False)
    | st.sampled_from([0.1, 9.99, 0.5, -2.5, 2.0**53, 2.0**63, 65520.0, 3.5e38])
)


def written(constant: Any) -> str:
    return {np.inf: "1e999", -np.inf: "-1e999"}.get(constant, repr(constant))


def limits(name: str) -> tuple[int, int]:
    bits, unsigned = INTEGERS[name]
    return (0, 2**bits - 1) if unsigned else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def as_stored(name: str, number: float) -> float:
    """The number in the precision of a column of floats, by the standard library; beyond its range infinity."""
    try:
        return float(struct.unpack(FLOATS[name], struct.pack(FLOATS[name], float(number)))[0])
    except OverflowError:
        return np.inf if number > 0 else -np.inf


@st.composite
def numbers(draw: st.DrawFn) -> tuple[str, list[Any], list[Any]]:
    """A type, values of it with missing ones, and constants, some of which are values."""
    name = draw(st.sampled_from([*INTEGERS, *FLOATS]))
    if name in FLOATS:
        cells = CONSTANTS.map(lambda number: as_stored(name, number))
    else:
        cells = st.integers(*limits(name)) | st.sampled_from(limits(name))
    values = draw(st.lists(cells | st.none(), min_size=1, max_size=12))
    known = [value for value in values if value is not None]
    constants = CONSTANTS | st.sampled_from(known) if known else CONSTANTS
    return name, values, draw(st.lists(constants, min_size=1, max_size=20))


@settings(max_examples=300, deadline=None)
@given(numbers())
def test_numbers_compare_in_the_precision_of_their_column(drawn: tuple[str, list[Any], list[Any]]) -> None:
    """Integers exactly, as Python compares them with any number; floats with the constant as it would be stored."""
    name, values, constants = drawn
    cells = [value if value is None else np.dtype(name).type(value) for value in values]
    attributes = Attributes(pa.table({"x": pa.array(cells, pa.from_numpy_dtype(name))}))
    for constant in constants:
        compared = as_stored(name, constant) if name in FLOATS else constant
        for sign, holds in SIGNS.items():
            expected = [value is not None and holds(value, compared) for value in values]
            assert mask_of(f"x {sign} {written(constant)}", attributes).tolist() == expected
            assert mask_of(f"not (not x {sign} {written(constant)})", attributes).tolist() == expected


COLUMNS: dict[str, tuple[pa.DataType, list[Any], list[str]]] = {
    "decimal": (
        pa.decimal128(20, 2),
        [decimal.Decimal(text) for text in ("0.10", "9.99", "123456789012345.67", "-3.00")],
        ["0.1", "9.99", "123456789012345.67", "-3", "7"],
    ),
    "truth": (pa.bool_(), [True, False], ["True", "False"]),
    "text": (pa.string(), ["a", "", "NA"], ["'a'", "''", "'NA'", "'none of them'"]),
    "large text": (pa.large_string(), ["a", "b"], ["'a'", "'c'"]),
    "text view": (pa.string_view(), ["a", "b"], ["'a'", "'c'"]),
    "codes": (pa.dictionary(pa.int8(), pa.string()), ["a", "b"], ["'a'", "'c'"]),
    "date": (pa.date32(), [datetime.date(2026, 2, day) for day in (1, 2)], ["'2026-02-01'", "'2026-02-03'"]),
    "time": (
        pa.timestamp("ns", "UTC"),
        [datetime.datetime(2026, 2, 1, hour, tzinfo=datetime.UTC) for hour in (0, 5)],
        ["'2026-02-01'", "'2026-02-01T05:00:00Z'", "'2026-02-01 06:00+01:00'"],
    ),
    **{name: (pa.type_for_alias(name), list(limits(name)), ["0", *map(str, limits(name))]) for name in INTEGERS},
    **{name: (pa.from_numpy_dtype(name), [0.5, 3.0], ["0.5", "0.1", "1e999"]) for name in FLOATS},
}


def passing(where: str, column: pa.Array) -> list[bool]:
    passes: list[bool] = mask_of(where, Attributes(pa.table({"x": column}))).tolist()
    return passes


@settings(max_examples=60, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", COLUMNS)
def test_in_means_equal_to_one_of_them(name: str, data: st.DataObject) -> None:
    kind, cells, constants = COLUMNS[name]
    values = data.draw(st.lists(st.sampled_from([*cells, None]), min_size=1, max_size=8))
    column = pa.array(
        [value if value is None or name not in FLOATS else np.dtype(name).type(value) for value in values], kind
    )
    listed = data.draw(st.lists(st.sampled_from(constants), min_size=1, max_size=30))
    inside = f"x in ({', '.join(listed)},)"
    assert passing(inside, column) == passing(" or ".join(f"x == {one}" for one in listed), column)
    outside = f"x not in ({', '.join(listed)},)"
    assert passing(outside, column) == passing(" and ".join(f"x != {one}" for one in listed), column)
    assert passing(f"not {inside}", column) == passing(outside, column)
    known = [value is not None for value in values]
    assert [a or b for a, b in zip(passing(inside, column), passing(outside, column), strict=True)] == known


@pytest.mark.parametrize("name", COLUMNS)
def test_an_element_of_a_list_equals_as_a_value_does(name: str) -> None:
    kind, cells, constants = COLUMNS[name]
    if pa.types.is_dictionary(kind) or pa.types.is_string_view(kind):
        return
    single = pa.array([np.dtype(name).type(cell) if name in FLOATS else cell for cell in cells], kind)
    lists = pa.ListArray.from_arrays(np.arange(len(cells) + 1, dtype=np.int32), single)
    for constant in constants:
        assert passing(f"{constant} in x", lists) == passing(f"x == {constant}", single)
        assert passing(f"x in ({constant},)", lists) == passing(f"x in ({constant},)", single)
        assert passing(f"x not in ({constant},)", lists) == passing(f"x != {constant}", single)


WORDS = ("x", "b", "1", "-", "+", "(", ")", "[", "]", "not ", ".a", ",", " in ", " and ", " == ", "0x" + "f" * 500)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([1, 2, 70, 400, 2500])), min_size=1, max_size=5))
def test_an_expression_of_any_depth_is_answered_or_refused(parts: list[tuple[str, int]]) -> None:
    where = "".join(word * count for word, count in parts)
    said = ""
    try:
        assert mask_of(where, Attributes(pa.table({"x": [1, 2], "b": [True, False]}))).shape == (2,)
    except SchemaError as err:
        said = str(err)
    assert len(said) < 500


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("x" + ".a" * 2000, r"'x\.a\.a.* is neither a comparison"),
        ("x == 1" + ".a" * 2000, "cannot be read|is not a constant"),
        ("x in [" + "[" * 90 + "]" * 90 + "]", r"is not a constant: expected a number"),
        (f"s == {'0x' + 'f' * 5000}", "'s' is text; it cannot be compared with inf"),
        (f"x == {'9' * 5000}", "cannot be read.*Exceeds the limit"),
    ],
)
def test_what_is_too_deep_or_too_long_is_refused_in_words(where: str, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        mask_of(where, Attributes(pa.table({"x": [1], "s": ["a"]})))
