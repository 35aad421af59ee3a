"""The registry on S3, spoken by a server on this machine: publish, read, roll back, apply a delta."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pytest
from hypothesis import given, settings

from index.inference.item_embedder import ItemEmbedder
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.forks import exit_code, forked
from tests.index.registry.storage.test_store import STEPS, follow
from tests.index.serving_bundles import write_bundle
from tests.s3_server import options_of, serving

pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 server to speak to")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")

# botocore and moto call parts of the standard library that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def registry(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """By its URL, as a configuration names it; fsspec's own configuration says where the server is."""
    options = options_of(endpoint)
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    bucket = tmp_path.name.replace("_", "-")
    s3fs.S3FileSystem(**options).mkdir(bucket, region_name="eu-west-1")
    return Registry(f"s3://{bucket}/ads/registry")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [write_bundle(root / f"bundle-{seed}", items=150 + seed, seed=seed, leaves=4) for seed in range(2)]


def test_the_whole_life_of_a_registry(registry: Registry, bundles: list[Path]) -> None:
    first = registry.publish(bundles[0])
    second = registry.publish(bundles[1])
    assert registry.version_names() == [first, second]
    opened = registry.open()
    assert opened.version == second
    assert opened.bundle.num_items == 151
    assert len(Retriever.open(opened.bundle.dir).retrieve({"history": [1000]}, 5)) == 5
    assert registry.rollback() == first
    assert registry.open().bundle.num_items == 150
    assert registry.prune(1) == []  # the newest stays as one of one, the live one always
    third = registry.publish(bundles[1], keep=1)
    assert registry.version_names() == [third]


def test_a_delta_lies_in_the_bucket(registry: Registry, bundles: list[Path]) -> None:
    registry.publish(bundles[0])
    delta_writer.apply(registry.url, pa.table({"item_id": [1003], "change": ["pause"]}))
    log, bundle = DeltaLog(registry.store), registry.open().bundle
    assert log.has(1) is None
    assert log.last() == 1
    assert DeltaState.opened(bundle, log, ItemEmbedder(bundle)).paused_ids == {1003}


def test_a_watching_retriever_sees_deltas_without_reopening(registry: Registry, bundles: list[Path]) -> None:
    registry.publish(bundles[0])
    with Retriever.open(registry.url) as retriever:
        watcher = retriever.watch(interval_seconds=3600.0)
        delta_writer.apply(registry.url, pa.table({"item_id": [1003, 1006], "change": ["pause", "remove"]}))
        everything = retriever.retrieve({"history": [1000]}, 150).item_ids.tolist()
        assert {1003, 1006} <= set(everything)
        assert not watcher.check()
        found = retriever.retrieve({"history": [1000]}, 150).item_ids.tolist()
        assert sorted(found) == sorted(set(everything) - {1003, 1006})
        assert not watcher.check()
        retriever._follower.wait()
        assert retriever.delta_sequence == 1


def test_a_version_without_its_manifest_does_not_count(registry: Registry, bundles: list[Path]) -> None:
    version = registry.publish(bundles[0])
    store = registry.store
    assert isinstance(store, ObjectStore)
    store._fs.rm_file(store._place(f"versions/{version}/manifest.json"))
    assert registry.version_names() == []


def test_what_arrives_damaged_is_refused(registry: Registry, bundles: list[Path]) -> None:
    version = registry.publish(bundles[0])
    store = registry.store
    assert isinstance(store, ObjectStore)
    store._fs.pipe_file(store._place(f"versions/{version}/vectors.npy"), b"damaged")
    with pytest.raises(ArtifactError, match=r"vectors\.npy: expected \d+ bytes, found 7"):
        registry.open()


def test_s3_creates_and_swaps_as_a_dict_does(registry: Registry) -> None:
    number = itertools.count()

    @settings(max_examples=15, deadline=None)
    @given(STEPS)
    def law(steps: list[tuple[str, str, int | None]]) -> None:
        follow(Registry(f"{registry.url}/{next(number)}").store, steps)

    law()


def test_of_two_writers_that_have_read_the_same_one_swaps(registry: Registry) -> None:
    store = registry.store
    assert isinstance(store, ObjectStore)
    assert store.create("CURRENT", b"one")
    late = store._if_unchanged("CURRENT", b"one")
    assert late is not None
    assert store.swap("CURRENT", b"one", b"two")
    with pytest.raises(OSError, match="pre-conditions"):
        store._fs.pipe_file(store._place("CURRENT"), b"three", **late)
    assert store.read_bytes("CURRENT") == b"two"


def test_what_another_machine_writes_is_seen_at_once(registry: Registry) -> None:
    """s3fs takes what a remembered listing lacks for missing."""
    mine = registry.store
    assert isinstance(mine, ObjectStore)
    fs = s3fs.S3FileSystem(**{**mine._fs.storage_options, "skip_instance_cache": True})
    others = ObjectStore(fs, mine._root, mine.url)
    assert mine.create("deltas/00000001.delta", b"1")
    assert mine.files("deltas") == ["00000001.delta"]
    assert others.create("deltas/00000002.delta", b"22")
    assert mine.read_bytes("deltas/00000002.delta") == b"22"
    assert mine.files("deltas") == ["00000001.delta", "00000002.delta"]


def test_a_forked_child_reads_s3_by_a_connection_of_its_own(registry: Registry, bundles: list[Path]) -> None:
    version = registry.publish(bundles[0])

    def work() -> None:
        assert registry.current() == version

    assert exit_code(forked(work)) == 0


def test_the_place_of_a_version_is_a_url(registry: Registry, bundles: list[Path]) -> None:
    version = registry.publish(bundles[0])
    assert registry.manifest_of(version) == f"{registry.url}/versions/{version}/manifest.json"
    assert registry.url.startswith("s3://")
