"""Several machines, each a process with its own cache and lock, on one object store: nothing is lost or doubled."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from index.registry.delta_log import DeltaLog
from index.registry.registry import Registry
from tests.index.registry.storage.machine import KEEP
from tests.index.serving_bundles import write_bundle
from tests.s3_server import environment_of, options_of, serving

pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 server to speak to")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

PIPES: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("machines") / "bundle", items=40, dim=8)


@pytest.fixture
def url(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(fsspec.config.conf, "s3", options_of(endpoint))
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    bucket = tmp_path.name.replace("_", "-")
    s3fs.S3FileSystem(**options_of(endpoint)).mkdir(bucket, region_name="eu-west-1")
    return f"s3://{bucket}/registry"


def run(url: str, endpoint: str, folder: Path, machines: int, *work: str) -> list[dict[str, Any]]:
    """What each machine was told, after all have worked at once."""
    started = []
    for number in range(1, machines + 1):
        own = {**os.environ, **environment_of(endpoint), "TOWERLINE_CACHE": str(folder / f"machine-{number}")}
        command = [sys.executable, "-m", "tests.index.registry.storage.machine", url, str(number), *work]
        started.append(subprocess.Popen(command, env=own, cwd=ROOT, text=True, **PIPES))
    for one in started:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n", one.communicate()[1]
    for one in started:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    told = []
    for one in started:
        out, errors = one.communicate(timeout=3600)
        assert one.returncode == 0, errors[-3000:]
        told.append(json.loads(out.splitlines()[-1]))
    return told


def entries_of(url: str) -> list[tuple[int, int, str]]:
    found = []
    for entry in DeltaLog(Registry(url).store).after(0):
        (row,) = entry.rows.to_pylist()
        found.append((entry.sequence, row["__item_id__"], row["__change__"]))
    return found


def appends(url: str, endpoint: str, folder: Path, count: int) -> int:
    """How often the next entry is of the other machine."""
    told = run(url, endpoint, folder, 2, "append", str(count // 2))
    done = sorted(tuple(one) for machine in told for one in machine["appended"])
    assert len(done) == count
    assert entries_of(url) == done
    assert [sequence for sequence, *_ in done] == list(range(1, count + 1))
    writers = [item_id // 1_000_000 for _, item_id, _ in done]
    return sum(before != after for before, after in itertools.pairwise(writers))


def test_appends_of_two_machines_are_all_there_once(url: str, endpoint: str, tmp_path: Path) -> None:
    appends(url, endpoint, tmp_path, 40)


@pytest.mark.slow
def test_five_hundred_appends_of_two_machines_are_all_there_once(url: str, endpoint: str, tmp_path: Path) -> None:
    assert appends(url, endpoint, tmp_path, 500) > 25


def mixture(url: str, endpoint: str, folder: Path, bundle: Path, count: int) -> None:
    told = run(url, endpoint, folder, 2, "mixed", str(count), str(bundle))
    done = sorted(tuple(one) for machine in told for one in machine["appended"])
    assert entries_of(url) == done
    registry = Registry(url)
    live = registry.current()
    # Every move of CURRENT began where another had ended: none was undone by one that did not know of it.
    moves = [tuple(move) for machine in told for move in machine["moves"]]
    ended, began = Counter(after for _, after in moves), Counter(before for before, _ in moves)
    assert ended - began == Counter([live])
    assert began - ended == Counter([None])
    names = registry.version_names()
    assert live in names
    assert len(names) <= KEEP + 2  # Each machine may have looked before the other's last version was there.
    for name in names:
        assert registry.open(name).bundle.num_items == 40
    published = Counter(after for before, after in moves if before is None or after > before)
    assert set(names) <= set(published)
    registry.publish(bundle, keep=KEEP)
    assert len(registry.version_names()) <= KEEP + 1
    assert registry.store.files("unfinished") == []


def test_machines_that_publish_roll_back_and_append_at_once(
    url: str, endpoint: str, tmp_path: Path, bundle: Path
) -> None:
    mixture(url, endpoint, tmp_path, bundle, 10)


@pytest.mark.slow
def test_machines_that_publish_roll_back_and_append_at_once_for_long(
    url: str, endpoint: str, tmp_path: Path, bundle: Path
) -> None:
    mixture(url, endpoint, tmp_path, bundle, 120)
