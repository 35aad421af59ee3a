"""The kept list outlives the artifact that has it: replaced, moved, damaged or removed; and users can come back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import read_manifest
from pipelines.contracts.schema import DatasetSchema
from pipelines.features import job as features
from pipelines.tables.erasure.forget_list import ForgetList
from pipelines.tables.erasure.kept_list import FORGOTTEN_FILE, copy_of, forgotten_by
from tests.pipelines.conftest import EVENTS, at, raw_schema, schema_of, write_rows
from tests.pipelines.features.test_job import content

Small = Callable[..., DatasetSchema]


@pytest.fixture
def schema(small: Small, tmp_path: Path) -> DatasetSchema:
    """The small marketplace, user 1 forgotten in ``features``."""
    made = small(
        lambda raw: raw["validation"].update(min_joined=0.0), events=[*EVENTS, {**EVENTS[0], "user": 3, "time": at(3)}]
    )
    features.run(made, tmp_path / "features", forget=ForgetList.of([1]))
    return made


def users_of(artifact: Path) -> list[int]:
    found: list[int] = content(artifact)["ids"]
    return found


def test_a_full_run_finds_the_list_in_the_artifact_it_replaces(schema: DatasetSchema, tmp_path: Path) -> None:
    out = tmp_path / "features"
    assert users_of(out) == [2, 3, 9]
    copy_of(out).unlink()
    features.run(schema, out)
    assert users_of(out) == [2, 3, 9]
    assert read_manifest(out).facts["forgotten"]["users"] == 1


def test_a_run_elsewhere_finds_it_in_the_previous_one(schema: DatasetSchema, tmp_path: Path) -> None:
    features.run(schema, tmp_path / "other", previous=tmp_path / "features")
    assert users_of(tmp_path / "other") == [2, 3, 9]
    features.run(schema, tmp_path / "other", previous=tmp_path / "features", forget=ForgetList.of([3]))
    assert users_of(tmp_path / "other") == [2, 9]


def test_lists_of_the_replaced_and_the_previous_artifact_are_joined(schema: DatasetSchema, tmp_path: Path) -> None:
    features.run(schema, tmp_path / "other", forget=ForgetList.of([3]))
    features.run(schema, tmp_path / "other", previous=tmp_path / "features")
    assert users_of(tmp_path / "other") == [2, 9]


def test_the_list_outlives_an_artifact_that_is_removed(schema: DatasetSchema, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "features")
    features.run(schema, tmp_path / "features")
    assert users_of(tmp_path / "features") == [2, 3, 9]


@pytest.mark.parametrize("with_copy", [True, False])
def test_the_list_outlives_a_damaged_manifest(schema: DatasetSchema, tmp_path: Path, with_copy: bool) -> None:
    (tmp_path / "features" / "manifest.json").write_text("{")
    if not with_copy:
        copy_of(tmp_path / "features").unlink()
    features.run(schema, tmp_path / "features", previous=tmp_path / "features")
    assert users_of(tmp_path / "features") == [2, 3, 9]


def test_a_damaged_list_stops_the_run_and_names_the_copy(schema: DatasetSchema, tmp_path: Path) -> None:
    out = tmp_path / "features"
    (out / FORGOTTEN_FILE).write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"features/forgotten.arrow: .* cannot be read.*Remove .* once more"):
        features.run(schema, out)
    (out / FORGOTTEN_FILE).unlink()  # The way out that the error names.
    features.run(schema, out)
    assert users_of(out) == [2, 3, 9]


def test_a_list_that_is_gone_with_its_copy_stops_the_run(schema: DatasetSchema, tmp_path: Path) -> None:
    out = tmp_path / "features"
    (out / FORGOTTEN_FILE).unlink()
    copy_of(out).unlink()
    with pytest.raises(ArtifactError, match=r"the list of users to forget is lost. .* give all of them again"):
        features.run(schema, out)
    shutil.rmtree(out)
    features.run(schema, out, forget=ForgetList.of([1]))
    assert users_of(out) == [2, 3, 9]


def test_a_run_that_fails_has_kept_the_list(schema: DatasetSchema, tmp_path: Path) -> None:
    out = tmp_path / "features"
    write_rows(tmp_path, **{"events-bad": [{**EVENTS[0], "user": 3, "action": "none"}] * 100})
    with pytest.raises(SchemaError):
        features.run(schema, out, forget=ForgetList.of([2]))
    (tmp_path / "events-bad.parquet").unlink()
    features.run(schema, out, previous=out)
    assert read_manifest(out).facts["increment"]["used"]
    assert users_of(out) == [3, 9]


def test_a_line_that_is_no_id_changes_nothing(schema: DatasetSchema, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SchemaError, match=r"line 2: expected .*, got 'abc'"):
        features.run(schema, tmp_path / "features", forget=ForgetList.of([2, "abc"]))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_user_who_is_remembered_comes_back_whole(schema: DatasetSchema, tmp_path: Path) -> None:
    out = tmp_path / "features"
    features.run(schema, tmp_path / "all")
    features.run(schema, out, previous=out, remember=ForgetList.of([1]))
    assert not copy_of(out).exists()
    assert not (out / FORGOTTEN_FILE).exists()
    assert content(out) == content(tmp_path / "all")
    assert "taken off the forget list" in read_manifest(out).facts["increment"]["reason"]


def test_a_user_on_both_lists_is_refused(schema: DatasetSchema, tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"line 2 '2'.*both lists"):
        features.run(schema, tmp_path / "features", forget=ForgetList.of([3, 2]), remember=ForgetList.of([2]))


def test_a_later_night_neither_reads_nor_counts_everything_again(schema: DatasetSchema, tmp_path: Path) -> None:
    """The rows of an unchanged partition are taken over as they are: the same file, by its inode."""
    out = tmp_path / "features"
    first = {path.name: path.stat().st_ino for path in (out / "sequences").glob("part-*")}
    write_rows(tmp_path, **{"events-1": [{**EVENTS[0], "time": at(25)}, {**EVENTS[3], "time": at(25)}]})
    features.run(schema, out, previous=out)
    assert read_manifest(out).facts["increment"]["used"]
    assert first.items() <= {path.name: path.stat().st_ino for path in (out / "sequences").glob("part-*")}.items()
    assert read_manifest(out).facts["counts"]["events"] == 5
    assert users_of(out) == [2, 3, 9]


def test_the_facts_say_who_was_found_without_any_id(schema: DatasetSchema, tmp_path: Path) -> None:
    """Users 1 and 404 were forgotten before: 1 is in the tables still. 2 has events, 9 only a profile."""
    out = tmp_path / "features"
    features.run(schema, out, previous=out, forget=ForgetList.of([404, 405, 404]))
    facts = read_manifest(out).facts["forgotten"]
    assert (facts["listed"], facts["found"], facts["before"], facts["missing_lines"]) == (2, 0, 0, [1, 2, 3])
    for previous in (out, None):
        target = tmp_path / f"target-{previous is None}"
        shutil.copytree(out, target)
        features.run(schema, target, previous=previous, forget=ForgetList.of([2, 404, 9, 2, 1, 406]))
        facts = read_manifest(target).facts["forgotten"]
        assert facts["users"] == len(forgotten_by(target)) == 6
        assert (facts["listed"], facts["found"], facts["before"], facts["missing_lines"]) == (5, 3, 1, [6])


def test_blanks_that_hide_a_user_are_told(tmp_path: Path) -> None:
    rows = [{**event, "user": f"u{event['user']}"} for event in EVENTS]
    write_rows(
        tmp_path,
        events=rows,
        items=[{"item": item, "color": "red", "title": "x", "price": 1.0, "since": at(0)} for item in (10, 20, 30)],
    )
    raw = raw_schema(tmp_path)
    del raw["tables"]["users"]
    raw["features"]["user"] = [{"name": "bought", "kind": "count", "window_days": [28]}]
    out = features.run(schema_of(raw), tmp_path / "features", forget=ForgetList.of(["u1 ", "u2", " nobody"]))
    facts = read_manifest(out).facts["forgotten"]
    assert (facts["found"], facts["missing_lines"], facts["stripped_lines"]) == (1, [1, 3], [1])
    assert users_of(out) == ["u1", "u3"]
