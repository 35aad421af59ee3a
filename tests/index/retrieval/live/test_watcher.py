"""Following CURRENT: calls continue through swaps, answers name their version, a bad version is skipped."""

from __future__ import annotations

import gc
import logging
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from index.registry.registry import Registry
from index.retrieval.live.source import Source
from index.retrieval.live.version import ServingVersion
from index.retrieval.live.watcher import Watcher
from index.retrieval.retriever import Retriever
from index.search.scann_loading import load
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Effort
from index.settings import TreeSettings
from pipelines.contracts.errors import ArtifactError, TowerlineError
from tests.index import serving_bundles


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    return [
        serving_bundles.write_bundle(tmp_path / f"b{seed}", items=600 + seed, seed=seed, leaves=8) for seed in (0, 1)
    ]


def test_calls_go_on_through_swaps_and_name_their_version(tmp_path: Path, bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    names = [registry.publish(bundle) for bundle in bundles]
    by_version = {
        name: Retriever.open(bundle).retrieve({"history": [1000, 1003]}, 20).rows.tolist()
        for name, bundle in zip(names, bundles, strict=True)
    }
    retriever = Retriever.open(tmp_path / "registry")
    watcher = retriever.watch(0.01)
    failures: list[Exception] = []
    answers: list[str] = []
    done = threading.Event()

    def ask() -> None:
        try:
            while not done.is_set():
                found = retriever.retrieve({"history": [1000, 1003]}, 20)
                assert found.rows.tolist() == by_version[found.version]
                answers.append(found.version)
        except Exception as err:
            failures.append(err)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(6):
        registry.rollback(names[turn % 2])
        until = time.monotonic() + 10
        while retriever.version != names[turn % 2] and time.monotonic() < until:
            time.sleep(0.01)
        assert retriever.version == names[turn % 2]
    done.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert set(answers) == set(names)
    assert watcher.last_error is None
    assert retriever.metrics.registry.get_sample_value("towerline_swaps_total") == 6.0
    retriever.close()


def test_a_version_that_retention_removes_while_it_is_opened_answers(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.publish(bundles[0])
    opened = Source.open

    def opened_and_removed(source: Source, version: str | None = None) -> ServingVersion:
        live = opened(source, version)
        registry.publish(bundles[1], keep=1)
        return live

    monkeypatch.setattr(Source, "open", opened_and_removed)
    retriever = Retriever.open(tmp_path / "registry")
    assert first not in registry.version_names()
    found = retriever.retrieve({"history": [1000, 1003]}, 20)
    monkeypatch.undo()
    assert found.version == first
    assert found.rows.tolist() == Retriever.open(bundles[0]).retrieve({"history": [1000, 1003]}, 20).rows.tolist()
    assert len(retriever.describe(found)) == 20


def test_the_old_version_is_freed(tmp_path: Path, bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.publish(bundles[0])
    retriever = Retriever.open(tmp_path / "registry")
    base = retriever._follower.base
    old = [weakref.ref(part) for part in (retriever._follower, base, base.tower, base.vectors)]
    del base
    registry.publish(bundles[1])
    with retriever:
        watcher = retriever.watch(60.0)
        assert retriever.watch() is watcher
        # At once, without the garbage collector: its runs are rare, and one stops every thread.
        gc.collect()
        gc.disable()
        try:
            assert watcher.check()
            assert not watcher.check()
            assert [part() for part in old] == [None] * 4
        finally:
            gc.enable()
    assert retriever.version != first


def test_a_loaded_tree_is_freed_by_its_last_reference(tmp_path: Path) -> None:
    vectors = serving_bundles.clustered(500, 16, 0)
    ScannSearcher.build(vectors, TreeSettings(leaves=5, leaves_to_search=3, reorder=100)).save(tmp_path)
    loaded = ScannSearcher.load(tmp_path, vectors)
    held, deeper = loaded._searcher, loaded.with_effort(Effort(5, 200))
    del loaded
    assert len(deeper.search(vectors[0], 10).rows) == 10
    assert held.size() == 500
    del deeper
    assert held.size() == 1


@pytest.fixture
def broken(tmp_path: Path, bundles: list[Path]) -> Registry:
    """A registry whose live version is whole when it is opened; then a version follows that cannot be opened."""
    registry = Registry(tmp_path / "registry")
    registry.publish(bundles[0])
    return registry


def damage(registry: Registry, version: str) -> bytes:
    """Overwrites the version's tower, and returns what it was."""
    tower = Path(registry.url) / "versions" / version / "query_tower.tflite"
    content = tower.read_bytes()
    tower.unlink()
    tower.write_bytes(b"x" * len(content))
    return content


def test_a_version_that_cannot_be_opened_is_passed_by(
    broken: Registry, bundles: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    retriever = Retriever.open(broken.url)
    good = retriever.version
    bad = broken.publish(bundles[1])
    damage(broken, bad)
    with retriever, caplog.at_level(logging.ERROR, "towerline.retriever"):
        watcher = retriever.watch(60.0)
        assert not watcher.check()
        assert not watcher.check()
        assert retriever.version == good
        assert isinstance(retriever.last_error, ArtifactError)
        assert "its checksum" in str(retriever.last_error)
        (Path(broken.url) / "CURRENT").unlink()
        assert not watcher.check()
        assert isinstance(retriever.last_error, TowerlineError)
        third = broken.publish(bundles[1])
        assert watcher.check()
        assert retriever.version == third
        assert retriever.last_error is None
    assert "the live one stays" in caplog.text
    assert retriever.metrics.registry.get_sample_value("towerline_failed_swaps_total") == 2.0


def test_a_version_that_could_not_be_opened_is_tried_again_after_longer_waits(
    broken: Registry, bundles: list[Path]
) -> None:
    retriever = Retriever.open(broken.url)
    seconds = 0.0
    watcher = Watcher(
        retriever._source, retriever._move, lambda: retriever.version, lambda: None, retriever.metrics, 10.0,
        lambda: seconds,
    )  # fmt: skip
    bad = broken.publish(bundles[1])
    content = damage(broken, bad)
    tried_at = []
    while seconds < 3600.0:
        failures = retriever.metrics.registry.get_sample_value("towerline_failed_swaps_total")
        assert not watcher.check()
        if retriever.metrics.registry.get_sample_value("towerline_failed_swaps_total") != failures:
            tried_at.append(seconds)
        seconds += 10.0
    # 10 s doubled after each failure, at most ten minutes.
    assert tried_at == [0, 20, 60, 140, 300, 620, 1220, 1820, 2420, 3020]
    (Path(broken.url) / "versions" / bad / "query_tower.tflite").write_bytes(content)
    seconds = 3620.0
    assert watcher.check()
    assert retriever.version == bad
    assert watcher.last_error is None


def test_a_bundle_has_no_current_to_follow(bundles: list[Path]) -> None:
    with pytest.raises(ArtifactError, match="no CURRENT"):
        Retriever.open(bundles[0]).watch()


def test_scann_loaded_aside_answers_like_the_ordinary_one(tmp_path: Path) -> None:
    vectors = serving_bundles.clustered(2000, 16, 0)
    built = ScannSearcher.build(vectors, TreeSettings(leaves=10, leaves_to_search=3, reorder=100))
    built.save(tmp_path)
    aside = load(tmp_path)
    (tmp_path / "config.pbtxt").unlink()
    ordinary = load(tmp_path)
    for query in vectors[:50]:
        for one, other in zip(aside.search(query, 20, 100, 3), ordinary.search(query, 20, 100, 3), strict=True):
            np.testing.assert_array_equal(one, other)
    assert aside.size() == 2000

    (tmp_path / "hashed_dataset.npy").unlink()
    with pytest.raises(RuntimeError):
        load(tmp_path)
