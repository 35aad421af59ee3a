"""Stores: small files are created and replaced in one step, and what an object store answers is not trusted."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from index.registry.delta_log import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, DeltaLog
from index.registry.storage.folder_store import FolderStore
from index.registry.storage.object_store import ObjectStore
from index.registry.storage.store import Store
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import write_artifact
from pipelines.locks import hold

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


# What a swap expects is what the step with this number wrote.
STEPS = st.lists(
    st.tuples(st.sampled_from(["create", "remove_file"]), st.sampled_from(["log/a", "log/b"]), st.none())
    | st.tuples(st.just("swap"), st.sampled_from(["log/a", "log/b"]), st.none() | st.integers(0, 11)),
    max_size=12,
)


def folder(place: Path) -> Store:
    return FolderStore(place / "registry")


def memory(place: Path) -> Store:
    return ObjectStore(MemoryFileSystem(), f"/{place}", "memory://law", place / "cache")


def follow(store: Store, steps: list[tuple[str, str, int | None]]) -> None:
    """Takes the steps, next to a dict that takes them too. No two steps write the same."""
    model: dict[str, bytes] = {}
    for number, (act, name, expected) in enumerate(steps):
        content = str(number).encode()
        if act == "create":
            assert store.create(name, content) == (name not in model)
            model.setdefault(name, content)
        elif act == "swap":
            before = None if expected is None else str(expected).encode()
            fits = model.get(name) == before
            assert store.swap(name, before, content) == fits
            model |= {name: content} if fits else {}
        else:
            store.remove_file(name)
            model.pop(name, None)
        for one in ("log/a", "log/b"):
            assert store.read_bytes(one) == model.get(one)
        assert store.files("log") == store.names("log") == sorted(one.removeprefix("log/") for one in model)


@pytest.mark.parametrize("kind", [folder, memory])
def test_a_store_creates_and_swaps_as_a_dict_does(
    kind: Callable[[Path], Store], tmp_path_factory: pytest.TempPathFactory
) -> None:
    @settings(max_examples=60, deadline=None)
    @given(STEPS)
    def law(steps: list[tuple[str, str, int | None]]) -> None:
        follow(kind(tmp_path_factory.mktemp("law")), steps)

    law()


def test_of_many_writers_of_one_name_one_succeeds(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for number in range(50):
        won: list[int] = []

        def write(writer: int, name: str = f"log/{number}", won: list[int] = won) -> None:
            if store.create(name, str(writer).encode()):
                won.append(writer)

        threads = [threading.Thread(target=write, args=(writer,)) for writer in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(one).encode() for one in won] == [store.read_bytes(f"log/{number}")]


class LosesAnswers(MemoryFileSystem):  # type: ignore[misc]
    """Does what it is asked, and then the connection breaks; its library asks again, and is refused."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        super().pipe_file(path, value, mode=mode, **options)
        if mode == "create":
            raise FileExistsError("PreconditionFailed")
        raise OSError("timed out")


def test_a_put_whose_answer_is_lost_is_known_by_its_content(tmp_path: Path) -> None:
    store = ObjectStore(LosesAnswers(), f"/{tmp_path}", "memory://lost", tmp_path / "cache")
    assert store.create("CURRENT", b"one")
    assert store.swap("CURRENT", b"one", b"two")
    assert store.read_bytes("CURRENT") == b"two"
    log = DeltaLog(store)
    said = pa.nulls(1, pa.list_(pa.string()))
    rows = pa.table({ID_COLUMN: [7], CHANGE_COLUMN: ["pause"], SAID_COLUMN: said})
    assert [log.append(rows).sequence for _ in range(3)] == [1, 2, 3]
    assert [entry.sequence for entry in log.after(0)] == [1, 2, 3]


class Full(MemoryFileSystem):  # type: ignore[misc]
    """Takes nothing more."""

    cachable = False

    def pipe_file(self, *_: Any, **__: Any) -> None:
        raise OSError("SlowDown")


def test_a_put_that_fails_is_an_error(tmp_path: Path) -> None:
    store = ObjectStore(Full(), f"/{tmp_path}", "memory://full", tmp_path / "cache")
    with pytest.raises(OSError, match="SlowDown"):
        store.create("CURRENT", b"one")


def test_only_drafts_that_nobody_writes_are_swept_from_the_log(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "registry")
    assert store.create("deltas/00000001.delta", b"1")
    living, dead, current = (
        tmp_path / "registry" / name
        for name in ("deltas/.2.delta.ab.draft", "deltas/.2.delta.cd.draft", ".CURRENT.1.ab.draft")
    )
    dead.touch()
    current.touch()
    held = hold(living)
    with store.lock():
        pass
    assert held is not None
    assert (living.exists(), dead.exists(), current.exists()) == (True, False, False)
