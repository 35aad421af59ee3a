"""Workers forked after ``watch()``: their calls, locks, metrics and watchers live."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from index.registry.registry import Registry
from tests.index import serving_bundles
from tests.index.retrieval.live.prefork_driver import ROUNDS, WORKERS


def test_forked_workers_answer_and_follow_the_registry(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for seed in (0, 1):
        registry.publish(serving_bundles.write_bundle(tmp_path / f"b{seed}", items=600 + seed, seed=seed, leaves=8))
    command = [sys.executable, "-m", "tests.index.retrieval.live.prefork_driver", registry.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == WORKERS * ROUNDS, done.stderr
