"""A registry of the old format: its changes are in force before and after the first writer took them over.

``golden/registry-v1`` was written by the last code that kept a log for each version; its version is the golden bundle
of format 1. By hand: ads 5 and 6 are new, 1003 is paused and 1006 removed; then 1003 is resumed, 1009 paused, 1012 gets
a price; then 1015 is paused and 6 removed.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from index.inference.item_embedder import ItemEmbedder
from index.publishing.publish import rollback
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.registry.storage.folder_store import FolderStore
from index.retrieval.retriever import Retriever

GOLDEN = Path(__file__).parent / "golden"
VERSION = "20261128T181007Z-6b5f52e7"
PAUSED, REMOVED, NEW = {1009, 1015}, {1006, 6}, {5}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    shutil.copytree(GOLDEN / "registry-v1", tmp_path / "registry")
    shutil.copytree(GOLDEN / "bundle-v1", tmp_path / "registry" / "versions" / VERSION)
    return Registry(tmp_path / "registry")


def state_of(registry: Registry, version: str | None = None) -> DeltaState:
    bundle = registry.open(version).bundle
    return DeltaState.opened(bundle, DeltaLog(registry.store), ItemEmbedder(bundle))


def check(registry: Registry, version: str | None = None) -> None:
    """That everything by hand is in force."""
    state = state_of(registry, version)
    assert state.paused_ids == PAUSED
    listed = zip(state.item_ids().to_pylist(), state.gone.tolist(), strict=True)
    shown = {item_id for item_id, gone in listed if not gone}
    assert shown >= NEW
    assert not shown & REMOVED
    (row,) = state.rows_of(pa.array([1012])).tolist()
    known = state.fresh_items.to_pylist()[row - state.base_items]
    before = {ad["item_id"]: ad for ad in state.bundle.items.to_pylist()}[1012]
    assert known == {**before, "price": 7.25}
    found = Retriever.open(registry.url, version).retrieve({"history": [1000]}, 100).item_ids.tolist()
    assert set(found) == shown - PAUSED


def files(registry: Registry) -> list[str]:
    return registry.store.files("deltas")


def test_readers_honour_the_old_changes_and_write_nothing(registry: Registry) -> None:
    check(registry)
    assert DeltaLog(registry.store).last() == 4
    assert files(registry) == []


def test_the_first_change_takes_the_old_ones_over(registry: Registry) -> None:
    retriever = Retriever.open(registry.url)
    applied = delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["pause"]}))
    assert applied.sequence == 5
    assert files(registry) == [f"0000000{number}.delta" for number in range(1, 6)]
    found = retriever.retrieve({"history": [1000]}, 100).item_ids.tolist()
    assert not set(found) & {1018, *PAUSED, *REMOVED}
    delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["resume"]}))
    check(registry)


def test_the_first_publish_and_the_first_rollback_take_the_old_changes_over(registry: Registry, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / "bundle-v1", tmp_path / "bundle")
    second = registry.publish(tmp_path / "bundle")
    assert files(registry) == [f"0000000{number}.delta" for number in range(1, 5)]
    for version in (None, VERSION, second):
        check(registry, version)
    assert rollback(registry.url) == VERSION
    check(registry)


@pytest.mark.parametrize("kill", range(5))
def test_a_takeover_that_is_killed_is_taken_up_again(registry: Registry, kill: int) -> None:
    """Killed after ``kill`` files: readers see the same before, in between and after; nothing is written twice."""
    create, done = FolderStore.create, []

    def dying(store: FolderStore, name: str, content: bytes) -> bool:
        if len(done) == kill:
            raise KeyboardInterrupt
        done.append(name)
        return create(store, name, content)

    with mock.patch.object(FolderStore, "create", dying), pytest.raises(KeyboardInterrupt):
        delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["pause"]}))
    assert len(files(registry)) == kill
    check(registry)
    assert delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["pause"]})).sequence == 5
    delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["resume"]}))
    check(registry)


def test_a_damaged_old_entry_is_named_and_blocks_nothing(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    place = Path(registry.url) / "deltas" / VERSION / "00000001"
    (place / "raw.parquet").write_bytes(b"damaged")
    assert state_of(registry).paused_ids == PAUSED
    assert "entry 1 is left out" in caplog.text
    assert delta_writer.apply(registry.url, pa.table({"item_id": [1018], "change": ["pause"]})).sequence == 5
    state = state_of(registry)
    assert state.paused_ids == {*PAUSED, 1018}
    assert state.rows_of(pa.array([5])).tolist() == [-1]
