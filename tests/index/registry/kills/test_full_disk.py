"""A full disk: whatever was being written, what was live stays live, and with room again the same command succeeds."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from index.building import compaction
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.registry import Registry
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import TowerlineError
from tests.index.nights import config, tables_of, write_nights
from tests.index.serving_bundles import write_bundle
from towerline.jobs import refresh

ROOM = 3 << 20


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A tmpfs of 3 MiB, or of as many bytes as the test asks for."""
    room = getattr(request, "param", ROOM)
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here: no small disk to fill")
    if mounted.returncode:
        pytest.skip(f"mounting a tmpfs is not allowed here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [write_bundle(root / f"bundle-{seed}", items=2000, dim=64, seed=seed) for seed in range(2)]


def fill(disk: Path) -> Path:
    """Leaves no room at all."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)
    return ballast


def test_publishing_onto_a_full_disk_leaves_the_live_version(small_disk: Path, bundles: list[Path]) -> None:
    registry = Registry(small_disk / "registry")
    live = registry.publish(bundles[0])
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        registry.publish(bundles[1])
    assert registry.current() == live
    assert registry.version_names() == [live]
    assert len(Retriever.open(registry.url).retrieve({"history": [1000]}, 5)) == 5
    ballast.unlink()
    assert registry.publish(bundles[1]) == registry.current() != live


def test_a_delta_onto_a_full_disk_is_not_half_there(small_disk: Path, bundles: list[Path]) -> None:
    registry = Registry(small_disk / "registry")
    registry.publish(bundles[0])
    ballast = fill(small_disk)
    pause = pa.table({"item_id": [1003], "change": ["pause"]})
    with pytest.raises(OSError, match="No space left"):
        delta_writer.apply(registry.url, pause)
    assert DeltaLog(registry.store).last() == 0
    ballast.unlink()
    assert delta_writer.apply(registry.url, pause).sequence == 1


def hidden_below(folder: Path) -> list[str]:
    """What a failed writer left."""
    return [file.name for file in folder.rglob(".*") if file.name != ".lock"]


def test_a_disk_that_is_full_when_current_moves_leaves_it(
    small_disk: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(small_disk / "registry")
    live = registry.publish(bundles[0])
    swap, ballast = registry.store.swap, small_disk / "ballast"

    def full(name: str, before: bytes | None, content: bytes) -> bool:
        fill(small_disk)
        return swap(name, before, content)

    with monkeypatch.context() as patched:
        patched.setattr(registry.store, "swap", full)
        with pytest.raises(OSError, match="No space left"):
            registry.publish(bundles[1])
    assert registry.current() == live
    assert registry.version_names() == [live]
    assert registry.store.files("unfinished") == []
    assert hidden_below(small_disk) == []
    ballast.unlink()
    assert registry.publish(bundles[1]) == registry.current() != live


def test_compacting_onto_a_full_disk_leaves_the_live_version(small_disk: Path, bundles: list[Path]) -> None:
    registry = Registry(small_disk / "registry")
    live = registry.publish(bundles[0])
    delta_writer.apply(registry.url, pa.table({"item_id": [1003], "change": ["remove"]}))
    ballast = fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        compaction.run(registry.url, small_disk / "compacted")
    assert registry.current() == live
    assert hidden_below(small_disk) == []
    ballast.unlink()
    assert compaction.run(registry.url, small_disk / "compacted", keep=1) == registry.current() != live
    assert registry.open().bundle.num_items == 1999


def test_a_full_cache_leaves_no_half_copy(small_disk: Path, bundles: list[Path], tmp_path: Path) -> None:
    fs = MemoryFileSystem()
    writer = Registry("", store=ObjectStore(fs, f"/{tmp_path}", "memory://full", tmp_path / "cache"))
    reader = Registry("", store=ObjectStore(fs, f"/{tmp_path}", "memory://full", small_disk / "cache"))
    live = writer.publish(bundles[0])
    ballast = fill(small_disk)
    with pytest.raises((OSError, TowerlineError), match="No space left"):
        reader.open()
    ballast.unlink()
    assert reader.open().version == live
    fill(small_disk)
    second = writer.publish(bundles[1])
    with pytest.raises(OSError, match="No space left"):
        reader.open()
    assert reader.store.copies("versions") == [live]
    assert [name for name in hidden_below(small_disk) if not name.endswith(".used")] == []
    ballast.unlink()
    assert reader.open().version == second


def test_a_rollback_onto_a_full_disk_leaves_current(small_disk: Path, bundles: list[Path]) -> None:
    registry = Registry(small_disk / "registry")
    first = registry.publish(bundles[0])
    second = registry.publish(bundles[1])
    fill(small_disk)
    try:
        registry.rollback()
    except OSError:
        assert registry.current() == second
    else:
        assert registry.current() == first


@pytest.mark.parametrize("small_disk", [24 << 20], indirect=True)
def test_a_refresh_onto_a_full_disk_goes_on_when_there_is_room(small_disk: Path, tmp_path: Path) -> None:
    write_nights(tmp_path / "nights", 2)
    settings, night = config(small_disk / "run"), 0
    with tables_of(tmp_path / "nights", lambda: night):
        live = refresh.run(settings).version
        night = 1
        ballast = fill(small_disk)
        with pytest.raises(OSError, match="No space left"):
            refresh.run(settings)
        assert Registry(settings.registry).current() == live
        assert len(Retriever.open(settings.registry).retrieve({"history": [1000]}, 5)) == 5
        ballast.unlink()
        done = refresh.run(settings)
    assert done.published
    assert done.version != live
