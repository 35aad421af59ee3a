"""Swaps and changes under load: no call fails, nothing paused is shown, memory comes back."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.registry import delta_writer
from index.registry.registry import Registry
from index.settings import IndexSettings, TreeSettings
from tests.index.retrieval.live.load_driver import DONE, WARM, WORKERS
from tests.index.stage_artifacts import write_stages

ITEMS, DIM = 300, 16
# How much more anonymous memory a process may have after all swaps than after the first ones.
MORE = 1.05


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = []
    for seed in (0, 1):
        stages = write_stages(tmp_path_factory.mktemp(f"stages{seed}"), items=ITEMS, dim=DIM)
        embeddings = embed.run(stages.model, stages.features, stages.root / "embeddings")
        tree = TreeSettings(leaves=10, leaves_to_search=8, reorder=200 + seed, training_sample=ITEMS)
        settings = IndexSettings(attributes=("category", "price"), tuning_queries=10, engine="scann", tree=tree)
        made.append(build.run(embeddings, stages.model, stages.features, settings, stages.root / "bundle"))
    return made


class Writer:
    """Changes a registry while it serves, and says in ``flags`` what holds."""

    def __init__(self, registry: Registry, bundles: list[Path], flags: np.memmap, seed: int = 0) -> None:  # type: ignore[type-arg]
        self.registry, self.bundles, self.flags = registry, bundles, flags
        self.rng = np.random.default_rng(seed)
        self.swaps = self.changes = 0

    def swap(self) -> None:
        """By a publish or a rollback."""
        if self.swaps % 4 == 3:
            self.registry.rollback()
        else:
            self.registry.publish(self.bundles[self.swaps % 2], keep=3)
        self.swaps += 1

    def change(self) -> None:
        """Pauses, resumes, removes or upserts an ad."""
        item = int(self.rng.integers(0, ITEMS))
        hidden = self.flags[1 + item] % 2 == 1
        way = "pause" if item % 2 else "remove"
        if hidden:
            self.flags[1 + item] += 1
            way = "resume" if item % 2 else "upsert"
        price = [float(self.rng.integers(1, 9))]
        table = {"item_id": [1000 + 3 * item], "change": [way]}
        delta_writer.apply(self.registry.url, pa.table({**table, **({"price": price} if way == "upsert" else {})}))
        if not hidden:
            self.flags[1 + item] += 1
        self.changes += 1

    def run(self, swaps: int, changes: int) -> None:
        """This many more of each, evenly mixed."""
        for number in range(changes):
            self.change()
            if number * swaps // changes < (number + 1) * swaps // changes:
                self.swap()
                time.sleep(0.1)


def serve(tmp_path: Path, bundles: list[Path], calls: int, swaps: int, changes: int) -> list[dict]:  # type: ignore[type-arg]
    """Runs the server and the writer next to each other. Returns what each process saw."""
    registry = Registry(tmp_path / "registry")
    registry.publish(bundles[0])
    registry.publish(bundles[1])
    flags = np.memmap(tmp_path / "flags", np.int64, "w+", shape=1 + ITEMS)
    writer = Writer(registry, bundles, flags)
    command = [sys.executable, "-m", "tests.index.retrieval.live.load_driver", registry.url, str(tmp_path / "flags")]
    server = subprocess.Popen([*command, str(calls)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        writer.run(max(2, swaps // 10), max(10, changes // 10))
        flags[0] = WARM
        time.sleep(4.0)
        writer.run(swaps - writer.swaps, changes - writer.changes)
        flags[0] = DONE
        out, err = server.communicate(timeout=3000)
    finally:
        server.kill()
    assert server.returncode == 0, err[-3000:]
    assert (writer.swaps, writer.changes) == (swaps, changes)
    reports = [json.loads(line) for line in out.splitlines()]
    assert len(reports) == 1 + WORKERS
    for report in reports:
        assert report["wrong"] == []
        assert (report["version"], report["sequence"]) == (registry.current(), changes)
    return reports


def test_calls_under_swaps_and_changes(tmp_path: Path, bundles: list[Path]) -> None:
    reports = serve(tmp_path, bundles, calls=3_000, swaps=6, changes=40)
    assert sum(report["calls"] for report in reports) >= 3_000
    assert max(report["versions"] for report in reports) >= 3


@pytest.mark.slow
def test_a_million_calls_under_swaps_and_changes(tmp_path: Path, bundles: list[Path]) -> None:
    reports = serve(tmp_path, bundles, calls=1_000_000, swaps=200, changes=2_000)
    sys.stdout.write(f"{reports}\n")
    assert sum(report["calls"] for report in reports) >= 999_990
    for report in reports:
        before, after = report["mib"]
        assert after <= MORE * before, reports
