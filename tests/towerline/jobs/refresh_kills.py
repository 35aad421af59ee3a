"""Kills refreshes of rolling nights at random moments while changes of ads arrive. A process of its own: it forks.

    python -m tests.towerline.jobs.refresh_kills STORED WORK KILLS SEED WARM_NIGHTS

Prints one JSON object: kills that hit a refresh at work, nights published, changes made, and what went wrong (nothing
should). After each kill CURRENT is whole and no change is lost; then the next refresh finishes.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa

from index.inference.item_embedder import ItemEmbedder
from index.registry import delta_writer
from index.registry.delta_log import DeltaLog
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from tests.index.registry.kills.kill_driver import forked, killed_after
from tests.towerline.jobs.rolling_nights import config, nights_of
from towerline.jobs import refresh

NIGHTS = 3
STAGES = 8


class Changes:
    """Changes of ads, and next to them a model of what must be in force: the ads that are paused now."""

    def __init__(self, registry: Path, chance: random.Random) -> None:
        self.registry, self.chance = registry, chance
        self.paused: set[int] = set()
        self.made = 0

    def one(self) -> None:
        """Pauses or resumes one of ten ads."""
        item = 1000 + 3 * self.chance.randrange(10)
        change = self.chance.choice(["pause", "resume"])
        delta_writer.apply(self.registry, pa.table({"item_id": [item], "change": [change]}))
        (self.paused.add if change == "pause" else self.paused.discard)(item)
        self.made += 1

    def lost(self) -> list[str]:
        """Where the live version differs from the model."""
        registry = Registry(self.registry)
        log = DeltaLog(registry.store)
        if log.last() != self.made:
            return [f"the log has {log.last()} entries, {self.made} were made"]
        bundle = registry.open().bundle
        paused = set(DeltaState.opened(bundle, log, ItemEmbedder(bundle)).paused_ids)
        return [] if paused == self.paused else [f"paused: {sorted(paused)}, made: {sorted(self.paused)}"]


def whole(registry: Path) -> list[str]:
    """What is wrong with the versions, every byte compared: the live one has both models, each with its figures."""
    opened = Registry(registry)
    for name in opened.version_names():
        opened.open(name)
    bundle = opened.open().bundle
    backtest = bundle.backtest
    if backtest is None:
        return ["the live version has no backtest"]
    by = bundle.manifest.facts["measured_by"]
    models = [by["held-out events"]["model"], by["everything else"]["model"]]
    expected = [backtest.manifest.inputs["model"], bundle.manifest.inputs["model"]]
    return [] if models == expected else [f"figures are of the models {models}, the bundles of {expected}"]


def main(stored: Path, work: Path, kills: int, seed: int, warm_nights: int) -> dict[str, object]:
    """Kills ``kills`` refreshes; see the module."""
    chance = random.Random(seed)
    settings = config(work, refresh={"keep_versions": 3, "warm_nights": warm_nights})
    registry, wrong = work / "registry", []
    night, killed, published = 0, 0, Counter[str]()
    with nights_of(stored, lambda: night):
        begun = time.perf_counter()
        refresh.run(settings)
        usual = time.perf_counter() - begun
        changes = Changes(registry, chance)
        tries = 0
        while killed < kills and not wrong and tries < 4 * kills:
            tries += 1
            night = (night + chance.randrange(1, NIGHTS)) % NIGHTS
            child = forked(lambda: refresh.run(settings))
            changes.one()
            killed += killed_after(child, chance.uniform(0.0, usual))
            changes.one()
            wrong += whole(registry) + changes.lost()
            begun = time.perf_counter()
            done = refresh.run(settings)
            usual = 0.8 * usual + 0.2 * (time.perf_counter() - begun)
            published["published" if done.published else "not"] += 1
            wrong += whole(registry) + changes.lost()
            if len(done.stages) != STAGES or done.version != Registry(registry).current():
                wrong.append(f"the next refresh ended with {done}")
            left = [str(path) for path in work.glob("**/.*.draft") if registry not in path.parents]
            wrong += [f"left behind: {path}" for path in left]
    return {"kills": killed, "tries": tries, "changes": changes.made, "nights": dict(published), "wrong": wrong}


if __name__ == "__main__":
    places = Path(sys.argv[1]), Path(sys.argv[2])
    sys.stdout.write(json.dumps(main(*places, *(int(value) for value in sys.argv[3:6]))) + "\n")
