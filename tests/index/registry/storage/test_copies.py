"""This machine's copies of an object store's versions: whole, bounded, and kept while they are used."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from index.registry.registry import Opened, Registry
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.forks import exit_code, forked
from tests.index.serving_bundles import write_bundle

NIGHTS = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("copies") / "bundle", items=60, dim=8)


def machine(registry: Registry, cache: Path) -> Registry:
    """The registry as another machine sees it."""
    store = registry.store
    assert isinstance(store, ObjectStore)
    return Registry("", store=ObjectStore(store._fs, store._root, store.url, cache))


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return machine(Registry(f"memory://{tmp_path.name}/copies"), tmp_path / "cache")


def copies(registry: Registry) -> list[str]:
    return registry.store.copies("versions")


def test_a_reader_keeps_the_live_version_and_the_one_before(registry: Registry, bundle: Path, tmp_path: Path) -> None:
    reader = machine(registry, tmp_path / "reader")
    names = []
    live: Opened | None = None
    for _ in range(NIGHTS):
        names.append(registry.publish(bundle, keep=2))
        live = reader.open()
        assert set(copies(reader)) <= set(names[-2:])
        registry.open()
        assert set(copies(registry)) <= set(names[-2:])
    assert live is not None
    assert live.version == names[-1]
    hidden = [name for name in os.listdir(Path(live.bundle.dir).parent) if name.startswith(".")]
    assert sorted(hidden) == sorted(f".{name}.used" for name in names[-2:])


def test_a_copy_in_use_stays_and_goes_when_nobody_uses_it(registry: Registry, bundle: Path) -> None:
    first = registry.publish(bundle)
    opened = registry.open()
    inside = opened.bundle.dir
    for _ in range(3):
        registry.publish(bundle, keep=2)
        registry.open()
    assert first in copies(registry)
    assert (inside / "items.parquet").is_file()
    del opened
    registry.open()
    assert first not in copies(registry)
    assert len(copies(registry)) == 2


HOLDER = """
import sys
from pathlib import Path
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
store = ObjectStore(None, "copies", sys.argv[1], Path(sys.argv[2]))
held = store.hold(f"versions/{sys.argv[3]}")
print("held", flush=True)
sys.stdin.read()
"""


def test_a_copy_in_use_by_another_process_stays_until_that_ends(
    registry: Registry, bundle: Path, tmp_path: Path
) -> None:
    first = registry.publish(bundle)
    registry.open()
    command = [sys.executable, "-c", HOLDER, registry.url, str(tmp_path / "cache"), first]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for _ in range(2):
            registry.publish(bundle)
            registry.open()
        assert len(copies(registry)) == 3
        holder.send_signal(signal.SIGKILL)
    registry.open()
    assert first not in copies(registry)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "stray"])
def test_a_damaged_copy_is_fetched_again(
    registry: Registry, bundle: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry.publish(bundle)
    folder = registry.open().bundle.dir
    file = folder / "vectors.npy"
    content = file.read_bytes()
    if damage == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text("{")
    else:
        (folder / "stray").write_text("")
    with caplog.at_level(logging.WARNING, "towerline.registry"):
        assert registry.open().bundle.num_items == 60
    assert "damaged: fetched again" in caplog.text
    assert file.read_bytes() == content


def test_what_arrives_damaged_is_no_copy(registry: Registry, bundle: Path) -> None:
    version = registry.publish(bundle)
    store = registry.store
    assert isinstance(store, ObjectStore)
    place = store._place(f"versions/{version}/vectors.npy")
    whole = store._fs.cat_file(place)
    store._fs.pipe_file(place, whole[:-1] + bytes([whole[-1] ^ 1]))
    for _ in range(2):
        with pytest.raises(ArtifactError, match=r"vectors\.npy: its checksum is not the manifest's"):
            registry.open()
    assert copies(registry) == []
    store._fs.pipe_file(place, whole)
    assert registry.open().version == version


def test_what_killed_downloads_left_is_removed(registry: Registry, bundle: Path, tmp_path: Path) -> None:
    version = registry.publish(bundle)
    folder = registry.open().bundle.dir.parent
    half = folder / ".20200101T000000Z-0.0123456789abcdef0123456789abcdef.draft"
    half.mkdir()
    (half / "vectors.npy").write_bytes(b"half")
    assert registry.open().version == version
    assert not half.exists()


def test_a_forked_child_reads_an_object_store_by_its_own_connection(registry: Registry, bundle: Path) -> None:
    registry.publish(bundle)
    store = registry.store
    assert isinstance(store, ObjectStore)
    parents = store._fs

    def work() -> None:
        assert store._opened is parents
        assert store._fs is not None
        assert store._opened_by == os.getpid()

    assert exit_code(forked(work)) == 0


def test_a_server_that_follows_eight_nights_keeps_two_copies(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "writer"))
    writer = Registry(f"memory://{tmp_path}/served")
    names = [writer.publish(bundle, keep=2)]
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "server"))
    reader = Registry(writer.url)
    with Retriever.open(writer.url) as retriever:
        watcher = retriever.watch(interval_seconds=3600.0)
        for _ in range(NIGHTS):
            names.append(writer.publish(bundle, keep=2))
            assert watcher.check()
            assert len(retriever.retrieve({"history": [1000]}, 5)) == 5
            assert copies(reader) == names[-2:]
