"""The cache and temporary folders of a user with or without a home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pipelines import user_folders
from pipelines.contracts.errors import TowerlineError
from pipelines.user_folders import cache_folder, can_be_written, make_cache_folder, nearest, temporary_folder


def test_the_variable_comes_first_then_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({"TOWERLINE_CACHE": "/somewhere"}) == Path("/somewhere")
    assert cache_folder({}) == tmp_path / ".cache" / "towerline"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("home", ["/proc/version/home", "~"])
def test_without_a_home_the_cache_is_below_the_temporary_folder(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", home)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert cache_folder({}) == tmp_path / f"towerline-{os.getuid()}"


def test_without_any_folder_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setenv("HOME", "/proc/version/home")
    monkeypatch.setattr(tempfile, "gettempdir", nowhere)
    with pytest.raises(TowerlineError, match="Set TOWERLINE_CACHE to a folder"):
        cache_folder({})
    with pytest.raises(TowerlineError, match="Set TMPDIR to a folder"), temporary_folder("towerline-"):
        pass


def test_folders_of_the_cache_are_this_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / f"towerline-{os.getuid()}" / "store"
    make_cache_folder(folder)
    assert [place.stat().st_mode & 0o777 for place in (folder, folder.parent)] == [0o700, 0o700]
    monkeypatch.setattr(user_folders.os, "getuid", lambda: 4_000_000)
    (tmp_path / "towerline-4000000").mkdir()
    with pytest.raises(TowerlineError, match=r"belongs to another user. Set TOWERLINE_CACHE"):
        make_cache_folder(tmp_path / "towerline-4000000" / "store")


def test_a_file_in_the_way_is_named_with_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TowerlineError, match=r"the cache cannot be written: .* Set TOWERLINE_CACHE"):
        make_cache_folder(tmp_path / "file" / "store")
    assert not can_be_written(tmp_path / "file" / "store")


def test_what_can_be_written_is_found_without_writing(tmp_path: Path) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert can_be_written(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_temporary_folder_is_removed_at_its_end() -> None:
    with temporary_folder("towerline-test-") as folder:
        (folder / "file").write_text("")
    assert not folder.exists()
