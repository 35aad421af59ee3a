"""The kept list knows its users and nobody else, under any type of ids, and no id can be read from its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.contracts.errors import ArtifactError
from pipelines.tables.erasure.forgotten import Forgotten

numbers = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def listed(ids: list[int] | list[str]) -> Forgotten:
    return Forgotten.empty().with_users(pa.array(ids, pa.int64() if isinstance(ids[0], int) else pa.string()))


@given(st.lists(numbers, min_size=1), st.lists(numbers | st.none()))
def test_it_holds_its_integers_and_no_other_one(ids: list[int], others: list[int | None]) -> None:
    asked = pa.array([*ids, *others, None], pa.int64())
    assert listed(ids).holds(asked).tolist() == [one in set(ids) for one in asked.to_pylist()]


@given(st.lists(texts, min_size=1), st.lists(texts | st.none()))
def test_it_holds_its_texts_and_no_other_one(ids: list[str], others: list[str | None]) -> None:
    asked = pa.array([*ids, *others, None], pa.string())
    assert listed(ids).holds(asked).tolist() == [one in set(ids) for one in asked.to_pylist()]


@given(st.lists(numbers, min_size=1))
def test_the_type_of_the_ids_may_change(ids: list[int]) -> None:
    assert listed(ids).holds(pa.array(map(str, ids), pa.string())).all()
    assert listed([str(one) for one in ids]).holds(pa.array(ids, pa.int64())).all()


@given(st.lists(texts, min_size=1), st.lists(texts, min_size=1), st.lists(texts))
def test_lists_of_two_artifacts_are_joined_and_users_taken_off(
    first: list[str], second: list[str], off: list[str]
) -> None:
    both = listed(first).joined(listed(second))
    everyone = pa.array([*first, *second, *off], pa.string())
    assert both.holds(everyone).tolist() == [one in {*first, *second} for one in everyone.to_pylist()]
    left = both.without_users(pa.array(off, pa.string()))
    assert left.holds(everyone).tolist() == [one in {*first, *second} - {*off} for one in everyone.to_pylist()]
    assert both.covers(left)
    assert left.with_users(pa.array(off, pa.string())).holds(everyone).all()


@given(texts, texts, texts)
def test_a_text_holds_an_id_wherever_it_is_a_word(user: str, before: str, after: str) -> None:
    """Delimited: the character before the id and the one after it do not go on a word with its edges."""
    forgotten = listed([user])
    for text in (f"{before} {user} {after}", f'{{"user": "{user}", "x": 1}}', user, f",{user},"):
        assert forgotten.holds_text(text)


def test_a_text_that_has_the_id_within_another_word_does_not_hold_it() -> None:
    forgotten = listed([5007, -12])
    assert not any(forgotten.holds_text(text) for text in ("150071", "50071", "a5007", "5 007", "", "12"))
    assert all(forgotten.holds_text(text) for text in ("5007.0", "x,005007,y", '"5007"', "a=-12", "5007-1"))


def test_a_file_is_read_as_it_was_written_and_has_no_id(tmp_path: Path) -> None:
    ids = [f"member-{number}@shop.example" for number in range(300)] + ["987654321012"]
    forgotten = listed(ids)
    forgotten.write(tmp_path / "list.arrow")
    again = Forgotten.read(tmp_path / "list.arrow")
    assert again.holds(pa.array(ids)).all()
    assert again.table.equals(forgotten.table)
    raw = (tmp_path / "list.arrow").read_bytes()
    assert not any(one.encode() in raw for one in ids)
    assert np.int64(987654321012).tobytes() not in raw


def test_two_lists_of_the_same_users_have_nothing_in_common() -> None:
    first, second = listed([1, 2, 3]), listed([1, 2, 3])
    assert not set(first.table["digest"].to_pylist()) & set(second.table["digest"].to_pylist())


def test_every_changed_byte_of_the_columns_is_found(tmp_path: Path) -> None:
    path = tmp_path / "list.arrow"
    forgotten = listed([1, 2, 3])
    forgotten.write(path)
    raw = path.read_bytes()
    for digest in forgotten.table["digest"].to_pylist():
        place = raw.index(digest)
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(ArtifactError, match="list of forgotten users"):
            Forgotten.read(path)
    path.write_bytes(raw[:100])
    with pytest.raises(ArtifactError, match="cannot be read"):
        Forgotten.read(path)
