"""Rejects: no text of theirs has the id of a forgotten user, and their places stay."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.tables.erasure.forgotten import Forgotten
from pipelines.tables.erasure.reject_traces import without_texts, without_users
from pipelines.tables.rejects.checks import REJECTS

INT64, STRING = pa.int64(), pa.string()


def rejects(*records: str | None, reason: str = "type:price") -> pa.Table:
    rows = [
        {"table": "events", "file": "f.csv", "row": row, "reason": reason, "record": record}
        for row, record in enumerate(records)
    ]
    return pa.Table.from_pylist(rows, schema=REJECTS)


def record(**cells: Any) -> str:
    return json.dumps(cells, ensure_ascii=False)


FORGOTTEN = Forgotten.empty().with_users(pa.array([5007], INT64))


def test_rows_of_forgotten_users_are_dropped_in_any_form_of_the_id() -> None:
    own = [record(user=5007), record(user=5007.0), record(user="5007"), record(user="5007.0"), record(user=" 5007")]
    cut_short = record(user=5007, title="x" * 90)[:60]
    kept = without_users(rejects(*own, cut_short, record(user=1, price="x"), None), FORGOTTEN, "user", INT64)
    assert kept["row"].to_pylist() == [6, 7]
    assert kept["record"].to_pylist() == [record(user=1, price="x"), None]


def test_texts_that_name_a_forgotten_user_are_not_kept_and_their_places_are() -> None:
    texts = [record(user=1, note="for 5007"), record(user=1, note="no 15007 or 50071")]
    kept = without_users(rejects(*texts), FORGOTTEN, "user", INT64)
    assert kept["row"].to_pylist() == [0, 1]
    assert kept["record"].to_pylist() == [None, texts[1]]


def test_malformed_lines_have_no_text_once_anybody_is_forgotten() -> None:
    lines = rejects('"5007,a"', '"1,2,3,4"', reason="malformed:line")
    assert without_texts(lines, Forgotten.empty()).equals(lines)
    kept = without_texts(lines, FORGOTTEN)
    assert kept["record"].to_pylist() == [None, None]
    assert kept.drop(["record"]).equals(lines.drop(["record"]))


@given(
    user=st.text(st.characters(codec="utf-8"), min_size=1),
    cells=st.dictionaries(st.sampled_from("abc"), st.text(st.characters(codec="utf-8")), max_size=2),
)
def test_no_record_has_the_id_as_a_cell_or_among_other_words(user: str, cells: dict[str, str]) -> None:
    forgotten = Forgotten.empty().with_users(pa.array([user], STRING))
    records = [
        record(user=user, **cells),
        record(user="x!", **{**cells, "d": user}),
        record(d=f"{user}, {user}", **cells),
    ]
    kept = without_users(rejects(*records), forgotten, "user", STRING)
    assert len(kept) == (2 if user != "x!" else 1)
    assert kept["record"].null_count == len(kept)
