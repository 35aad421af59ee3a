"""Tables on the terminal, by eye."""

from __future__ import annotations

from towerline.commands.terminal import table_lines


def test_numbers_are_aligned_right_and_text_left() -> None:
    lines = list(table_lines(("name", "items"), [("shoes", "1,200"), ("tea", "7")], width=80))
    assert lines == ["name   items", "shoes  1,200", "tea        7"]


def test_a_line_is_cut_at_the_window() -> None:
    assert list(table_lines(("name",), [("abcdefgh",)], width=4)) == ["name", "abcd"]


def test_a_table_without_rows_is_its_header() -> None:
    assert list(table_lines(("a", "b"), [], width=80)) == ["a  b"]
