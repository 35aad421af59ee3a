"""A full disk: whatever was being written, what was live stays live, and with room again the same command succeeds."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
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
