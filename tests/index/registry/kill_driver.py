"""Kills writers at random moments while a reader retrieves. Run as a process of its own: it forks.

    python -m tests.index.registry.kill_driver REGISTRY SCENARIO KILLS SEED BUNDLE ..
    python -m tests.index.registry.kill_driver REGISTRY refresh KILLS SEED NIGHTS

Prints one JSON object: kills that hit a running writer, reads, and what went wrong (nothing should).
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from index.inference.item_embedder import ItemEmbedder
from index.publishing import publish as publishing
from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever

RECORD = {"history": [1000, 1003, 1006, 1009], "country": "US", "age": 30}
K = 10
NIGHTS = 3


class Writers:
    """The things that are killed. Each call is one whole command."""

    def __init__(self, registry: Path, bundles: list[Path], chance: random.Random) -> None:
        self.registry, self.bundles, self.chance = registry, bundles, chance

    def publish(self) -> None:
        Registry(self.registry).publish(self.chance.choice(self.bundles), keep=4)

    def rollback(self) -> None:
        names = Registry(self.registry).version_names()
        publishing.rollback(self.registry, self.chance.choice(names))

    def delta(self) -> None:
        """Pauses or resumes the last item of the catalogue, which no top 10 of the record holds."""
        bundle = Registry(self.registry).open(verify=False).bundle
        item_id = bundle.vocabulary.item_ids[-1].as_py()
        change = self.chance.choice(["pause", "resume"])
        delta_writer.apply(self.registry, pa.table({"item_id": [item_id], "change": [change]}))

    def refresh(self) -> None:
        """The nightly job of a random night; ``bundles`` has the folder with the nights."""
        from tests.index.nights import config, tables_of
        from towerline.jobs import refresh

        night = self.chance.randrange(NIGHTS)
        with tables_of(self.bundles[0], lambda: night):
            refresh.run(config(self.registry.parent, refresh={"keep_versions": 3}))

    def mixed(self) -> None:
        self.chance.choice([self.publish, self.rollback, self.delta])()


def expected_answers(bundles: list[Path]) -> dict[str, list[int]]:
    """What each bundle answers, by the beginning of its fingerprint."""
    answers = {}
    for path in bundles:
        fingerprint = Bundle.open(path).manifest.fingerprint
        answers[fingerprint[:8]] = Retriever.open(path).retrieve(RECORD, K).item_ids.tolist()
    return answers


def read_until(stop: Path, log: Path, registry: Path, expected: dict[str, list[int]]) -> None:
    """Opens and retrieves until the file ``stop`` is there; every answer must be that of the version it names: of the
    bundle, where it was made beforehand, else the same at every read."""
    reads, wrong = 0, []
    while not stop.exists():
        try:
            found = Retriever.open(registry).retrieve(RECORD, K)
            reads += 1
            answer = found.item_ids.tolist()
            if answer != expected.setdefault(found.version.split("-")[1], answer):
                wrong.append(f"{found.version}: {answer}")
        except Exception:
            wrong.append(traceback.format_exc())
    log.write_text(json.dumps({"reads": reads, "wrong": wrong}))


def forked(work: Callable[[], object]) -> int:
    """Runs ``work`` in a child; returns its process id. The child's exit code is 0 only if it ended well."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killed_after(pid: int, seconds: float) -> bool:
    """Kills the child after a while; whether it was still at work."""
    time.sleep(seconds)
    ended, _ = os.waitpid(pid, os.WNOHANG)
    if ended:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def check(registry: Path) -> list[str]:
    """Everything that must hold after a kill, before anybody mends anything."""
    wrong = []
    try:
        opened = Registry(registry)
        live = opened.open()
        for name in opened.version_names():
            bundle = opened.open(name).bundle
            DeltaState.opened(bundle, DeltaLog(opened.store), ItemEmbedder(bundle))
        if live.version not in opened.version_names():
            wrong.append(f"CURRENT names {live.version}, which is not there")
    except Exception:
        wrong.append(traceback.format_exc())
    return wrong


def main(registry: Path, scenario: str, kills: int, seed: int, bundles: list[Path]) -> dict[str, object]:
    """Kills ``kills`` writers; see the module."""
    chance = random.Random(seed)
    writers = Writers(registry, bundles, chance)
    work = getattr(writers, scenario)
    if scenario == "refresh":
        # Once for all children: they only load and run, which is safe after a fork.
        from index.building import embedding_job as embed  # noqa: F401
        from index.building import job as build  # noqa: F401
        from tests.index import nights  # noqa: F401

        expected: dict[str, list[int]] = {}
        os.waitpid(forked(work), 0)
    else:
        Registry(registry).publish(bundles[0])
        expected = expected_answers(bundles)
    stop, log = registry.parent / "stop", registry.parent / "reader.json"
    reader = forked(lambda: read_until(stop, log, registry, expected))
    slowest, hit, wrong = 0.02, 0, []
    while hit < kills and not wrong:
        chance.random()  # children start from the parent's random state: move on
        if chance.random() < 0.1 or slowest == 0.02:
            started = time.perf_counter()
            _, status = os.waitpid(forked(work), 0)
            slowest = max(slowest, time.perf_counter() - started)
            if status:
                wrong.append("a writer that nobody killed failed")
            continue
        hit += killed_after(forked(work), chance.uniform(0, slowest))
        wrong += check(registry)
        (registry.parent / "kills").write_text(str(hit))  # how far a run has come, for who waits
    stop.touch()
    os.waitpid(reader, 0)
    result = json.loads(log.read_text())
    return {"kills": hit, "reads": result["reads"], "wrong": wrong + result["wrong"]}


if __name__ == "__main__":
    place, name, number, start, *paths = sys.argv[1:]
    result = main(Path(place), name, int(number), int(start), [Path(path) for path in paths])
    sys.stdout.write(json.dumps(result) + "\n")
