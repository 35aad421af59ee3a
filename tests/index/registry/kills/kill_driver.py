"""Kills writers at random moments while a reader retrieves. Run as a process of its own: it forks.

    python -m tests.index.registry.kills.kill_driver REGISTRY SCENARIO KILLS SEED BUNDLE ..
    python -m tests.index.registry.kills.kill_driver REGISTRY refresh KILLS SEED NIGHTS

Prints one JSON object: kills that hit a running writer, reads, and what went wrong (nothing should).
"""

from __future__ import annotations

import json
import random
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from index.building import compaction
from index.inference.item_embedder import ItemEmbedder
from index.publishing import publish as publishing
from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.manifest import write_durably
from tests.forks import exit_code, forked, killed_after

RECORD = {"history": [1000, 1003, 1006, 1009], "country": "US", "age": 30}
K = 10
NIGHTS = 3
KEEP = 4
READ_SECONDS = 0.05


class Writers:
    """The things that are killed. Each call is one whole command; it returns what a person is told."""

    def __init__(self, registry: Path, bundles: list[Path], chance: random.Random) -> None:
        self.registry, self.bundles, self.chance = registry, bundles, chance

    def publish(self) -> Told:
        return Told(live=Registry(self.registry).publish(self.chance.choice(self.bundles), keep=KEEP))

    def rollback(self) -> Told:
        names = Registry(self.registry).version_names()
        return Told(live=publishing.rollback(self.registry, self.chance.choice(names)))

    def change(self) -> Told:
        """Pauses or resumes the last item of the catalogue, which no top 10 of the record holds; or, where the bundle
        has an item tower, brings an ad that nobody has seen."""
        bundle = Registry(self.registry).open(verify=False).bundle
        if bundle.item_tower.exists() and self.chance.random() < 0.5:
            ads = pa.table({"item_id": [10_000_000 + self.chance.randrange(10**9)]})
        else:
            change = self.chance.choice(["pause", "resume"])
            ads = pa.table({"item_id": [bundle.vocabulary.item_ids[-1].as_py()], "change": [change]})
        return Told(entry=delta_writer.apply(self.registry, ads).sequence)

    def compact(self) -> Told:
        return Told(live=compaction.run(self.registry, self.registry.parent / "compacted", keep=KEEP))

    def refresh(self) -> Told:
        """The nightly job of a random night; ``bundles`` has the folder with the nights."""
        from tests.index.nights import config, tables_of
        from towerline.jobs import refresh

        night = self.chance.randrange(NIGHTS)
        with tables_of(self.bundles[0], lambda: night):
            refresh.run(config(self.registry.parent, refresh={"keep_versions": KEEP}))
        return Told(live=Registry(self.registry).current())

    def mixed(self) -> Told:
        return self.chance.choice([self.publish, self.rollback, self.change, self.compact])()


@dataclass(frozen=True)
class Told:
    """What a command that ended said: the version that is live, or the number of its entry in the log."""

    live: str | None = None
    entry: int | None = None


@dataclass(frozen=True)
class Snapshot:
    """What a registry holds: the log's files, the versions, the live one. Nothing is changed by looking."""

    entries: dict[str, bytes]
    versions: tuple[str, ...]
    live: str

    @classmethod
    def of(cls, registry: Path, before: Snapshot | None = None) -> Snapshot:
        """Opens everything that a reader could open; every byte is compared where it is new."""
        opened = Registry(registry)
        live = opened.open().version
        names = opened.version_names()
        known = set() if before is None else set(before.versions)
        for name in names:
            bundle = opened.open(name, verify=name not in known).bundle
            DeltaState.opened(bundle, DeltaLog(opened.store), ItemEmbedder(bundle))
        store = opened.store
        entries = {name: store.read_bytes(f"deltas/{name}") or b"" for name in store.files("deltas")}
        assert live in names, f"CURRENT names {live}, which is not there"
        return cls(entries, tuple(names), live)

    def require_after(self, before: Snapshot, told: Told | None) -> None:
        """At most one thing has happened since, whole; and it has if somebody was told so."""
        lost = {name: content for name, content in before.entries.items() if self.entries.get(name) != content}
        assert not lost, f"entries lost or changed: {sorted(lost)}"
        new = sorted(set(self.entries) - set(before.entries))
        assert len(new) <= 1, f"one change, two entries: {new}"
        published = set(self.versions) - set(before.versions)
        assert len(published) <= 1, f"one publisher, two versions: {published}"
        gone = [name for name in before.versions if name not in self.versions]
        assert not gone or (
            (len(before.versions) >= KEEP and gone == list(before.versions[: len(gone)]))
            or before.versions[0] in (before.live, self.live)
        ), f"versions lost: {gone}"
        moved = self.live != before.live
        assert not (moved and published) or self.live in published, "another version is live than the new one"
        if told is not None and told.live is not None:
            assert self.live == told.live, f"told {told.live}, live is {self.live}"
        if told is not None and told.entry is not None:
            assert new == [f"{told.entry:08d}.delta"], f"told entry {told.entry}, found {new}"


def leftovers(registry: Path) -> list[str]:
    """What killed writers left, once other writers have succeeded: nothing."""
    drafts = [file for file in registry.rglob(".*") if file.name != ".lock"]
    staged = [file for file in registry.parent.glob(".*") if file.is_dir() or file.suffix == ".lock"]
    locks = [file for file in staged if file.name != ".refresh.lock"]
    return [str(file) for file in [*drafts, *locks, *(registry / "unfinished").glob("*")]]


def expected_answers(bundles: list[Path]) -> dict[str, list[int]]:
    """What each bundle answers, by the beginning of its fingerprint."""
    answers = {}
    for path in bundles:
        fingerprint = Bundle.open(path).manifest.fingerprint
        answers[fingerprint[:8]] = Retriever.open(path).retrieve(RECORD, K).item_ids.tolist()
    return answers


def read_until(stop: Path, log: Path, registry: Path, expected: dict[str, list[int]] | None) -> None:
    """Opens and retrieves until the file ``stop`` is there; every answer must be that of the version it names: of the
    bundle, where it was made beforehand, else the same at every read. None: changes alter the answers."""
    reads, wrong = 0, []
    while not stop.exists():
        try:
            found = Retriever.open(registry).retrieve(RECORD, K)
            reads += 1
            answer = found.item_ids.tolist()
            known = {} if expected is None else expected
            if answer != known.setdefault(found.version.split("-")[1], answer):
                wrong.append(f"{found.version}: {answer}")
        except Exception:
            wrong.append(traceback.format_exc())
        time.sleep(READ_SECONDS)  # The writers need the processor too.
    log.write_text(json.dumps({"reads": reads, "wrong": wrong}))


class Run:
    """Writers of one kind, one after the other; most are killed."""

    def __init__(self, registry: Path, work: Callable[[], Told], chance: random.Random) -> None:
        self.registry, self.work, self.chance = registry, work, chance
        self.told_file = registry.parent / "told"
        self.slowest, self.kills = 0.0, 0
        self.last = Snapshot.of(registry)

    def _tell(self) -> None:
        """In the child: what it did is written once it is done."""
        told = self.work()
        write_durably(self.told_file, json.dumps([told.live, told.entry]).encode())

    def once(self, *, kill: bool) -> None:
        """One writer, killed at some moment or not; then everything that must hold."""
        self.told_file.unlink(missing_ok=True)
        self.chance.random()  # children start from the parent's random state: move on
        started = time.perf_counter()
        child = forked(self._tell)
        if kill:
            self.kills += killed_after(child, self.chance.uniform(0, self.slowest))
        else:
            assert exit_code(child) == 0, "a writer that nobody killed failed"
            self.slowest = max(self.slowest, time.perf_counter() - started)
        told = Told(*json.loads(self.told_file.read_text())) if self.told_file.exists() else None
        now = Snapshot.of(self.registry, self.last)
        now.require_after(self.last, told)
        self.last = now


def prepared(
    registry: Path, scenario: str, bundles: list[Path], work: Callable[[], Told]
) -> dict[str, list[int]] | None:
    """Publishes the first version; returns what each bundle answers, None where changes alter the answers."""
    if scenario == "refresh":
        # Once for all children: they only load and run, which is safe after a fork.
        from index.building import embedding_job as embed  # noqa: F401
        from index.building import job as build  # noqa: F401
        from tests.index import nights  # noqa: F401

        exit_code(forked(work), 600.0)
        return {}
    Registry(registry).publish(bundles[0])
    return expected_answers(bundles) if scenario in ("publish", "rollback") else None


def main(registry: Path, scenario: str, kills: int, seed: int, bundles: list[Path]) -> dict[str, object]:
    """Kills ``kills`` writers; see the module."""
    chance = random.Random(seed)
    writers = Writers(registry, bundles, chance)
    work = getattr(writers, scenario)
    expected = prepared(registry, scenario, bundles, work)
    stop, log = registry.parent / "stop", registry.parent / "reader.json"
    reader = forked(lambda: read_until(stop, log, registry, expected))
    wrong: list[str] = []
    run = Run(registry, work, chance)
    try:
        run.once(kill=False)
        while run.kills < kills:
            run.once(kill=chance.random() < 0.75)
            (registry.parent / "kills").write_text(str(run.kills))  # how far a run has come, for who waits
        for last in [writers.refresh] if scenario == "refresh" else [writers.publish, writers.compact]:
            run.work = last
            run.once(kill=False)
        left = leftovers(registry)
        assert not left, f"left behind: {left}"
    except Exception:
        wrong.append(traceback.format_exc())
    stop.touch()
    exit_code(reader)
    result = json.loads(log.read_text())
    return {"kills": run.kills, "reads": result["reads"], "wrong": wrong + result["wrong"]}


if __name__ == "__main__":
    place, name, number, start, *paths = sys.argv[1:]
    result = main(Path(place), name, int(number), int(start), [Path(path) for path in paths])
    sys.stdout.write(json.dumps(result) + "\n")
