"""Forget lists in the forms in which people have them: a line is a user, or it is refused with its number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.errors import SchemaError
from pipelines.tables.erasure.forget_list import ForgetLine, ForgetList


def read(folder: Path, raw: bytes, *columns: str) -> ForgetList:
    (folder / "list.txt").write_bytes(raw)
    return ForgetList.read(folder / "list.txt", columns)


LINES = (ForgetLine(2, "12"), ForgetLine(4, "7"))
TEXT = "# asked in May\n12\n\n7\n"


WRITTEN = {
    "plain": TEXT.encode(),
    "marked": TEXT.encode("utf-8-sig"),
    "utf-16": TEXT.encode("utf-16"),
    "utf-32": TEXT.encode("utf-32"),
    "windows": TEXT.replace("\n", "\r\n").encode("utf-8-sig"),
    "returns": TEXT.replace("\n", "\r").encode(),
    "no last line end": TEXT.removesuffix("\n").encode(),
    "gzip": gzip.compress(TEXT.encode()),
    "quotes": b'"user"\n"12"\n \t\n"7"\n',
}


@pytest.mark.parametrize("raw", WRITTEN.values(), ids=WRITTEN)
def test_marks_line_ends_quotes_comments_and_compression_make_no_difference(tmp_path: Path, raw: bytes) -> None:
    assert read(tmp_path, raw, "user").lines == LINES


def test_a_header_is_the_name_of_an_id_column_and_only_on_the_first_line(tmp_path: Path) -> None:
    assert read(tmp_path, b"user\n5\n", "user").lines == (ForgetLine(2, "5"),)
    assert read(tmp_path, b"5\nuser\n", "user").lines == (ForgetLine(1, "5"), ForgetLine(2, "user"))
    with pytest.raises(SchemaError, match=r"list.txt, line 1: expected .*, got 'member'"):
        read(tmp_path, b"member\n5\n", "user").ids(pa.int64())


def test_integers_may_be_written_as_floats(tmp_path: Path) -> None:
    raw = b"5007.0\n-3\n 8 \n9.00\n9223372036854775807\n-9223372036854775808\n"
    expected = [5007, -3, 8, 9, 2**63 - 1, -(2**63)]
    assert read(tmp_path, raw).ids(pa.int64()).to_pylist() == expected


@pytest.mark.parametrize("line", ["abc", "5,7", "007", "+7", "5.5", "9223372036854775808", "0x10", "1e3", "5 7", "5,"])
def test_what_is_no_integer_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    with pytest.raises(SchemaError, match=r"list.txt, line 3: expected .*, got .* Nothing was written"):
        read(tmp_path, f"1\n\n{line}\n2\n".encode()).ids(pa.int64())


def test_a_string_id_is_the_line_as_it_is(tmp_path: Path) -> None:
    raw = "007\n x \na,b\n5007.0\nNA\né\u2028z\n".encode()
    assert read(tmp_path, raw).ids(pa.string()).to_pylist() == ["007", " x ", "a,b", "5007.0", "NA", "é\u2028z"]


@pytest.mark.parametrize("raw", [b"", b"\n \n# nobody\n", b"user\n", "\ufeff".encode()])
def test_a_list_that_names_nobody_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(SchemaError, match="expected user ids, one per line, found none"):
        read(tmp_path, raw, "user")


@pytest.mark.parametrize("raw", [b"\xff\x01\x02", "12\n".encode("utf-16-le"), b"\x1f\x8bnothing"])
def test_what_is_no_text_is_refused(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(SchemaError, match=r"cannot be read|zero bytes"):
        read(tmp_path, raw)
    with pytest.raises(SchemaError, match="cannot be read"):
        ForgetList.read(tmp_path / "none")


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_a_list_written_is_the_list_read(tmp_path_factory: pytest.TempPathFactory, ids: list[int]) -> None:
    raw = "\r\n".join(map(str, ids)).encode("utf-8-sig")
    assert read(tmp_path_factory.mktemp("list"), raw).ids(pa.int64()).to_pylist() == ids


def test_missing_lines_are_named_with_their_text() -> None:
    users = ForgetList.of(["a", "b", *map(str, range(9))])
    assert users.named([2]) == "line 2 'b'"
    assert users.named(range(1, 12)).endswith("line 5 '2' and 6 more")
