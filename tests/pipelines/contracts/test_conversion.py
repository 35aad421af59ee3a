"""Laws of the one conversion: every type against a plain oracle, a value against its column, all forms of a column."""

from __future__ import annotations

import contextlib
import datetime
import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.conversion import convert, convert_value
from pipelines.contracts.conversion.column_type import (
    EMBEDDING,
    FLOAT64,
    INT64,
    LIST,
    MOMENT,
    STRING,
    TIMESTAMP,
    ColumnType,
)
from pipelines.contracts.errors import SchemaError
from tests.pipelines.contracts import conversion_oracle as oracle

BOOL = ColumnType(type="bool")
ZONES = [None, "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"]
EDGES = [0, 1, -1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 10**18, 10**19, 5007, 1_767_225_600]
INTEGERS = st.one_of(st.sampled_from(EDGES), st.integers(-(2**66), 2**66), st.integers(-1000, 1000))
MISSING = st.sampled_from(["", "NA", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "None", "\\N", "-nan", "<NA>", "nul"])
BLANKS = st.sampled_from(["", "", "", " ", "\t", "\n "])
SIGNS = st.sampled_from(["", "", "-", "+", "--"])
NUMBERS = st.builds(
    lambda sign, zeros, number, point, tail: f"{sign}{zeros}{number}{point}{tail}",
    SIGNS,
    st.sampled_from(["", "", "", "0", "00", "0x"]),
    st.one_of(INTEGERS.map(abs).map(str), st.just("")),
    st.sampled_from(["", "", ".", ",", "..", "e", "_"]),
    st.sampled_from(["", "", "0", "000", "5", "25", "e5", "E-3", "1e400"]),
)
TIMES = st.builds(
    lambda date, mark, clock, fraction, zone: f"{date}{mark}{clock}{fraction}{zone}",
    st.one_of(
        st.dates(datetime.date(1985, 1, 1), datetime.date(2105, 1, 1)).map(str),
        st.sampled_from(["2026-02-30", "2024-02-29", "01/02/2026", "20260201", "0000-01-01", "2026-1-01"]),
    ),
    st.sampled_from(["T", " ", "", "t", "  "]),
    st.one_of(
        st.times().map(lambda time: time.strftime("%H:%M:%S")),
        st.sampled_from(["", "12:30", "12", "24:00:00", "23:59:60", "1:30:00", "02:30", "02:15:00"]),
    ),
    st.sampled_from(["", "", "."]).flatmap(
        lambda point: st.text("0123456789", max_size=11).map(lambda text: point + text)
    ),
    st.sampled_from(
        ["", "", "Z", " UTC", "+00", "-05", "+0530", "+05:30", "+24:00", "+00:60", "z", " Z", "+5", "UTC", " +00"]
    )
    | st.sampled_from(
        [" -0500", " +05:30", " +0000 UTC", " +0100 CET", " +0100 cet", "+0100 CET", "  +01", " UTC +00"]
    ),
)
TEXTS = st.one_of(
    st.builds(lambda before, text, after: before + text + after, BLANKS, st.one_of(NUMBERS, TIMES, MISSING), BLANKS),
    st.sampled_from(["true", "FALSE", "t", "F", "Yes", "no", "y", "N", "1", "0", "1.0", "inf", "-Infinity", "nan(1)"]),
    st.text("0123456789.-+eE", max_size=6),
    st.text("é abc,\u0663", max_size=4),
)


def check(column: pa.Array | pa.ChunkedArray, kind: ColumnType, expected: list[Any], **options: Any) -> None:
    """The column converts to these cells, each a value, missing (None) or wrong."""
    done = convert(column, kind, **options)
    assert done.values.type == kind.arrow
    values = done.values.cast(pa.int64()) if kind.type == "timestamp" else done.values
    got = [oracle.WRONG if wrong else value for wrong, value in zip(done.wrong, values.to_pylist(), strict=True)]
    assert got == expected, [pair for pair in zip(column.to_pylist(), got, expected, strict=True) if pair[1] != pair[2]]
    assert done.null.tolist() == [cell is None for cell in expected]
    assert not (done.out_of_range & ~done.wrong).any()


@settings(max_examples=400, deadline=None)
@given(st.lists(st.one_of(st.none(), TEXTS), max_size=8), st.sampled_from([".", ","]))
def test_text_converts_to_numbers_as_the_rules_say(cells: list[str | None], decimal: str) -> None:
    column = pa.array(cells, pa.string())
    check(column, INT64, [oracle.int64(cell, decimal) for cell in cells], decimal=decimal)
    check(column, FLOAT64, [oracle.float64(cell, decimal) for cell in cells], decimal=decimal)
    check(column, BOOL, [oracle.boolean(cell) for cell in cells], decimal=decimal)
    check(column, STRING, cells, decimal=decimal)


@settings(max_examples=600, deadline=None)
@given(
    st.lists(st.one_of(st.none(), TIMES, TEXTS), max_size=6),
    st.sampled_from([None, "s", "ms", "us", "ns"]),
    st.sampled_from(ZONES),
)
def test_text_converts_to_moments_as_the_rules_say(cells: list[str | None], unit: Any, zone: str | None) -> None:
    kind = ColumnType(type="timestamp", unit=unit, timezone=zone)
    check(pa.array(cells, pa.string()), kind, [oracle.timestamp(cell, unit, zone) for cell in cells])


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S.%f"])
@pytest.mark.parametrize("zone", ["", "Z", " UTC", "+00", "+0530", "-03:30", " -0330", " +0000 UTC"])
@settings(max_examples=20, deadline=None)
@given(
    moments=st.lists(st.datetimes(datetime.datetime(1989, 6, 1), datetime.datetime(2100, 6, 1)), min_size=1, max_size=5)
)
def test_each_form_of_text_is_read_where_a_whole_column_has_it(form: str, zone: str, moments: list[Any]) -> None:
    cells = [moment.strftime(form) + zone for moment in moments]
    check(pa.array(cells), TIMESTAMP, [oracle.timestamp(cell) for cell in cells])


WIDTHS = [
    pa.int8(),
    pa.int16(),
    pa.int32(),
    pa.int64(),
    pa.uint8(),
    pa.uint32(),
    pa.uint64(),
    pa.float32(),
    pa.float64(),
]


@pytest.mark.parametrize("width", WIDTHS, ids=str)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_numbers_of_any_width_convert_as_the_rules_say(width: pa.DataType, data: st.DataObject) -> None:
    if pa.types.is_integer(width):
        info = np.iinfo(width.to_pandas_dtype())
        numbers: Any = st.one_of(st.integers(int(info.min), int(info.max)), st.sampled_from([0, 1]))
    else:
        bits = width.bit_width
        numbers = st.one_of(st.floats(width=bits), st.integers(-(2**54), 2**54).map(lambda n: float(np.float32(n / 4))))
    cells = pa.array(data.draw(st.lists(st.one_of(st.none(), numbers), max_size=6)), width)
    plain = cells.to_pylist()
    check(cells, INT64, [oracle.int64(cell) for cell in plain])
    check(cells, FLOAT64, [oracle.float64(cell) for cell in plain])
    check(cells, BOOL, [oracle.boolean(cell) for cell in plain])
    for unit in ("s", "ns"):
        check(cells, ColumnType(type="timestamp", unit=unit), [oracle.timestamp(cell, unit) for cell in plain])
    whole = [cell for cell in plain if cell is None or cell != cell or (abs(cell) <= 2**53 and cell == int(cell))]
    check(pa.array(whole, width), STRING, [oracle.string(cell) for cell in whole])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.decimals(-(10**20), 10**20, places=4), min_size=1, max_size=5))
def test_decimals_convert_as_the_rules_say(cells: list[Decimal]) -> None:
    column = pa.array(cells, pa.decimal128(30, 4))
    check(column, INT64, [oracle.int64(cell) for cell in cells])
    check(column, FLOAT64, [oracle.float64(cell) for cell in cells])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.datetimes(datetime.datetime(1980, 1, 1), datetime.datetime(2110, 1, 1)), max_size=5),
    st.sampled_from(ZONES),
)
def test_timestamps_and_dates_convert_as_the_rules_say(cells: list[datetime.datetime], zone: str | None) -> None:
    kind = ColumnType(type="timestamp", timezone=zone)
    check(pa.array(cells, pa.timestamp("us")), kind, [oracle.timestamp(cell, zone=zone) for cell in cells])
    aware = [cell.replace(tzinfo=datetime.UTC) for cell in cells]
    for unit in ("us", "ns"):
        check(pa.array(aware, pa.timestamp(unit, "Asia/Tokyo")), kind, [oracle.timestamp(cell) for cell in aware])
    seconds = [cell.replace(microsecond=0) for cell in cells]
    check(pa.array(seconds, pa.timestamp("s")), kind, [oracle.timestamp(cell, zone=zone) for cell in seconds])
    dates = [cell.date() for cell in cells]
    for width in (pa.date32(), pa.date64()):
        check(pa.array(dates, width), kind, [oracle.timestamp(cell, zone=zone) for cell in dates])


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(10**11, 5 * 10**15 - 1), min_size=1, max_size=5),
    st.sampled_from([("s", 6), ("ms", 3), ("us", 1), ("ns", 2)]),
)
def test_numbers_of_a_unit_may_have_fractions_in_every_form(digits: list[int], of_unit: tuple[Any, int]) -> None:
    unit, places = of_unit
    kind = ColumnType(type="timestamp", unit=unit)
    cells = [Decimal(number).scaleb(-places) for number in digits]
    expected = [oracle.timestamp(cell, unit) for cell in cells]
    check(pa.array(cells, pa.decimal128(30, places)), kind, expected)
    check(pa.array([f"{cell:f}" for cell in cells]), kind, expected)
    check(pa.array([f"{cell:f}".replace(".", ",") for cell in cells]), kind, expected, decimal=",")
    check(pa.array([float(cell) for cell in cells]), kind, expected)


def test_nanoseconds_are_rounded_down() -> None:
    cells = pa.array([1_767_225_600_000_001_999, 631_152_000_000_000_000, 631_151_999_999_999_999])
    check(cells.cast(pa.timestamp("ns")), TIMESTAMP, [1_767_225_600_000_001, 631_152_000_000_000, oracle.WRONG])


KINDS = [
    STRING,
    INT64,
    FLOAT64,
    BOOL,
    TIMESTAMP,
    ColumnType(type="timestamp", unit="s", timezone="Europe/Berlin"),
    LIST,
]
LISTS = st.one_of(
    st.lists(st.one_of(st.none(), st.text("ab \"',[]{}\\|é\n", max_size=4)), max_size=4).map(json.dumps),
    st.lists(st.sampled_from(["a", "b c", "d"]), max_size=3).map(lambda items: "{" + ",".join(items) + "}"),
    st.lists(st.text("ab \"',[", max_size=4), max_size=4).map(repr),
    st.text("[]{}()\"',ab \\", max_size=8),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.none(), TEXTS, LISTS), max_size=6), st.sampled_from(KINDS), st.integers(0, 6))
def test_all_forms_of_a_text_column_convert_alike(cells: list[str | None], kind: ColumnType, cut: int) -> None:
    plain = pa.array(cells, pa.string())
    expected = convert(plain, kind)
    padded = pa.concat_arrays([pa.array(["x", None]), plain, pa.array(["y"])]).slice(2, len(plain))
    forms: list[Any] = [plain.cast(pa.large_string()), plain.cast(pa.string_view()), plain.dictionary_encode(), padded]
    forms += [pa.chunked_array([plain[:cut], plain[cut:]], pa.string()), plain.cast(pa.binary())]
    for form in forms:
        done = convert(form, kind)
        assert done.values.equals(expected.values)
        for mask in ("null", "wrong", "out_of_range"):
            np.testing.assert_array_equal(getattr(done, mask), getattr(expected, mask))


ANYTHING = st.one_of(
    st.none(),
    TEXTS,
    LISTS,
    INTEGERS,
    st.floats(),
    st.booleans(),
    st.datetimes(datetime.datetime(1980, 1, 1)),
    st.dates(),
    st.decimals(allow_nan=False, allow_infinity=False, places=2, min_value=-1000, max_value=1000),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=3),
    st.lists(st.floats(width=32), max_size=3),
    st.just({}),
    st.just(object()),
)


@settings(max_examples=500, deadline=None)
@given(ANYTHING, st.sampled_from([*KINDS, EMBEDDING]))
def test_one_value_converts_as_its_column(value: Any, kind: ColumnType) -> None:
    got = oracle.WRONG
    with contextlib.suppress(SchemaError):
        got = convert_value(value, kind, "--user")
    try:
        column = pa.array([value])
    except (pa.ArrowException, OverflowError):
        return  # An integer beyond 64 bits, an object.
    done = convert(column, kind)
    values = done.values.cast(pa.int64()) if kind.type == "timestamp" else done.values
    expected = oracle.WRONG if done.wrong[0] else values[0].as_py()
    assert repr(got) == repr(expected)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\x1f"), max_size=4)), max_size=5
    )
)
def test_a_list_reads_the_same_from_json_and_as_a_list(items: list[str | None]) -> None:
    expected = [items]
    check(pa.array([items], LIST.arrow), LIST, expected)
    check(pa.array([json.dumps(items)]), LIST, expected)
    check(pa.array([json.dumps(items, ensure_ascii=False, separators=(",", ":"))]), LIST, expected)
    if None not in items:
        bare = [item for item in items if item is not None and item == item.strip()]
        simple = [
            item
            for item in bare
            if item and not set(item) & set("\"'[](){},\\\n\r") and item not in ("null", "NULL", "None")
        ]
        for text in (
            "[" + ", ".join(simple) + "]",
            "{" + ",".join(simple) + "}",
            repr(simple) if simple == [s for s in simple if s.isprintable()] else "[]",
        ):
            if text != "[]" or not simple:
                check(pa.array([text]), LIST, [simple])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5), st.sampled_from(["|", ";", "::", " "]))
def test_a_list_of_integers_reads_the_same_from_every_form(items: list[int], separator: str) -> None:
    kind = ColumnType(type="list", of="int64", separator=separator)
    check(pa.array([separator.join(map(str, items))]), kind, [items])
    check(pa.array([items]), kind, [items])
    for text in (json.dumps(items), repr(items), "{" + ",".join(map(str, items)) + "}"):
        check(pa.array([text]), ColumnType(type="list", of="int64"), [items])


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=4))
def test_an_embedding_reads_the_same_from_every_form(vector: list[float]) -> None:
    for cell in (json.dumps(vector), repr(tuple(vector)), "{" + ",".join(map(repr, vector)) + "}"):
        check(pa.array([cell]), EMBEDDING, [vector])
    check(pa.array([str(np.array(vector).tolist()).replace(",", "")]), EMBEDDING, [vector])
    check(pa.array([" ".join(map(repr, vector))]), ColumnType(type="embedding", separator=" "), [vector])
    for width in (pa.list_(pa.float64()), pa.large_list(pa.float32()), pa.list_(pa.float64(), len(vector))):
        check(pa.array([vector, None], width), EMBEDDING, [vector, None])


@pytest.mark.parametrize(
    ("value", "kind", "message"),
    [
        ("007", INT64, r"--user: expected an integer .*leading zeros needs the type string\), got '007'"),
        (2**63, INT64, "got 9223372036854775808"),
        (1_767_225_600, TIMESTAMP, r'COLUMN = \{ type = "timestamp", unit = "s" \}\), got 1767225600'),
        ("1985-05-05", TIMESTAMP, "expected a time from 1990 to 2099"),
        ("a|b", LIST, r'separator = "|" \}\), got'),
        (float("inf"), FLOAT64, "expected a finite number, got inf"),
        ("maybe", BOOL, "expected true or false"),
        ([1], STRING, "expected a text, integer or boolean"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_what_was_expected(
    value: Any, kind: ColumnType, message: str
) -> None:
    with pytest.raises(SchemaError, match=message):
        convert_value(value, kind, "--user")


def test_an_integer_of_thousands_of_digits_is_refused() -> None:
    with pytest.raises(SchemaError, match="got a value of type int, too long to show"):
        convert_value(10**5000, FLOAT64, "--user")


def test_a_hostile_array_in_text_takes_no_time() -> None:
    cells = [
        "[" * 50_000 + "]" * 50_000,
        "[" + " " * 50_000 + "(",
        '["' + "\\" * 50_001,
        "[" + "a," * 50_000 + '"]',
        '["\\ud800"]',
    ]
    check(pa.array(cells), LIST, [oracle.WRONG] * 5)


def test_stored_moments_are_returned_as_they_are() -> None:
    column = pa.array([1_767_225_600_000_000, None]).cast(MOMENT)
    assert convert(column, TIMESTAMP).values.equals(column)
