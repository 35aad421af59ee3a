"""CURRENT moves only from the version that was judged against; two publishers at once both end well."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from index.building import compaction
from index.publishing import publish as publishing
from index.publishing.publish import Options
from index.publishing.verdict import Verdict
from index.registry import delta_writer
from index.registry import registry as registries
from index.registry.delta_log import DeltaLog
from index.registry.registry import MovedError, Registry
from index.settings import GatesSettings
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import read_manifest, write_artifact
from tests.forks import exit_code, forked
from tests.index.serving_bundles import write_bundle

DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("moves")
    return [write_bundle(root / f"bundle-{seed}", items=60 + seed, dim=8, seed=seed) for seed in range(3)]


@pytest.fixture(params=["folder", "memory"])
def registry(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    return Registry(tmp_path / "registry" if request.param == "folder" else f"memory://{tmp_path.name}/registry")


class Judging:
    """In place of the gates: notes what was compared, and does something else meanwhile."""

    def __init__(self, registry: Registry, meanwhile: Iterator[Any]) -> None:
        self.registry, self.meanwhile = registry, meanwhile
        self.compared: list[str | None] = []

    def __call__(self, new: Any, live: Any, *_: Any, **__: Any) -> tuple[Verdict, ...]:
        self.compared.append(None if live is None else live.dir.name)
        next(self.meanwhile, None)
        return ()


def publish(registry: Registry, bundle: Path) -> str:
    done = publishing.run(bundle, bundle, registry.url, GatesSettings(), Options())
    assert done.version is not None
    return done.version


def test_a_version_published_while_the_gates_judge_is_compared_too(
    registry: Registry, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = registry.publish(bundles[0])
    second: list[str] = []
    judging = Judging(registry, (second.append(registry.publish(bundles[1])) for _ in range(1)))
    monkeypatch.setattr(publishing, "judge", judging)
    third = publish(registry, bundles[2])
    assert judging.compared == [first, *second]
    assert registry.current() == third
    facts = {version.name: version.facts.get("replaces") for version in registry.versions()}
    assert facts[third] == second[0]


def test_a_first_version_published_meanwhile_is_compared_too(
    registry: Registry, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other: list[str] = []
    judging = Judging(registry, (other.append(registry.publish(bundles[1])) for _ in range(1)))
    monkeypatch.setattr(publishing, "judge", judging)
    publish(registry, bundles[0])
    assert judging.compared == [None, *other]


def test_a_rollback_while_the_gates_judge_is_not_undone_unjudged(
    registry: Registry, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = registry.publish(bundles[0]), registry.publish(bundles[1])
    judging = Judging(registry, (registry.rollback() for _ in range(1)))
    monkeypatch.setattr(publishing, "judge", judging)
    publish(registry, bundles[2])
    assert judging.compared == [bad, good]


def test_after_three_moves_it_is_an_error_and_nothing_is_published(
    registry: Registry, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(bundles[0])
    judging = Judging(registry, (registry.publish(bundles[1]) for _ in range(9)))
    monkeypatch.setattr(publishing, "judge", judging)
    with pytest.raises(MovedError, match=r"CURRENT: expected .* to be live still, found .* run it again"):
        publish(registry, bundles[2])
    assert len(judging.compared) == 3
    assert len(registry.version_names()) == 4
    assert registry.open().bundle.num_items == 61
    assert registry.store.files(registries.UNFINISHED) == []


def test_a_compacted_version_does_not_replace_one_it_was_not_made_from(
    registry: Registry, bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(bundles[0])
    write, made_from = compaction.write_bundle, []

    def meanwhile(state: Any, version: str, out: Path) -> Path:
        made_from.append(version)
        written: Path = write(state, version, out)
        if len(made_from) == 1:
            registry.publish(bundles[1])
        return written

    monkeypatch.setattr(compaction, "write_bundle", meanwhile)
    compaction.run(registry.url, tmp_path / "compacted")
    assert len(made_from) == 2
    opened = registry.open().bundle
    assert opened.num_items == 61
    assert opened.manifest.facts["compacted_from"] == made_from[1]


def test_one_bundle_goes_to_two_registries_at_once(bundles: list[Path], tmp_path: Path) -> None:
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for _ in range(6):
                Registry(tmp_path / str(number)).publish(bundles[0])
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    for number in range(2):
        assert len(Registry(tmp_path / str(number)).version_names()) == 6
    assert [name for name in os.listdir(bundles[0].parent) if name.startswith(".")] == []


def _publish_often(registry: str, bundle: Path, told: Any) -> None:
    told.put([Registry(registry).publish(bundle) for _ in range(4)])


def test_publishers_at_once_take_different_names(bundles: list[Path], tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    work = [
        context.Process(target=_publish_often, args=(str(tmp_path / "registry"), bundles[0], told)) for _ in range(2)
    ]
    for one in work:
        one.start()
    names = [name for _ in work for name in told.get(timeout=300)]
    for one in work:
        one.join()
    assert len(set(names)) == 8
    assert Registry(tmp_path / "registry").version_names() == sorted(names)
    assert Registry(tmp_path / "registry").current() == max(names)


def publish_until(step: str, registry: Registry, bundle: Path) -> None:
    """A publisher that dies before a step."""
    setattr(registry, step, lambda *_: os._exit(9))
    registry.publish(bundle)


def test_a_version_whose_publisher_was_killed_before_it_was_live_does_not_count(
    tmp_path: Path, bundles: list[Path]
) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.publish(bundles[0])
    assert exit_code(forked(lambda: publish_until("_move", registry, bundles[1]))) == 9
    assert registry.version_names() == [first]
    assert [version.name for version in registry.versions()] == [first]
    with pytest.raises(ArtifactError, match="is the oldest version"):
        registry.rollback()
    again = registry.publish(bundles[1], keep=2)
    assert registry.version_names() == [first, again]
    assert registry.store.files(registries.UNFINISHED) == []


def test_a_publisher_killed_after_it_was_live_has_published(tmp_path: Path, bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    first = registry.publish(bundles[0])
    assert exit_code(forked(lambda: publish_until("_clean", registry, bundles[1]))) == 9
    names = registry.version_names()
    assert names == [first, registry.current()]
    assert registry.rollback() == first
    assert registry.rollback(names[1]) == names[1]
    assert registry.store.files(registries.UNFINISHED) == []


def test_an_upload_of_another_machine_is_left_alone_for_a_day(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"memory://{tmp_path.name}/uploads")
    registry.publish(bundles[0])
    old, now = "20200101T000000Z-0badcafe", f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-0badcafe"
    for name in (old, now):
        assert registry.store.create(f"unfinished/{name}", b"")
        assert registry.store.create(f"versions/{name}/vectors.npy", b"half")
    registry.publish(bundles[0])
    assert registry.store.files("unfinished") == [now]
    assert now in registry.store.names("versions")
    assert old not in registry.store.names("versions")


def test_a_version_that_becomes_live_while_it_is_removed_stays(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two machines: one rolls back to the version that the other has chosen for removal."""
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"memory://{tmp_path.name}/removal")
    names = [registry.publish(bundle) for bundle in bundles]
    create = registry.store.create

    def meanwhile(name: str, content: bytes) -> bool:
        if name == f"unfinished/{names[0]}":  # CURRENT has moved just before the removal is marked.
            registry.store.swap("CURRENT", f"{names[2]}\n".encode(), f"{names[0]}\n".encode())
        return create(name, content)

    monkeypatch.setattr(registry.store, "create", meanwhile)
    assert registry.prune(1) == [names[1]]
    assert registry.open().version == names[0]


def test_a_rollback_to_a_version_being_removed_leaves_the_live_one(
    tmp_path: Path, bundles: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOWERLINE_CACHE", str(tmp_path / "cache"))
    registry = Registry(f"memory://{tmp_path.name}/removed")
    names = [registry.publish(bundle) for bundle in bundles]
    swap = registry.store.swap

    def meanwhile(name: str, before: bytes | None, content: bytes) -> bool:
        done = swap(name, before, content)
        if content == f"{names[0]}\n".encode():
            registry.store.create(f"unfinished/{names[0]}", b"marked")
        return done

    monkeypatch.setattr(registry.store, "swap", meanwhile)
    with pytest.raises(ArtifactError, match="is being published or removed, or was removed, by another machine"):
        registry.rollback(names[0])
    assert registry.current() == names[2]
    registry.store.remove_file(f"unfinished/{names[0]}")
    registry.store.remove(f"versions/{names[0]}")  # This machine has a copy of it still.
    with pytest.raises(ArtifactError, match="was removed"):
        registry.rollback(names[0])
    assert registry.current() == names[2]


def read_at(bundle: Path, sequence: int, out: Path) -> Path:
    """The bundle as if its tables had been read after a change."""
    manifest = read_manifest(bundle)
    with write_artifact(out, kind="bundle", format_version=2, inputs=manifest.inputs) as draft:
        for file in manifest.files:
            (draft.dir / file).parent.mkdir(parents=True, exist_ok=True)
            (draft.dir / file).write_bytes((bundle / file).read_bytes())
        draft.facts.update({**manifest.facts, "delta_sequence": sequence})
    return out


@pytest.mark.parametrize("days", [6, 8])
def test_changes_that_no_version_needs_go_after_a_week(
    registry: Registry, bundles: list[Path], tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.publish(bundles[0])  # Of format 1, which does not say: read before all changes.
    for change in ("pause", "resume", "pause"):
        delta_writer.apply(registry.url, pa.table({"item_id": [1003], "change": [change]}))
    log, now = DeltaLog(registry.store), time.time()
    monkeypatch.setattr(time, "time", lambda: now + 86_400 * days)
    registry.publish(read_at(bundles[0], 2, tmp_path / "two"), keep=2)
    assert [entry.sequence for entry in log.after(0)] == [1, 2, 3], "the older version needs them"
    registry.publish(read_at(bundles[0], 3, tmp_path / "three"), keep=2)
    pauses = log.pauses()
    if days < 7:
        assert [entry.sequence for entry in log.after(0)] == [1, 2, 3]
        return
    assert [entry.sequence for entry in log.after(0)] == [3]
    assert pauses is not None
    assert (pauses.sequence, pauses.item_ids.to_pylist()) == (2, [])
    before = registry.current()
    with pytest.raises(ArtifactError, match=r"read after change 1, but changes up to 2 have been removed.*features"):
        registry.publish(read_at(bundles[0], 1, tmp_path / "one"))
    assert registry.current() == before
    registry.publish(read_at(bundles[0], 2, tmp_path / "two"))
