"""The registry on S3, spoken by a server on this machine: publish, read, roll back, apply a delta."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from index import delta_writer
from index.delta import DeltaLog, replay
from index.registry import Registry
from index.retriever import Retriever
from index.store import ObjectStore
from pipelines.errors import ArtifactError
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
def registry(endpoint: str, tmp_path: Path) -> Registry:
    fs = s3fs.S3FileSystem(
        key="test", secret="test", client_kwargs={"endpoint_url": endpoint, "region_name": "eu-west-1"}
    )
    bucket = tmp_path.name.replace("_", "-")
    fs.mkdir(bucket, region_name="eu-west-1")
    root = f"{bucket}/ads/registry"
    return Registry(f"s3://{root}", store=ObjectStore(fs, root, f"s3://{root}", tmp_path / "cache"))


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
    version = registry.publish(bundles[0])
    # The registry's own store speaks to this server; the writer is given it by its parts.
    live = registry.open().bundle
    log = DeltaLog(registry.store, version)
    changes = delta_writer._checked(pa.table({"item_id": [1003], "change": ["pause"]}), live, replay(live, log))
    delta_writer.append(registry.store, log, live, replay(live, log), changes, lambda: 0.0)
    assert log.stamp() is None
    assert log.sequences() == [1]
    assert replay(live, log).paused_ids == {1003}


def test_a_version_without_its_manifest_is_none(registry: Registry, bundles: list[Path]) -> None:
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
