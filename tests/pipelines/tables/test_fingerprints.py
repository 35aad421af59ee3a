"""Fingerprints: any changed byte shows, and a file in a state that was seen before is not read again."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.contracts.schema import UsersTable
from pipelines.tables import fingerprints
from pipelines.tables.files import SourceFile, find_files
from pipelines.tables.fingerprints import recall, remembered, with_content


def hashed(path: Path, known: Any = None) -> SourceFile:
    source = UsersTable(path=str(path), user_id="u")
    (file,) = with_content(find_files(source, "users"), "users", known)
    return file


@settings(max_examples=200, deadline=None)
@given(size=st.integers(1, 300_000), place=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_changed_byte_changes_the_fingerprint(
    tmp_path_factory: pytest.TempPathFactory, size: int, place: float, flip: int
) -> None:
    """The size and the time of modification stay the same."""
    path = tmp_path_factory.mktemp("tables") / "a.csv"
    content = bytearray(os.urandom(64) * (size // 64 + 1))[:size]
    path.write_bytes(content)
    before, state = hashed(path), path.stat()
    content[int(place * size)] ^= flip
    with path.open("r+b") as file:
        file.write(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = hashed(path, recall(remembered([before])))
    assert after.fingerprint != before.fingerprint
    content[int(place * size)] ^= flip
    path.write_bytes(content)
    assert hashed(path).fingerprint == before.fingerprint


def later(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    now = time.time_ns
    monkeypatch.setattr(fingerprints.time, "time_ns", lambda: now() + int(seconds * 1e9))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read from now on; nothing is known of this process."""
    fingerprints._hash_of_state.cache_clear()
    read: list[str] = []
    own = fingerprints._hash

    def note(url: str) -> str:
        read.append(Path(url).name)
        return own(url)

    monkeypatch.setattr(fingerprints, "_hash", note)
    return read


def test_a_file_in_a_known_state_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"u\n1\n")
    later(monkeypatch, 10)
    first = hashed(path)
    notes = json.loads(json.dumps(remembered([first])))
    read = counted(monkeypatch)
    assert hashed(path, recall(notes)).fingerprint == first.fingerprint
    assert read == []
    path.write_bytes(b"u\n2\n")
    assert hashed(path, recall(notes)).fingerprint != first.fingerprint
    assert read == ["a.csv"]


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"u\n1\n")
    first = hashed(path)
    assert remembered([first]) == []
    read = counted(monkeypatch)
    hashed(path, recall([{"url": str(path), "content": first.content, "bytes": 4, "token": "", "modified_ns": None}]))
    assert read == ["a.csv"]


@pytest.mark.parametrize(
    "note", [{}, {"url": 1}, {"url": "a", "bytes": "x", "token": "t", "modified_ns": 1, "content": ""}]
)
def test_notes_of_another_form_only_cost_time(note: dict[str, Any]) -> None:
    assert recall([note]) == {}


def test_how_a_file_is_read_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    names = ["day=1/a.csv", "day=2/a.csv", "a.csv", "a.tsv", "a.csv.gz"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"u\n1\n")
    assert len({hashed(tmp_path / name).fingerprint for name in names}) == len(names)
