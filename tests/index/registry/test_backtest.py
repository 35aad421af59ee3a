"""A bundle that holds its backtest's: opened, verified, published, fetched and removed as a whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.registry.storage.store import ObjectStore
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.index.serving_bundles import nest, write_bundle


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("plain") / "bundle", items=110, dim=8, seed=1, leaves=4)


@pytest.fixture(scope="module")
def night(plain: Path) -> Path:
    """A night's bundle of 120 items; its backtest's has 110."""
    own = write_bundle(plain.parent / "own", items=120, dim=8, leaves=4)
    return nest(own, plain, plain.parent / "night")


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    folder = request.param == "folder"
    return Registry(tmp_path / "registry" if folder else f"memory://{tmp_path.name}/nested/registry")


def test_held_out_figures_are_asked_of_the_backtest_where_there_is_one(plain: Path, night: Path) -> None:
    opened = Bundle.open(night)
    assert opened.num_items == 120
    assert opened.backtest is not None
    assert opened.backtest.num_items == 110
    assert opened.measured is opened.backtest
    assert opened.backtest.manifest == Bundle.open(plain).manifest
    np.testing.assert_array_equal(opened.backtest.vectors, Bundle.open(plain).vectors)
    alone = Bundle.open(plain)
    assert alone.backtest is None
    assert alone.measured is alone


def test_both_answer(night: Path) -> None:
    for folder, items in ((night, 120), (night / "backtest", 110)):
        assert len(Retriever.open(folder).retrieve({"history": [1000, 1003]}, 200)) == items


@pytest.mark.parametrize("name", ["manifest.json", "vectors.npy", "query_tower.tflite", "vocabulary/items.arrow"])
def test_a_damaged_file_of_the_backtest_is_named(night: Path, tmp_path: Path, name: str) -> None:
    damaged = Path(shutil.copytree(night, tmp_path / "damaged"))
    file = damaged / "backtest" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"backtest/.*{file.name}: its checksum is not the manifest's"):
        Bundle.open(damaged)


@pytest.mark.parametrize("left", ["nothing", "no manifest", "more"])
def test_a_backtest_in_part_is_refused(night: Path, tmp_path: Path, left: str) -> None:
    broken = Path(shutil.copytree(night, tmp_path / "broken"))
    if left == "nothing":
        shutil.rmtree(broken / "backtest")
    elif left == "no manifest":
        (broken / "backtest" / "manifest.json").unlink()
    else:
        (broken / "backtest" / "more").write_text("more")
    with pytest.raises(ArtifactError, match="missing, but the manifest names it" if left != "more" else "not in the"):
        Bundle.open(broken, verify=False)


def test_a_version_that_goes_while_it_is_used_is_not_one_without_a_backtest(night: Path, tmp_path: Path) -> None:
    opened = Bundle.open(Path(shutil.copytree(night, tmp_path / "gone")))
    shutil.rmtree(opened.dir)
    with pytest.raises(ArtifactError):
        opened.measured  # noqa: B018


def test_it_is_published_and_fetched_whole(registry: Registry, night: Path) -> None:
    version = registry.publish(night, facts={"gates": []})
    opened = registry.open(version).bundle
    assert opened.manifest.files == Bundle.open(night).manifest.files
    assert opened.measured.num_items == 110
    assert opened.measured.manifest == Bundle.open(night).measured.manifest
    assert len(Retriever.open(registry.url).retrieve({"history": [1000]}, 200)) == 120


def test_it_is_removed_whole(registry: Registry, night: Path, plain: Path) -> None:
    version = registry.publish(night)
    other = registry.publish(plain, keep=1)
    assert registry.version_names() == [other]
    store = registry.store
    if isinstance(store, ObjectStore):
        assert not [name for name in store._fs.find(store._root) if version in name]
    else:
        assert not [file for file in Path(registry.url).rglob("*") if version in str(file)]
    assert registry.open().bundle.backtest is None
