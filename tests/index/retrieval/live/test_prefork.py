"""Workers forked after ``watch()``: their calls, locks, metrics and watchers live."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from index.registry.registry import Registry
from tests.index import serving_bundles
from tests.index.retrieval.live.prefork_driver import WORKERS


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [serving_bundles.write_bundle(root / f"b{seed}", items=600 + seed, seed=seed, leaves=8) for seed in (0, 1)]


def serve(url: str, rounds: int) -> None:
    """Runs the server; every worker must follow the registry."""
    command = [sys.executable, "-m", "tests.index.retrieval.live.prefork_driver", url, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == WORKERS * rounds, done.stderr


def test_forked_workers_answer_and_follow_the_registry(tmp_path: Path, bundles: list[Path]) -> None:
    registry = Registry(tmp_path / "registry")
    for bundle in bundles:
        registry.publish(bundle)
    serve(registry.url, 8)
