"""A refresh with a forget list runs features again where it has new users; both verbs say what became of it."""

from __future__ import annotations

from pathlib import Path

import pytest

import towerline
from index.publishing.publish import Publication
from pipelines.contracts.errors import SchemaError
from pipelines.sequences.reader import load_users
from pipelines.tables.erasure.kept_list import copy_of
from tests.worlds import write_marketplace
from towerline.commands.cli import main
from towerline.jobs import refresh
from towerline.jobs.stages import FeaturesStage
from towerline.project import Project


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A small marketplace whose nights end after the features."""
    monkeypatch.setattr(refresh, "stages_of", lambda _: (FeaturesStage(),))
    monkeypatch.setattr(refresh, "_publish", lambda *_: Publication(None, (), forced=False))
    toml = write_marketplace(tmp_path / "tables", users=20, items=30, events=800)
    made = towerline.open(toml, work=tmp_path / "work")
    made.refresh()
    return made


def listed(folder: Path, *lines: str) -> Path:
    (folder / "forget.txt").write_bytes("\ufeff".encode() + "\r\n".join(["user_id", *lines]).encode())
    return folder / "forget.txt"


def outcome_of(done: refresh.Refreshed) -> str:
    return done.stages[0].outcome


def users_of(project: Project) -> set[str]:
    return set(load_users(project.work / "features")["user_id"].to_pylist())


def test_a_refresh_that_is_up_to_date_runs_for_new_users_on_the_list_alone(project: Project, tmp_path: Path) -> None:
    first = project.refresh(forget=listed(tmp_path, "u3", "u4", "nobody"))
    assert outcome_of(first) == "ran"
    assert first.forgotten is not None
    assert first.forgotten.line == ("forget: 2 of 3 listed users were found and dropped; not found: line 4 'nobody'")
    again = project.refresh(forget=tmp_path / "forget.txt")
    assert outcome_of(again) == "reused"
    assert again.forgotten is not None
    assert again.forgotten.line == "forget: all 3 listed users had been forgotten before"
    assert outcome_of(project.refresh()) == "reused"
    more = project.refresh(forget=listed(tmp_path, "u3", "u5"))
    assert outcome_of(more) == "ran"
    assert {"u3", "u4", "u5"}.isdisjoint(users_of(project))


def test_a_refresh_without_the_list_or_the_features_keeps_users_away(project: Project, tmp_path: Path) -> None:
    project.features(forget=listed(tmp_path, "u3"))
    (project.work / "features" / "schema.json").unlink()  # Damaged: a full run.
    assert outcome_of(project.refresh()) == "ran"
    assert "u3" not in users_of(project)


def test_a_list_kept_by_a_run_that_failed_makes_the_next_refresh_run(project: Project, tmp_path: Path) -> None:
    other = towerline.open(tmp_path / "tables" / "marketplace.toml", work=tmp_path / "other")
    other.features(forget=listed(tmp_path, "u3"))
    copy_of(other.work / "features").rename(copy_of(project.work / "features"))
    assert outcome_of(project.refresh()) == "ran"
    assert "u3" not in users_of(project)


def test_a_remembered_user_comes_back_with_the_next_refresh(project: Project, tmp_path: Path) -> None:
    everyone = users_of(project)
    project.refresh(forget=listed(tmp_path, "u3", "u4"))
    assert outcome_of(project.refresh(remember=listed(tmp_path, "u3"))) == "ran"
    assert users_of(project) == everyone - {"u4"}
    assert outcome_of(project.refresh(remember=tmp_path / "forget.txt")) == "reused"


def test_the_verbs_say_what_became_of_the_list(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(tmp_path / "tables" / "marketplace.toml"), "--work", str(project.work), "--quiet"]
    file = str(listed(tmp_path, "u3", "nobody"))

    def said(*arguments: str) -> tuple[int, str]:
        code = main([*arguments, *options])
        return code, capsys.readouterr().out

    code, text = said("erasure-report", file)
    assert code == 1
    assert "1 of 2 listed users left traces; no trace of line 3 'nobody'" in text
    assert "0 of 2 are on the list" in text
    code, text = said("features", "--forget", file)
    assert code == 0
    line = "forget: 1 of 2 listed users were found and dropped; not found: line 3 'nobody'"
    assert line in text.splitlines()
    code, text = said("erasure-report", file)
    assert code == 0
    assert "no trace of 2 listed users in" in text
    assert "2 of 2 are on the list" in text
    (project.work / "broken.parquet").write_bytes(b"PAR1")
    code, text = said("erasure-report", file)
    assert code == 1
    assert "not searched" in text
    assert "the search is not complete: 1 files could not be read" in text


def test_a_line_that_is_no_id_is_refused_by_both_verbs(project: Project, tmp_path: Path) -> None:
    integers = towerline.open(
        tmp_path / "tables" / "marketplace.toml", work=project.work, overrides=['ids.user="int64"']
    )
    file = listed(tmp_path, "7", "member 8")
    for verb in (integers.erasure_report, lambda one: integers.features(forget=one)):
        with pytest.raises(SchemaError, match=r"forget.txt, line 3: expected an integer .* got 'member 8'"):
            verb(file)
