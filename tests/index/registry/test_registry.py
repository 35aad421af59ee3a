"""The registry: whole versions, one of them live, on a folder and on an object store."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from index.registry.bundle import Bundle
from index.registry.registry import CURRENT, Registry
from index.registry.storage.folder_store import FolderStore
from index.registry.storage.object_store import ObjectStore
from index.registry.storage.store import open_store
from pipelines.contracts.errors import ArtifactError, TowerlineError
from pipelines.contracts.manifest import write_artifact
from pipelines.locks import file_lock
from tests.index.serving_bundles import write_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [write_bundle(root / f"bundle-{seed}", items=200 + seed, seed=seed) for seed in range(3)]


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    if request.param == "folder":
        yield Registry(tmp_path / "registry")
        return
    url = f"memory://{tmp_path.name}/registry"
    opened = Registry(url)
    assert isinstance(opened.store, ObjectStore)
    yield opened


def test_what_is_published_is_live_and_the_bundle_stays(registry: Registry, bundles: list[Path]) -> None:
    before = sorted(file.name for file in bundles[0].iterdir())
    version = registry.publish(bundles[0], facts={"reason": "first"})
    opened = registry.open()
    assert opened.version == version == registry.current()
    assert opened.bundle.num_items == 200
    assert opened.bundle.manifest.facts["reason"] == "first"
    staged = Bundle.open(bundles[0]).manifest
    assert "reason" not in staged.facts
    assert opened.bundle.manifest.fingerprint == staged.fingerprint
    assert version.endswith(staged.fingerprint[:8])
    assert sorted(file.name for file in bundles[0].iterdir()) == before
    assert sorted(entry.name for entry in bundles[0].parent.iterdir() if entry.name.startswith(".")) == []


def test_versions_are_listed_by_age_with_the_live_one_marked(registry: Registry, bundles: list[Path]) -> None:
    names = [registry.publish(bundle) for bundle in bundles]
    assert names == sorted(names)
    listed = registry.versions()
    assert [version.name for version in listed] == names
    assert [version.live for version in listed] == [False, False, True]
    assert [version.items for version in listed] == [200, 201, 202]


def test_rollback_goes_back_one_or_to_a_named_version(registry: Registry, bundles: list[Path]) -> None:
    names = [registry.publish(bundle) for bundle in bundles]
    assert registry.rollback() == names[1]
    assert registry.open().bundle.num_items == 201
    assert registry.rollback() == names[0]
    with pytest.raises(ArtifactError, match="is the oldest version"):
        registry.rollback()
    assert registry.rollback(names[2]) == names[2]
    with pytest.raises(ArtifactError, match=f"expected version 'nope', found {names[0]}"):
        registry.rollback("nope")
    assert registry.current() == names[2]


def test_retention_drops_the_oldest_but_never_the_live_one(registry: Registry, bundles: list[Path]) -> None:
    first = registry.publish(bundles[0])
    second = registry.publish(bundles[1])
    registry.rollback(first)
    assert registry.prune(1) == []
    third = registry.publish(bundles[2], keep=2)
    assert registry.version_names() == [second, third]


def test_a_registry_without_current_says_what_to_do(registry: Registry) -> None:
    with pytest.raises(ArtifactError, match=r"CURRENT: missing: nothing has been published here"):
        registry.current()
    with pytest.raises(ArtifactError, match="missing: nothing has been published"):
        registry.open()
    with pytest.raises(ArtifactError, match="missing: nothing has been published"):
        registry.rollback()
    assert registry.versions() == []


def test_a_damaged_bundle_is_not_published(registry: Registry, bundles: list[Path], tmp_path: Path) -> None:
    live = registry.publish(bundles[0])
    damaged = Path(shutil.copytree(bundles[1], tmp_path / "damaged"))
    content = bytearray((damaged / "vectors.npy").read_bytes())
    content[500] ^= 1
    (damaged / "vectors.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"vectors\.npy: its checksum"):
        registry.publish(damaged)
    assert registry.version_names() == [live] == [registry.current()]


def test_a_bundle_that_fails_its_probes_is_not_published(
    registry: Registry, bundles: list[Path], tmp_path: Path
) -> None:
    """Every checksum is right, but the vectors are not those that the probes were made with."""
    mixed = tmp_path / "mixed"
    with write_artifact(mixed, kind="bundle") as draft:
        shutil.copytree(bundles[0], draft.dir, dirs_exist_ok=True)
        np.save(draft.dir / "vectors.npy", -np.load(bundles[0] / "vectors.npy"))
        (draft.dir / "manifest.json").unlink()
    with pytest.raises(ArtifactError, match="golden probe 0: expected scores within"):
        registry.publish(mixed)
    assert registry.version_names() == []
    assert registry.current_or_none() is None


def test_a_rollback_to_a_damaged_version_leaves_the_live_one(registry: Registry, bundles: list[Path]) -> None:
    names = [registry.publish(bundle) for bundle in bundles[:2]]
    if isinstance(registry.store, ObjectStore):
        registry.store._fs.pipe_file(registry.store._place(f"versions/{names[0]}/items.parquet"), b"damaged")
    else:
        file = registry.store.fetch(f"versions/{names[0]}") / "items.parquet"
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=r"items\.parquet: expected \d+ bytes, found"):
        registry.rollback()
    assert registry.current() == names[1]


def test_abandoned_drafts_of_killed_writers_are_swept(tmp_path: Path, bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    registry.publish(bundles[0])
    abandoned = tmp_path / "registry" / "versions" / ".20260101T000000Z-0.999999.abcdef01.draft"
    shutil.copytree(bundles[0], abandoned)
    assert len(registry.version_names()) == 1
    registry.publish(bundles[1])
    assert not abandoned.exists()


def test_an_object_stores_version_counts_once_its_manifest_is_there(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"memory://{tmp_path.name}/half")
    version = registry.publish(bundles[0])
    store = registry.store
    assert isinstance(store, ObjectStore)
    store._fs.rm_file(store._place(f"versions/{version}/manifest.json"))
    assert registry.version_names() == []


def _hold(file: str, ready: multiprocessing.synchronize.Event) -> None:
    with file_lock(Path(file), 0):
        ready.set()
        multiprocessing.Event().wait(30)


def test_a_lock_is_refused_while_held_and_free_when_its_holder_is_killed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path / "lock"), ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(TowerlineError, match=f"held by process {holder.pid}"), file_lock(tmp_path / "lock", 0.0):
        pass
    holder.kill()
    holder.join()
    with file_lock(tmp_path / "lock", 5.0):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(TowerlineError, match="nope://x/y: cannot be opened"):
        open_store("nope://x/y")


def test_a_file_url_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_store(f"file://{tmp_path}"), FolderStore)
    assert FolderStore(tmp_path).swap(CURRENT, None, b"x\n")
    assert open_store(f"file://{tmp_path}").read_bytes(CURRENT) == b"x\n"
