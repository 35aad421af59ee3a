"""The registry on S3, spoken by a server on this machine: publish, read, roll back, apply a delta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec.config
import pyarrow as pa
import pytest

from index.inference.item_embedder import ItemEmbedder
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError
from tests.index.serving_bundles import write_bundle

moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed: no S3 server to speak to")
s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")

# botocore and moto call parts of the standard library that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def registry(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """By its URL, as a configuration names it; fsspec's own configuration says where the server is."""
    options = {
        "key": "test",
        "secret": "test",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "eu-west-1"},
    }
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
