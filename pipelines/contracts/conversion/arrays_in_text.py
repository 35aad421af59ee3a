"""Arrays written as text, in brackets: JSON, Python, PostgreSQL ``{a,b}``, DuckDB ``[a, b]``, NumPy ``[0.1 0.2]``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.arrays import Bools
from pipelines.contracts.conversion.plain import bools, without
from pipelines.contracts.conversion.texts import Cells

_BRACKETS = {"[": "]", "{": "}", "(": ")"}
# What a cell may not contain to be cut at every comma.
_NEEDS_READING = "\"'\\[](){}"
# Unquoted items that are no value.
_NO_VALUE = ("null", "NULL", "None")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)", re.DOTALL)
_QUOTED = r"{0}((?:[^{0}\\]|\\.)*+){0}"
_BARE = r"""([^\s,"'\[\](){}][^,"\[\](){}]*+|)"""
_ITEM = re.compile(
    rf"""\s*+(?:{_QUOTED.format('"')}|{_QUOTED.format("'")}|{_BARE})\s*+(,|\Z)""",
    re.DOTALL,
)


def split_arrays(texts: pa.Array, *, at_blanks: bool) -> pa.Array:
    """Trimmed texts -> lists of their items as text, null where a text is no array of plain values.

    Unquoted ``null``, ``NULL`` and ``None`` are nulls; numbers of JSON keep their text. With ``at_blanks`` an array
    without commas is cut at blanks.
    """
    in_brackets = _in_brackets(texts)
    inner = without(pc.utf8_trim_whitespace(pc.utf8_slice_codeunits(texts, 1, -1)), ~in_brackets)
    is_tuple = Cells(texts).at(0) == ord("(")
    if is_tuple.any():  # Python writes a comma after a single value.
        inner = pc.if_else(pa.array(is_tuple), pc.utf8_rtrim(inner, ","), inner)
    quoted = Cells(inner).contain(_NEEDS_READING)
    lists = [_cut(without(inner, quoted), at_blanks)]
    if quoted.any():
        remaining = without(inner, ~quoted)
        for quote in ("'", '"'):
            lists.append(_cut_quoted(remaining, quote))
            remaining = without(remaining, bools(lists[-1].is_valid()))
        lists.append(_read_each(without(texts, ~bools(remaining.is_valid()))))
    return pc.coalesce(*lists)


def _in_brackets(texts: pa.Array) -> Bools:
    cells = Cells(texts)
    first, last = cells.at(0), cells.at(cells.lengths - 1)
    closes = [(first == ord(start)) & (last == ord(end)) for start, end in _BRACKETS.items()]
    valid = np.asarray(texts.is_valid(), dtype=bool) & (cells.lengths >= 2)
    return np.logical_and(np.logical_or.reduce(closes), valid)


def _cut(inner: pa.Array, at_blanks: bool) -> pa.Array:
    """Unquoted items of arrays without their brackets."""
    if at_blanks:
        spaced = pc.and_(pc.invert(pc.match_substring(inner, ",")), pc.match_substring_regex(inner, r"\s"))
        inner = pc.if_else(spaced, pc.replace_substring_regex(inner, r"\s+", ","), inner)
    lists = pc.split_pattern(pc.replace_substring(inner, ", ", ","), ",")
    items = pc.utf8_trim_whitespace(lists.flatten())
    items = pc.if_else(pc.is_in(items, value_set=pa.array(_NO_VALUE)), pa.scalar(None, pa.string()), items)
    lengths = pc.if_else(pc.equal(inner, ""), 0, pc.list_value_length(lists)).fill_null(0)
    # An empty array is cut into one empty item.
    kept = np.repeat(~bools(pc.equal(inner, "")), np.asarray(pc.list_value_length(lists).fill_null(0)))
    offsets = np.concatenate([[0], np.cumsum(np.asarray(lengths, np.int32))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), items.filter(pa.array(kept)), mask=inner.is_null())


def _cut_quoted(inner: pa.Array, quote: str) -> pa.Array:
    """The items of arrays in which each item has this quote around it, and no quote or escape inside; else null."""
    mark = "\x1f"
    regular = ~Cells(inner).contain("\\" + mark)
    for between in (f"{quote}, {quote}", f"{quote},{quote}"):
        inner = pc.replace_substring(inner, between, mark)
    cells = Cells(inner)
    regular &= (cells.at(0) == ord(quote)) & (cells.at(cells.lengths - 1) == ord(quote))
    regular &= cells.count(cells.are(quote)) == 2
    return pc.split_pattern(pc.utf8_slice_codeunits(without(inner, ~regular), 1, -1), mark)


def _read_each(texts: pa.Array) -> pa.Array:
    """Arrays that need to be read character by character."""
    encoded = texts.dictionary_encode()
    items = [_items(text) for text in encoded.dictionary.to_pylist()]
    return pa.array(items, pa.list_(pa.string())).take(encoded.indices)


def _items(text: str) -> list[str | None] | None:
    """The items of one array; None where the text is none."""
    for read in (_json, _read):
        try:
            items = list(read(text))
            "".join(item for item in items if item is not None).encode()
            return items
        except (ValueError, RecursionError):  # Half a surrogate pair is a ValueError as well.
            continue
    return None


def _json(text: str) -> Iterator[str | None]:
    values = json.loads(text, parse_float=str, parse_int=str)
    if not isinstance(values, list):
        raise ValueError("no array")
    return map(_text, values)


def _text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None or isinstance(value, str):
        return value
    raise ValueError("an array in an array")


def _read(text: str) -> Iterator[str | None]:
    """Items quoted by either quote, with escapes, or not quoted."""
    place, inner = 0, text[1:-1]
    if text[0] == "(":
        inner = inner.rstrip().rstrip(",")
    while True:
        found = _ITEM.match(inner, place)
        if found is None:
            raise ValueError("no array")
        double, single, bare, end = found.groups()
        quoted = single if double is None else double
        if quoted is not None:
            yield _ESCAPE.sub(lambda escape: _unescaped(escape[1]), quoted)
        else:
            bare = bare.rstrip()
            yield None if bare in _NO_VALUE else bare
        if not end:
            return
        place = found.end()


def _unescaped(escape: str) -> str:
    if len(escape) > 1:
        return chr(int(escape[1:], 16))
    return _ESCAPES.get(escape, escape)
