"""How a follower reads the log: what is missing, what cannot be read, and how often it is asked."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pytest

from index.registry.delta_log import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, DeltaLog
from index.registry.registry import Registry
from index.retrieval.live import delta_follower
from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.retriever import Retriever
from tests.index import serving_bundles

ITEMS = 100
RECORD = {"history": [1000, 1003]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving_bundles.write_bundle(tmp_path_factory.mktemp("log") / "bundle", items=ITEMS)


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    opened = Registry(tmp_path / "registry")
    opened.publish(bundle)
    return opened


def write(registry: Registry, change: str, *item_ids: int) -> None:
    rows = {
        ID_COLUMN: pa.array(item_ids, pa.int64()),
        CHANGE_COLUMN: pa.repeat(change, len(item_ids)),
        SAID_COLUMN: pa.nulls(len(item_ids), pa.list_(pa.string())),
    }
    DeltaLog(registry.store).append(pa.table(rows))


def follower(retriever: Retriever) -> DeltaFollower:
    assert isinstance(retriever._follower, DeltaFollower)
    return retriever._follower


def missing(retriever: Retriever) -> set[int]:
    """Items that no answer shows."""
    shown = set(retriever.retrieve(RECORD, ITEMS).item_ids.tolist())
    assert shown == set(retriever.retrieve({}, ITEMS).item_ids.tolist())
    return set(range(1000, 1000 + 3 * ITEMS, 3)) - shown


@pytest.mark.parametrize("how", ["look", "call"])
def test_of_entries_removed_unread_the_pauses_apply(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    retriever = Retriever.open(registry.url)
    write(registry, "pause", 1000, 1003)
    write(registry, "remove", 1006)
    assert missing(retriever) == {1000, 1003, 1006}
    follower(retriever).wait()
    write(registry, "resume", 1003)
    write(registry, "pause", 1009)
    write(registry, "remove", 1012)
    assert DeltaLog(registry.store).prune(needed_after=10, written_before_us=2**62)
    write(registry, "pause", 1015)
    assert missing(retriever) == {1000, 1003, 1006}
    with caplog.at_level(logging.ERROR, "towerline.retriever"):
        if how == "look":
            follower(retriever).look()
        else:
            monkeypatch.setattr(delta_follower.time, "monotonic", lambda: 1e12)
            retriever.retrieve(RECORD, 1)
    # The removal of 1012 is lost, and that is said; what was applied before stays.
    assert "has not read all before they were removed" in caplog.text
    assert {1000, 1006, 1009, 1015} <= missing(retriever)
    follower(retriever).wait()
    assert missing(retriever) == {1000, 1006, 1009, 1015}
    assert retriever.delta_sequence == 6


def test_a_log_that_cannot_be_read_is_asked_again_a_second_later(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = Retriever.open(registry.url)
    write(registry, "pause", 1000)
    now = [1e6]
    monkeypatch.setattr(delta_follower.time, "monotonic", lambda: now[0])
    follower(retriever)._look_at = 1e9
    asked = []

    def refuse(log: DeltaLog, sequence: int) -> None:
        asked.append(sequence)
        raise PermissionError(13, "no")

    with mock.patch.object(DeltaLog, "at", refuse):
        for _ in range(5):
            assert missing(retriever) == set()
        assert asked == [1]
        now[0] += 1.5
        assert missing(retriever) == set()
        assert asked == [1, 1]
    now[0] += 1.5
    assert missing(retriever) == {1000}
    assert "cannot be read" in caplog.text


def test_a_damaged_entry_is_read_once_and_passed(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    retriever = Retriever.open(registry.url)
    write(registry, "pause", 1000)
    (Path(registry.url) / "deltas" / "00000002.delta").write_bytes(b"torn")
    read: list[int] = []
    at: Callable[[DeltaLog, int], object] = DeltaLog.at
    monkeypatch.setattr(DeltaLog, "at", lambda log, sequence: (read.append(sequence), at(log, sequence))[1])
    for _ in range(3):
        assert missing(retriever) == {1000}
    write(registry, "pause", 1003)
    for _ in range(3):
        assert missing(retriever) == {1000, 1003}
    assert read == [1, 2, 3]


def test_what_cannot_be_laid_out_hides_ads_all_the_same(
    registry: Registry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    retriever = Retriever.open(registry.url)
    write(registry, "pause", 1000)
    with monkeypatch.context() as patched:
        patched.setattr(delta_follower, "with_state", mock.Mock(side_effect=MemoryError))
        assert missing(retriever) == {1000}
        follower(retriever).wait()
    assert missing(retriever) == {1000}
    assert retriever.delta_sequence == 0
    assert "cannot be laid out" in caplog.text
    write(registry, "pause", 1003)
    assert missing(retriever) == {1000, 1003}
    follower(retriever).wait()
    assert retriever.delta_sequence == 2


def test_a_named_version_follows_the_log_that_began_on_another(registry: Registry, bundle: Path) -> None:
    first = registry.current()
    write(registry, "pause", 1000)
    registry.publish(bundle)
    old = Retriever.open(registry.url, version=first)
    new = Retriever.open(registry.url)
    write(registry, "resume", 1000)
    write(registry, "pause", 1003)
    for retriever in (old, new, Retriever.open(registry.url, version=first)):
        retriever.retrieve(RECORD, 1)
        follower(retriever).wait()
        assert missing(retriever) == {1003}
