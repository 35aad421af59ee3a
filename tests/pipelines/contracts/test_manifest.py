"""The manifest: an artifact is there whole or not at all, and damage is found by name."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.files import file_name
from pipelines.contracts.manifest import (
    Manifest,
    fingerprint_of,
    is_current,
    open_artifact,
    read_manifest,
    write_artifact,
    write_durably,
)


def write(path: Path, text: str = "hello", **inputs: str) -> None:
    with write_artifact(path, kind="letter", inputs=inputs, config={"tone": "kind"}) as draft:
        (draft.dir / "inner").mkdir()
        (draft.dir / "inner" / "a.txt").write_text(text)
        (draft.dir / "b.bin").write_bytes(b"\0" * 100)
        draft.facts["letters"] = len(text)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x", previous="abc")
    artifact = open_artifact(tmp_path / "x", kind="letter")
    assert (artifact.dir / "inner" / "a.txt").read_text() == "hello"
    assert artifact.manifest.facts == {"letters": 5}
    assert artifact.manifest.inputs == {"previous": "abc"}
    assert set(artifact.manifest.files) == {"inner/a.txt", "b.bin"}


def test_equal_content_has_an_equal_fingerprint_whenever_it_is_written(tmp_path: Path) -> None:
    write(tmp_path / "x")
    write(tmp_path / "y")
    write(tmp_path / "z", text="other")
    one, two, three = (open_artifact(tmp_path / name, kind="letter").manifest for name in "xyz")
    assert one.fingerprint == two.fingerprint != three.fingerprint


def test_a_failing_writer_leaves_the_old_artifact_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(RuntimeError), write_artifact(tmp_path / "x", kind="letter") as draft:
        (draft.dir / "half").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == ["x"]
    assert (open_artifact(tmp_path / "x", kind="letter").dir / "inner" / "a.txt").read_text() == "hello"


def test_drafts_of_killed_and_doubled_tasks_are_no_part_of_an_artifact(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "x", kind="letter") as draft:
        (draft.dir / "a.txt").write_text("a")
        (draft.dir / ".a.txt.17.0badcafe").touch()
        (draft.dir / ".0.17.0badcafe").mkdir()
        (draft.dir / ".0.17.0badcafe" / "half").touch()
    assert list(open_artifact(tmp_path / "x", kind="letter").manifest.files) == ["a.txt"]
    assert sorted(os.listdir(tmp_path / "x")) == ["a.txt", "manifest.json"]
    # A task that a cluster runs twice may still write when the artifact is done.
    (tmp_path / "x" / ".a.txt.18.0badcafe").touch()
    assert open_artifact(tmp_path / "x", kind="letter").manifest.facts == {}


def test_a_killed_writer_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    write(tmp_path / "x")
    program = (
        "import sys, time, pathlib\n"
        "from pipelines.contracts.manifest import write_artifact\n"
        f"with write_artifact(pathlib.Path({str(tmp_path / 'x')!r}), kind='letter') as draft:\n"
        "    (draft.dir / 'half').write_text('half')\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        writer.kill()
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 3  # the artifact, the draft and its lock
    assert open_artifact(tmp_path / "x", kind="letter").manifest.facts == {"letters": 5}
    assert sorted(os.listdir(tmp_path)) == left, "a reader changed something"
    write(tmp_path / "x")
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("file", ["inner/a.txt", "b.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "empty"])
def test_damage_is_found_and_the_file_named(tmp_path: Path, file: str, damage: str) -> None:
    write(tmp_path / "x")
    path = tmp_path / "x" / file
    content = path.read_bytes()
    if damage == "flip":
        place = random.Random(3).randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    with pytest.raises(ArtifactError) as error:
        open_artifact(tmp_path / "x", kind="letter")
    assert file in str(error.value)


def test_every_single_bit_of_the_manifest_is_guarded(tmp_path: Path) -> None:
    write(tmp_path / "x")
    path = tmp_path / "x" / "manifest.json"
    content = path.read_bytes()
    for place in range(len(content)):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        try:
            same = json.loads(flipped) == json.loads(content)
        except ValueError:
            same = False
        if same:  # white space
            continue
        path.write_bytes(flipped)
        with pytest.raises(ArtifactError, match=r"manifest\.json"):
            open_artifact(tmp_path / "x", kind="letter")


def test_a_file_too_many_another_kind_and_a_newer_format_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "x")
    with pytest.raises(ArtifactError, match="expected an artifact of kind 'parcel', found 'letter'"):
        open_artifact(tmp_path / "x", kind="parcel")
    with pytest.raises(ArtifactError, match="format version 1 of 'letter' is newer than 0"):
        open_artifact(tmp_path / "x", kind="letter", format_version=0)
    (tmp_path / "x" / "extra").write_text("")
    with pytest.raises(ArtifactError, match=r"extra: not in the manifest"):
        open_artifact(tmp_path / "x", kind="letter")
    with pytest.raises(ArtifactError, match="expected an artifact directory, found none"):
        open_artifact(tmp_path / "nowhere", kind="letter")


def test_current_means_same_inputs_and_config(tmp_path: Path) -> None:
    write(tmp_path / "x", tables="1")
    current = {"kind": "letter", "format_version": 1, "inputs": {"tables": "1"}, "config": {"tone": "kind"}}
    assert is_current(tmp_path / "x", **current)  # type: ignore[arg-type]
    assert not is_current(tmp_path / "x", **{**current, "inputs": {"tables": "2"}})  # type: ignore[arg-type]
    assert not is_current(tmp_path / "x", **{**current, "config": {"tone": "rude"}})  # type: ignore[arg-type]
    assert not is_current(tmp_path / "y", **current)  # type: ignore[arg-type]


NO_NAMES = [
    "../x", "a/../../x", "/etc/x", "//x", "a//b", "a/", "", ".", "..", "./a", "a/.", "a/..", ".hidden", "a/.hidden/b",
    "..\\x", "a\\b", "C:\\x", "a\0b", "a\nb", "\x7f", "x" * 256, "manifest.json", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("name", NO_NAMES)
def test_a_manifest_that_names_a_file_outside_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "x")
    file = tmp_path / "x" / "manifest.json"
    raw = json.loads(file.read_text())
    raw["files"] = {**raw["files"], name: raw["files"]["b.bin"]}
    del raw["seal"]
    file.write_text(json.dumps({**raw, "seal": fingerprint_of(raw)}))
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        open_artifact(tmp_path / "x", kind="letter")


@given(parts=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=5) | st.just(".."), max_size=4))
def test_a_name_that_is_accepted_stays_below_its_folder(parts: list[str]) -> None:
    name = "/".join(parts)
    try:
        file_name(name)
    except ValueError:
        return
    place = os.path.normpath(os.path.join("/folder", name))
    assert place == f"/folder/{name}"
    assert "\0" not in name


def test_a_file_that_is_also_a_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "x")
    manifest = read_manifest(tmp_path / "x").model_dump()
    manifest["files"]["b.bin/c"] = manifest["files"]["b.bin"]
    with pytest.raises(ValidationError, match=r"'b\.bin': expected a file of the artifact, got a name that is taken"):
        Manifest.model_validate(manifest)


def test_fingerprints_do_not_depend_on_the_order_of_keys() -> None:
    assert fingerprint_of({"a": 1, "b": [1, 2]}) == fingerprint_of({"b": [1, 2], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def test_a_durable_write_is_never_half(tmp_path: Path) -> None:
    path = tmp_path / "CURRENT"
    write_durably(path, b"a" * 10)
    program = (
        "import pathlib, itertools\n"
        "from pipelines.contracts.manifest import write_durably\n"
        "for letter in itertools.cycle([b'a', b'b']):\n"
        f"    write_durably(pathlib.Path({str(path)!r}), letter * 10)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program]) as writer:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            assert path.read_bytes() in (b"a" * 10, b"b" * 10)
        writer.kill()
