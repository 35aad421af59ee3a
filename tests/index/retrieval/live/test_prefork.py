"""Workers forked after ``watch()``: their calls, locks, metrics and watchers live."""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scann

from index.registry.registry import Registry
from tests.forks import exit_code, forked
from tests.index import serving_bundles
from tests.index.retrieval.live.prefork_driver import WORKERS


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("bundles")
    return [serving_bundles.write_bundle(root / f"b{seed}", items=600 + seed, seed=seed, leaves=8) for seed in (0, 1)]


def _leave_a_tree_in_a_cycle() -> None:
    """Garbage that has had threads, and is not ours: a tree that somebody built and let go."""
    vectors = np.random.default_rng(0).random((2000, 8), np.float32)
    tree = scann.scann_ops_pybind.builder(vectors, 10, "dot_product").tree(20, 5).score_ah(2).build()
    tree.search_batched_parallel(vectors[:50])
    cycle: list[Any] = [tree]
    cycle.append(cycle)


def test_a_forked_process_never_collects_the_garbage_of_its_parent() -> None:
    """ScaNN's destructor waits for threads, and a fork has none: the child would never end."""

    def work() -> None:
        assert gc.isenabled()
        gc.collect()

    gc.collect()
    gc.disable()
    try:
        _leave_a_tree_in_a_cycle()
        gc.enable()
        child = forked(work)
    finally:
        gc.enable()
    assert gc.isenabled()
    assert exit_code(child) == 0
    gc.collect()


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
