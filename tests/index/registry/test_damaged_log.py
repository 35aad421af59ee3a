"""A damaged entry of the log is named and blocks nobody: opening, changing, publishing and compacting go on."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from index.building import compaction
from index.registry import delta_writer
from index.registry.registry import Registry
from index.registry.storage.object_store import ObjectStore
from index.retrieval.retriever import Retriever
from tests.index.serving_bundles import write_bundle


def sealed(table: pa.Table) -> bytes:
    """A table with the right checksum, which towerline did not write."""
    out = io.BytesIO()
    pq.write_table(table, out)
    return xxhash.xxh3_128_hexdigest(out.getvalue()).encode() + b"\n" + out.getvalue()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda content: content[: len(content) // 2],
    "one bit": lambda content: content[:-9] + bytes([content[-9] ^ 4]) + content[-8:],
    "no checksum": lambda content: content.partition(b"\n")[2],
    "noise": lambda _: bytes(range(256)) * 4,
    "another table": lambda _: sealed(pa.table({"x": [1]})),
    "another table's facts": lambda _: sealed(pa.table({"x": [1]}).replace_schema_metadata({"towerline": "[]"})),
    "no table": lambda _: xxhash.xxh3_128_hexdigest(b"x").encode() + b"\nx",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("damaged") / "bundle", items=60, dim=8)


def write(registry: Registry, name: str, content: bytes) -> None:
    if isinstance(registry.store, ObjectStore):
        registry.store._fs.pipe_file(registry.store._place(name), content)
    else:
        (Path(registry.url) / name).write_bytes(content)


def served(registry: Registry) -> set[int]:
    with Retriever.open(registry.url) as retriever:
        return set(retriever.retrieve({"history": [1000]}, 60).item_ids.tolist())


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    return Registry(tmp_path / "registry" if request.param == "folder" else f"memory://{tmp_path}/registry")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_blocks_nobody(
    registry: Registry, damage: str, bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.publish(bundle)
    for item_id in (1003, 1006, 1009):
        delta_writer.apply(registry.url, pa.table({"item_id": [item_id], "change": ["pause"]}))
    whole = registry.store.read_bytes("deltas/00000002.delta")
    assert whole is not None
    write(registry, "deltas/00000002.delta", DAMAGES[damage](whole))
    with caplog.at_level(logging.ERROR, "towerline.registry"):
        assert {1003, 1006, 1009} - served(registry) == {1003, 1009}
    assert "00000002.delta" in caplog.text
    assert delta_writer.apply(registry.url, pa.table({"item_id": [1006], "change": ["pause"]})).sequence == 4
    registry.publish(bundle, keep=2)
    compaction.run(registry.url, tmp_path / "compacted", keep=2)
    registry.rollback()
    assert {1003, 1006, 1009} & served(registry) == set()
    assert registry.store.files("deltas") == [f"{number:08d}.delta" for number in (1, 2, 3, 4)]
