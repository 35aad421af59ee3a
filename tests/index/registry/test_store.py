"""An object store whose uploads go wrong: the data read back decide, not the upload's return value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from index.registry.storage.object_store import ObjectStore
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import write_artifact

CONTENT = b"0123456789" * 100


class Damaging(MemoryFileSystem):  # type: ignore[misc]
    """Keeps the size of what it is given, and changes one byte of it."""

    cachable = False

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        content = bytearray(Path(lpath).read_bytes())
        content[len(content) // 2] ^= 1
        self.pipe_file(rpath, bytes(content))


def artifact(folder: Path) -> Path:
    with write_artifact(folder / "artifact", kind="bundle", inputs={}) as draft:
        (draft.dir / "vectors.npy").write_bytes(CONTENT)
    return folder / "artifact"


def test_an_upload_that_is_damaged_at_the_same_size_is_refused_and_is_no_version(tmp_path: Path) -> None:
    store = ObjectStore(Damaging(), f"/{tmp_path.name}", "memory://registry", tmp_path / "cache")
    with pytest.raises(ArtifactError, match=r"versions/v1/vectors\.npy: read back, it differs from what was written"):
        store.put(artifact(tmp_path), "versions/v1")
    assert store.artifacts("versions") == []


def test_a_whole_upload_is_a_version(tmp_path: Path) -> None:
    store = ObjectStore(MemoryFileSystem(), f"/{tmp_path.name}", "memory://registry", tmp_path / "cache")
    store.put(artifact(tmp_path), "versions/v1")
    assert store.artifacts("versions") == ["v1"]
    assert (store.fetch("versions/v1") / "vectors.npy").read_bytes() == CONTENT
