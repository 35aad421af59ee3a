"""Names read from outside: refused before they become a path, and what is no version is ignored."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from index.registry.registry import CURRENT, Registry
from index.registry.storage.object_store import ObjectStore
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import fingerprint_of
from tests.index.serving_bundles import write_bundle

NO_VERSIONS = ["../outside", "/etc", "..", ".", "", "a/b", "a\\b", "..\\x", "a\0b", ".hidden", " ", "x" * 300]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("names") / "bundle", items=60, dim=8)


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    return Registry(tmp_path / "registry" if request.param == "folder" else f"memory://{tmp_path.name}/registry")


def write(registry: Registry, name: str, content: bytes) -> None:
    if isinstance(registry.store, ObjectStore):
        registry.store._fs.pipe_file(registry.store._place(name), content)
        return
    file = Path(registry.url) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", NO_VERSIONS)
def test_a_version_that_is_no_name_is_refused_before_anything_is_written(
    registry: Registry, bundle: Path, tmp_path: Path, name: str
) -> None:
    live = registry.publish(bundle)
    before = files_below(tmp_path)
    for change in (registry.open, registry.rollback):
        with pytest.raises(ArtifactError, match="expected the name of a version, got"):
            change(name)
    assert [path for path in files_below(tmp_path) if path not in before] in ([], ["cache"])
    assert registry.current() == live


@pytest.mark.parametrize("name", [*NO_VERSIONS, "\udcff".encode(errors="surrogateescape").decode("latin-1")])
def test_a_current_that_is_no_name_is_refused_and_a_rollback_by_name_mends_it(
    registry: Registry, bundle: Path, name: str
) -> None:
    version = registry.publish(bundle)
    write(registry, CURRENT, name.encode() if name != "ÿ" else b"\xff/")
    for ask in (registry.current, registry.open, lambda: registry.publish(bundle), registry.rollback):
        with pytest.raises(ArtifactError, match="CURRENT: expected the name of a version, got"):
            ask()
    assert [found.live for found in registry.versions()] == [False]
    assert registry.rollback(version) == registry.current() == version


def test_a_current_with_other_line_ends_is_read(registry: Registry, bundle: Path) -> None:
    version = registry.publish(bundle)
    for text in (version, f"{version}\r\n", f"{version} \n"):
        write(registry, CURRENT, text.encode())
        assert registry.open().version == version


@pytest.mark.parametrize("name", ["../escaped.bin", "/tmp/escaped.bin", "a/../../escaped.bin", "..\\escaped", "a\0b"])
def test_a_manifest_in_an_object_store_cannot_name_a_file_outside(bundle: Path, tmp_path: Path, name: str) -> None:
    registry = Registry("", store=_memory(tmp_path))
    version = registry.publish(bundle)
    raw = json.loads(registry.store.manifest_bytes(f"versions/{version}"))
    raw["files"] = {name: {"bytes": 3, "xxh128": "0"}, **raw["files"]}
    del raw["seal"]
    write(registry, f"versions/{version}/manifest.json", json.dumps({**raw, "seal": fingerprint_of(raw)}).encode())
    before = files_below(tmp_path)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        registry.open()
    left = [path for path in files_below(tmp_path) if path not in before and not path.endswith(".used")]
    assert all(not Path(path).suffix for path in left), "a file was written"


def _memory(tmp_path: Path) -> ObjectStore:
    opened = Registry(f"memory://{tmp_path.name}/names").store
    assert isinstance(opened, ObjectStore)
    return ObjectStore(opened._fs, opened._root, opened.url, tmp_path / "cache")


def test_what_is_no_version_is_ignored_and_named_once(
    registry: Registry, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = registry.publish(bundle)
    for name in ("backup/manifest.json", "notes.txt", "99999999T999999Z-0/manifest.json", "20260101T000000Z/x"):
        write(registry, f"versions/{name}", b"{}")
    with caplog.at_level(logging.WARNING, "towerline.registry"):
        second = registry.publish(bundle, keep=1)
        third = registry.publish(bundle, keep=2)
    assert registry.version_names() == [second, third]
    assert first < second < third
    assert registry.rollback() == second
    named = [record.getMessage() for record in caplog.records if "not a version: ignored" in record.getMessage()]
    assert sorted(line.split(":")[-3].rsplit("/", 1)[-1] for line in named) == [
        "20260101T000000Z", "99999999T999999Z-0", "backup", "notes.txt",
    ]  # fmt: skip


def test_a_version_with_a_damaged_manifest_is_named_and_blocks_nobody(
    registry: Registry, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = registry.publish(bundle), registry.publish(bundle)
    write(registry, f"versions/{first}/manifest.json", b"{")
    with caplog.at_level(logging.WARNING, "towerline.registry"):
        assert [version.name for version in registry.versions()] == [second]
    assert first in caplog.text
    third = registry.publish(bundle, keep=2)
    assert registry.version_names() == [second, third]


def test_names_go_on_from_a_version_of_the_future(registry: Registry, bundle: Path) -> None:
    version = registry.publish(bundle)
    ahead = f"29991231T235959Z-{version.split('-')[1]}"
    write(registry, f"versions/{ahead}/manifest.json", registry.store.manifest_bytes(f"versions/{version}"))
    assert registry.publish(bundle).startswith("30000101T000000Z-")
