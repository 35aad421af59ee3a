"""JSONL: a value comes to the same whatever its neighbours, its block and the way it is parsed are."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.conversion import convert, convert_value
from pipelines.contracts.conversion.column_type import ColumnType
from pipelines.contracts.errors import SchemaError
from pipelines.tables.formats.batches import TableBatch
from pipelines.tables.formats.jsonl_file import read_jsonl, read_keys
from pipelines.tables.formats.spans import SpanSource, line_spans

KINDS = {
    name: ColumnType.model_validate({"type": name, **({"unit": "s"} if name == "timestamp" else {})})
    for name in ("string", "int64", "float64", "bool", "timestamp", "list", "embedding")
}
WRONG = "wrong"

simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.sampled_from([2**53 + 1, 2**63 - 1, -(2**63), 2**63, 10**30, 1_750_000_000, 5.0, 0.1, -0.0, 1.5, 1e22, 1e300]),
    st.sampled_from(["", "NA", "5", "true", "5.0", "x", "2026-02-01 12:30", "null", '["a"]', "[0.5, 1]", "ä", "007"]),
)
values = st.one_of(simple, simple, st.lists(simple, max_size=3), st.just({"a": 1}), st.just([[1]]))


def plain(value: Any) -> Any:
    """A value such that equal ones are equal: NaN too."""
    if isinstance(value, list):
        return [plain(one) for one in value]
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def alone(value: Any, kind: ColumnType) -> Any:
    """What one value comes to as that of a request."""
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(one, dict | list) for one in value)):
        return WRONG
    try:
        return plain(convert_value(value, kind, "value"))
    except SchemaError:
        return WRONG


def found(batches: list[TableBatch], name: str, kind: ColumnType) -> dict[int, Any]:
    """Each row's value after conversion."""
    results: dict[int, Any] = {}
    for batch in batches:
        results |= {line.row: WRONG for line in batch.malformed}
        done = convert(batch.table[name], kind)
        column = done.values.cast("int64") if kind.type == "timestamp" else done.values
        rows = batch.rows_of(np.arange(batch.table.num_rows)).tolist()
        for row, value, wrong in zip(rows, column.to_pylist(), done.wrong.tolist(), strict=True):
            results[row] = WRONG if wrong else plain(value)
    return results


def read(content: bytes, kinds: dict[str, ColumnType], size: int = 1 << 20) -> list[TableBatch]:
    return list(read_jsonl(io.BytesIO(content), "file", kinds, ".", block_bytes=size))


@settings(max_examples=250, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    column=st.one_of(
        st.lists(values, min_size=1, max_size=8),
        st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1, max_size=8),
        st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=8),
        st.lists(st.lists(st.integers(-(2**60), 2**60), max_size=3), min_size=1, max_size=8),
        st.lists(st.lists(st.one_of(st.none(), st.integers(0, 9), st.just(0.5)), max_size=3), min_size=1, max_size=8),
        st.lists(st.one_of(st.none(), st.text(max_size=5)), min_size=1, max_size=8),
    ),
    size=st.integers(1, 200),
)
def test_a_value_does_not_depend_on_its_neighbours(name: str, column: list[Any], size: int) -> None:
    kind = KINDS[name]
    lines = [json.dumps({"z": 1, "c": value} if place % 3 else {"c": value}) for place, value in enumerate(column)]
    content = "\n".join(lines).encode()
    size += max(len(line) for line in lines) + 2
    expected = {row: found(read(lines[row].encode(), {"c": kind}), "c", kind)[0] for row in range(len(column))}
    assert found(read(content, {"c": kind}, size), "c", kind) == expected
    handle = io.BytesIO(content)
    batches = [
        batch
        for span in line_spans(handle, 0, len(content), size)
        for batch in read_jsonl(SpanSource(handle, span), "file", {"c": kind}, ".", first_row=span.first_row)
    ]
    assert found(batches, "c", kind) == expected


@settings(max_examples=250, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), value=values.filter(lambda value: not is_mixed(value)))
def test_a_value_of_a_line_comes_to_what_it_comes_to_in_a_request(name: str, value: Any) -> None:
    kind = KINDS[name]
    line = json.dumps({"c": value}).encode()
    assert found(read(line, {"c": kind}), "c", kind)[0] == alone(value, kind)


def is_mixed(value: Any) -> bool:
    """Lists that a request cannot carry as one Arrow value: of nothing, of several types, or beyond 64 bits."""
    if not isinstance(value, list) or not value:
        return False
    known = [one for one in value if one is not None]
    beyond = any(type(one) is int and not -(2**63) <= one < 2**63 for one in known)
    return beyond or len({type(one) for one in known}) != 1


LINES = {
    b'{"c": 1}': 1,
    b'{"c": "1"}': 1,
    b'{"c": 9223372036854775807, "z": 01}': None,
    b'{"c": 1} {"c": 2}': None,
    b'{"c": 1, "c": 2}': None,
    b'{"c": 1, "z": 2, "z": 3}': 1,
    b"[1]": None,
    b"5": None,
    b"null": None,
    b"{": None,
    b'{"c": 1,}': None,
    b'{"c": 1}x': None,
    b'{"z": "\xff"}': "missing",
    b'{"c": "\xff"}': None,
    b'{"c": "\\ud800"}': None,
    b"   ": None,
    b' {"c": 1} ': 1,
    b'{"\\u0063": 1}': 1,
    b'{"z": 1e999, "c": 1}': 1,
    b'{"z": ' + b"9" * 5_000 + b', "c": 1}': 1,
    b'{"c": 1}\x00': None,
}


@settings(max_examples=300, deadline=None)
@given(lines=st.lists(st.sampled_from(sorted(LINES)), min_size=1, max_size=6), end=st.sampled_from([b"\n", b"\r\n"]))
def test_each_bad_line_is_one_reject_with_its_row(lines: list[bytes], end: bytes) -> None:
    expected = {row: LINES[line] for row, line in enumerate(lines)}
    results = found(read(end.join(lines) + end + end, {"c": KINDS["int64"]}), "c", KINDS["int64"])
    assert {
        row: None if value == WRONG else "missing" if value is None else value for row, value in results.items()
    } == expected


def test_a_reject_says_what_was_expected() -> None:
    (batch,) = read(
        b'{"c": 1}\n[1]\n{"c": {"a": 1}, "d": "x"}\n{"c": 1, "c": 2}\n', {"c": KINDS["string"], "d": KINDS["string"]}
    )
    assert [(line.row, line.reason, line.expected, line.record) for line in batch.malformed] == [
        (1, "malformed:line", "one JSON object", '"[1]"'),
        (2, "type:c", "a text, integer or boolean", '{"c": {"a": 1}, "d": "x"}'),
        (3, "malformed:line", "each key once, found 'c' several times", '"{\\"c\\": 1, \\"c\\": 2}"'),
    ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_end_as_anywhere(end: bytes) -> None:
    batches = read(end.join([b'{"c": 1}', b"", b'{"c": 2}']), {"c": KINDS["int64"]}, 12)
    assert found(batches, "c", KINDS["int64"]) == {0: 1, 1: 2}


def test_keys_are_those_of_the_first_lines_and_those_asked_for() -> None:
    content = b'{"a": 1}\n{"b": 1}\n' + b'{"a": 1, "b": 2}\n' * 400_000 + b'{"late": 1}\n'
    assert read_keys(io.BytesIO(content)) == ("a", "b")
    assert read_keys(io.BytesIO(content), ["late", "never"]) == ("a", "b", "late")
