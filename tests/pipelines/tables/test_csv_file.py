"""CSV: any cutting into blocks and spans gives the rows, malformed lines and row numbers of one state machine."""

from __future__ import annotations

import io
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.tables.formats.batches import MultiLine, TableBatch
from pipelines.tables.formats.blocks import quotes
from pipelines.tables.formats.csv_file import MALFORMED, read_csv, read_header
from pipelines.tables.formats.spans import SpanSource, csv_spans, records

PIECES = ["a", "bc", ",", ",", '"', '""', "\n", "\n", "\r\n", "\r", " ", "ä", "0"]


@dataclass
class Parsed:
    """What a CSV body holds: rows by number, and the numbers of lines that are none."""

    rows: dict[int, list[str | None]] = field(default_factory=dict)
    bad: list[int] = field(default_factory=list)
    longest: int = 1


def parsed(text: str, cells: int) -> Parsed:
    """A state machine, character by character: a quote opens at the beginning of a cell only."""
    found, number, place = Parsed(), 0, 0
    while place < len(text):
        start = place
        row: list[str | None] = []
        cell, quoted, inside, at_start = "", False, False, True
        while True:
            if place >= len(text):
                break
            sign = text[place]
            if inside:
                if sign == '"' and text[place + 1 : place + 2] == '"':
                    cell, place = cell + '"', place + 2
                elif sign == '"':
                    inside, place = False, place + 1
                else:
                    cell, place = cell + sign, place + 1
            elif sign == '"' and at_start:
                inside, quoted, at_start, place = True, True, False, place + 1
            elif sign == ",":
                row.append(cell if cell or quoted else None)
                cell, quoted, at_start, place = "", False, True, place + 1
            elif sign in "\r\n":
                place += 2 if text[place : place + 2] == "\r\n" else 1
                break
            else:
                cell, at_start, place = cell + sign, False, place + 1
        found.longest = max(found.longest, len(text[start:place].encode()))
        if inside:
            lines = len(text[start:].encode().splitlines())
            found.bad += range(number, number + lines)
            return found
        if not row and not cell and not quoted:
            continue
        row.append(cell if cell or quoted else None)
        if len(row) == cells:
            found.rows[number] = row
        else:
            found.bad.append(number)
        number += 1
    return found


def joined(batches: list[TableBatch]) -> Parsed:
    found, number = Parsed(), None
    for batch in batches:
        assert number is None or batch.first_row == number
        number = batch.first_row + batch.rows
        cells = [list(row.values()) for row in batch.table.to_pylist()]
        places = batch.rows_of(np.arange(len(cells)))
        found.rows |= dict(zip(places.tolist(), cells, strict=True))
        found.bad += [line.row for line in batch.malformed]
    return found


@settings(max_examples=1_000, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=60), cells=st.integers(1, 3), extra=st.integers(2, 40))
def test_blocks_and_spans_give_what_a_state_machine_gives(pieces: list[str], cells: int, extra: int) -> None:
    names = ["x", "y", "z"][:cells]
    body = "".join(pieces).lstrip("\r\n")
    expected = parsed(body, cells)
    content = (",".join(names) + "\n" + body).encode()
    size = max(expected.longest, len(names) * 2) + extra
    found = joined(list(read_csv(io.BytesIO(content), "file", ",", names, block_bytes=size)))
    assert (found.rows, found.bad) == (expected.rows, expected.bad)
    header = read_header(io.BytesIO(content), ",")
    handle = io.BytesIO(content)
    spans = csv_spans(handle, header.end, len(content), b",", size)
    assert [span.end for span in spans[:-1]] == [span.start for span in spans[1:]]
    batches = [
        batch
        for span in spans
        for batch in read_csv(
            SpanSource(handle, span), "file", ",", names, header=header, first_row=span.first_row, block_bytes=size
        )
    ]
    found = joined(batches)
    assert (found.rows, found.bad) == (expected.rows, expected.bad)


@settings(max_examples=500, deadline=None)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=60))
def test_records_are_counted_without_parsing(pieces: list[str]) -> None:
    body = "".join(pieces)
    toggles = quotes(body.encode(), b",")
    expected = parsed(body, 1)
    if len(toggles) % 2 == 0:
        assert records(body.encode(), toggles) == len(expected.rows) + len(expected.bad)


def read(content: bytes, columns: list[str]) -> TableBatch:
    (batch,) = read_csv(io.BytesIO(content), "file", ",", columns)
    return batch


def test_only_an_empty_cell_without_quotes_is_missing() -> None:
    batch = read(b'a,b\nNA,\n"","NA"\nnull,"x"\n', ["a", "b"])
    assert batch.table.to_pydict() == {"a": ["NA", "", "null"], "b": [None, "NA", "x"]}


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("line", [b"1", b"1,2,3"])
def test_a_ragged_line_is_one_reject_wherever_it_is(line: bytes, place: int) -> None:
    lines = [b"5,6", b"7,8"]
    lines.insert(place, line)
    batch = read(b"a,b\n" + b"\n".join(lines), ["b"])
    assert batch.table.to_pydict() == {"b": ["6", "8"]}
    assert [(one.row, one.reason) for one in batch.malformed] == [(place, "malformed:line")]
    assert batch.malformed[0].expected == f"2 cells as in the header, found {1 + line.count(b',')}"


def test_bytes_that_are_no_text_reject_their_row_in_the_columns_read() -> None:
    content = b"a,b\n1,x\n2,\xff\n\xe4,y\n3\xff\n4,z\n"
    batch = read(content, ["b"])
    assert batch.table.to_pydict() == {"b": ["x", "y", "z"]}
    assert [(one.row, one.reason) for one in batch.malformed] == [(1, "type:b"), (3, "malformed:line")]
    assert batch.malformed[0].value == "\\xff"
    assert batch.rows_of(np.arange(3)).tolist() == [0, 2, 4]


def test_cells_over_several_lines_are_counted_also_in_columns_that_are_not_read() -> None:
    content = b'a,b\n1,"x\ny"\n2,z\n3,"p\nq\nr"\n4\n5,"s\n6,t"\n7,"u\n8'
    batch = read(content, ["a"])
    assert batch.table.to_pydict() == {"a": ["1", "2", "3", "5"]}
    assert batch.multi_line == {"b": MultiLine(cells=3, lines=3, row=2)}
    assert [one.row for one in batch.malformed] == [3, 5, 6]
    ragged = read(b'a,b\n1,"x\n2,y\n3","z",4\n', ["a"])
    assert ragged.multi_line == {MALFORMED: MultiLine(cells=1, lines=3, row=0)}


def test_a_quote_that_is_never_closed_rejects_each_line_that_it_swallows() -> None:
    batch = read(b'a,b\n1,2\n3,"4\n5,6\n7,8\n', ["a"])
    assert batch.table.to_pydict() == {"a": ["1"]}
    assert [(one.row, one.record) for one in batch.malformed] == [(1, '"3,\\"4"'), (2, '"5,6"'), (3, '"7,8"')]


def test_names_in_the_header_are_quoted_blank_or_repeated() -> None:
    header = read_header(io.BytesIO(b'\n a ,"b c", "d,a\xff,"e\nf",,a,a\n1\n'), ",")
    assert header.names == ("a", "b c", '"d', "a\\xff", "e\nf", "", "a", "a")
    assert header.usable == ("b c", '"d', "a\\xff", "e\nf")
    assert header.repeated == ("a",)


def test_a_record_longer_than_a_block_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"a record is longer than .* a quote that is never closed"):
        list(read_csv(io.BytesIO(b'a,b\n1,"' + b"x\n" * 100), "file", ",", ["a"], block_bytes=64))


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"a,b", b"a,b\n", b"\na,b\r\n\n"])
def test_a_file_without_a_row_gives_no_row(content: bytes) -> None:
    assert [batch for batch in read_csv(io.BytesIO(content), "file", ",", ["a"]) if batch.rows] == []
