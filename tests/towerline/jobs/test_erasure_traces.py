"""The search for traces: every planted id is found in every kind of file, and what only looks like one is not."""

from __future__ import annotations

import bz2
import gzip
import html
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.registry.delta_entry import packed
from pipelines.contracts.errors import SchemaError
from pipelines.contracts.files import write_arrow
from tests.traces import find_traces
from towerline.jobs.erasure.traces import search

Write = Callable[[Path, str], None]
NAME = 'anna "é" 77&x'
LARGE = 91234567890
LOG_FACTS = {"format_version": 2}


def _zstd(path: Path, raw: bytes) -> None:
    with pa.CompressedOutputStream(str(path), "zstd") as out:
        out.write(raw)


def _parquet(path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"c": column}), path)


# Writes a file with the text of an id in it; what search finds there for certain, for a name and for a large number.
PLANTED: dict[str, Write] = {
    "a.json": lambda path, text: path.write_text(json.dumps({"a": [{"b": f"of {text}."}]})) and None,
    "key.json": lambda path, text: path.write_text(json.dumps({"user_id": [text]})) and None,
    "name.json": lambda path, text: path.write_text(json.dumps({"by": {f"user_id={text}": 1}})) and None,
    "lines.jsonl": lambda path, text: path.write_text(f'{{"x": 1}}\n{{"user_id": {json.dumps(text)}}}\n') and None,
    "broken.json": lambda path, text: path.write_text(f'{{"x": "{text}",') and None,
    "report.html": lambda path, text: path.write_text(f"<td>{html.escape(text)}</td>") and None,
    "log.txt": lambda path, text: path.write_text(f"GET /for {text} 200\n") and None,
    "no_suffix": lambda path, text: path.write_text(text) and None,
    "cut.csv": lambda path, text: path.write_text(f"a,{text},b\n") and None,
    "weights.data": lambda path, text: path.write_bytes(b"\0\1\xff" + text.encode() + b"\0\2") and None,
    "plain.gz": lambda path, text: path.write_bytes(gzip.compress(f"a {text}\n".encode())) and None,
    "log.txt.bz2": lambda path, text: path.write_bytes(bz2.compress(f"a {text}\n".encode())) and None,
    "a.json.xz": lambda path, text: path.write_bytes(lzma.compress(json.dumps([text]).encode())) and None,
    "log.zst": lambda path, text: _zstd(path, f"a {text}\n".encode()),
    "plain.parquet": lambda path, text: _parquet(path, pa.array(["x", text])),
    "dictionary.parquet": lambda path, text: _parquet(path, pa.array(["x", text]).dictionary_encode()),
    "list.parquet": lambda path, text: _parquet(path, pa.array([[], ["x", f"to {text}"]])),
    "struct.parquet": lambda path, text: _parquet(path, pa.array([{"user_id": text, "n": 1}])),
    "bytes.parquet": lambda path, text: _parquet(path, pa.array([text.encode()])),
    "map.parquet": lambda path, text: _parquet(path, pa.array([[(text, 1)]], pa.map_(pa.string(), pa.int32()))),
    "spill.arrow": lambda path, text: write_arrow(pa.table({"user_id": [text]}), path),
    "00000001.delta": lambda path, text: path.write_bytes(packed(pa.table({"title": [text]}), LOG_FACTS)) and None,
    ".hidden": lambda path, text: path.write_text(text) and None,
}


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("text", [NAME, str(LARGE)])
def test_a_planted_id_is_found_whatever_the_file(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    PLANTED[name](tmp_path / "deep" / "er" / name, text)
    [trace] = find_traces([tmp_path], [NAME, LARGE, "other"])
    assert (trace.file, {*trace.users, *trace.possible}) == (name, {text})
    if text == NAME:
        assert trace.users == (NAME,)


@pytest.mark.parametrize("user", [5007, -12, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("kind", [pa.int64(), pa.string(), pa.float64()])
def test_users_columns_are_compared_as_ids(tmp_path: Path, user: int, kind: pa.DataType) -> None:
    if pa.types.is_floating(kind) and abs(user) > 2**53:
        pytest.skip("no float is exactly this number")
    pq.write_table(pa.table({"user_id": pa.array([user, 3], pa.int64()).cast(kind)}), tmp_path / "a.parquet")
    assert [trace.users for trace in find_traces([tmp_path], [user, 4])] == [(str(user),)]


def test_texts_of_whole_floats_are_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["5007.0"]}), tmp_path / "a.parquet")
    (tmp_path / "b.csv").write_text("x,user_id=5007.0,y\n")
    assert [trace.users for trace in find_traces([tmp_path], [5007])] == [("5007",), ("5007",)]


def test_columns_have_roles_by_the_artifacts_schema(tmp_path: Path) -> None:
    """Users are called ``member``, items ``ad``; an id feature of users is called ``who``."""
    schema = {
        "tables": {"events": {"user_id": "member", "item_id": "ad"}, "items": {"item_id": "ad"}, "users": None},
        "features": {"user": [{"name": "who", "column": "account", "kind": "id"}, {"name": "age", "kind": "numeric"}]},
    }
    artifact = tmp_path / "features"
    (artifact / "vocabulary").mkdir(parents=True)
    (artifact / "manifest.json").write_text("{}")
    (artifact / "schema.json").write_text(json.dumps(schema))
    write_arrow(pa.table({"value": [77]}), artifact / "vocabulary" / "user.who.arrow")
    write_arrow(pa.table({"value": [77]}), artifact / "vocabulary" / "user.age.arrow")
    write_arrow(pa.table({"item_id": [77]}), artifact / "vocabulary" / "items.arrow")
    pq.write_table(pa.table({"member": [77], "ad": [1]}), artifact / "events.parquet")
    pq.write_table(pa.table({"member": [1], "ad": [77], "row": [77]}), artifact / "others.parquet")
    assert {trace.file for trace in find_traces([tmp_path], [77])} == {"vocabulary/user.who.arrow", "events.parquet"}


def test_rejects_are_searched_for_ids_of_any_length(tmp_path: Path) -> None:
    (tmp_path / "rejects").mkdir()
    records = [
        '"7,10,2025-01-01"',
        '{"user_id": "8.0", "x": "y"}',
        '{"user_id": 9, "cut',
        '{"user_id": 1, "note": "of 6"}',
    ]
    pq.write_table(pa.table({"record": records}), tmp_path / "rejects" / "events.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    [trace] = find_traces([tmp_path], [5, 6, 7, 8, 9])
    assert (trace.users, trace.possible) == (("8", "9"), ("6", "7"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "facts.json",
            '{"users": 5007, "bytes": 54091, "days": {"54091": 3}, "item_ids": [5007], "history": ["54091"]}',
        ),
        ("page.html", "<p>5007 users, 54091.25 euros, 1.54091, a54091, 540910</p><img src='data:base64,AB/54091/Y='>"),
        ("log.txt", "54091th ann anna_ 5007"),
    ],
)
def test_what_only_looks_like_an_id_is_no_trace(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert find_traces([tmp_path], [5007, 54091, "anna"]) == []


def test_numbers_and_short_texts_elsewhere_are_possible_traces(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("54091 and ann; user_id: 5007")
    [trace] = find_traces([tmp_path], [5007, 54091, "ann"])
    assert (trace.users, trace.possible) == (("5007",), ("54091", "ann"))


def test_codes_and_vectors_are_no_ids(tmp_path: Path) -> None:
    pq.write_table(pa.table({"country": pa.array([5007], pa.int32())}), tmp_path / "users_encoded.parquet")
    np.save(tmp_path / "rows.npy", np.array([5007, 54091]))
    np.save(tmp_path / "vectors.npy", np.frombuffer(b"annaanna" * 8, np.float32))
    assert find_traces([tmp_path], [5007, 54091, "anna", "annaanna"]) == []


def test_large_integers_are_found_as_bytes(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.array([1, LARGE]))
    (tmp_path / "odd.bin").write_bytes(b"\0\0\0" + np.int64(LARGE).tobytes() + b"\0")
    assert [trace.possible for trace in find_traces([tmp_path], [LARGE])] == [(str(LARGE),)] * 2


def test_an_id_across_two_blocks_of_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("towerline.jobs.erasure.file_scanner._BLOCK_BYTES", 5_000)
    for place in range(4_990, 5_010):
        (tmp_path / "log.txt").write_text("." * place + f" {NAME} " + "." * 9_000)
        assert len(find_traces([tmp_path], [NAME])) == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.npy", "a.gz", "a.xz", "a.zst", "a.bz2"])
def test_what_cannot_be_read_is_named_and_the_rest_is_searched(tmp_path: Path, name: str) -> None:
    heads = {"npy": b"\x93NUMPY", "gz": b"\x1f\x8b", "xz": b"\xfd7zXZ\x00", "zst": b"\x28\xb5\x2f\xfd", "bz2": b"BZh9"}
    (tmp_path / name).write_bytes(heads.get(name.split(".")[1], b"PAR1") + b" nothing")
    (tmp_path / "log.txt").write_text(NAME)
    found = search([tmp_path], [NAME])
    assert [one.file for one in found.unread] == [f"{tmp_path}/{name}"]
    assert [trace.file for trace in found.traces] == ["log.txt"]
    assert found.files == 1


def test_a_registry_on_an_object_store_is_searched(tmp_path: Path) -> None:
    (tmp_path / "versions" / "v1").mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [12]}), tmp_path / "versions" / "v1" / "users.parquet")
    found = search([f"file://{tmp_path}"], [12])
    assert [(trace.file, trace.users) for trace in found.traces] == [("versions/v1/users.parquet", ("12",))]
    with pytest.raises(SchemaError, match="expected a directory of artifacts"):
        search([tmp_path / "none"], [12])
