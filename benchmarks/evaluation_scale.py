"""Evaluates 100,000 users against 1,000,000 items at k = 500, exactly, and measures time and memory.

Writes ``benchmarks/results/evaluation_scale.json``. Vectors and truths are made up: 64 dimensions around centers, each
user's truth drawn near the user. It times the work of ``towerline evaluate`` after the users' vectors are made: exact
search of every user over the whole corpus, and every metric at every cut-off with bootstrap intervals, for all, novel
and repeated items.

    python benchmarks/evaluation_scale.py [--users N] [--items N] [--k K]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from pathlib import Path

import numpy as np

from index.evaluation.measures.exact_top_k import exact_top_k
from index.evaluation.measures.metrics import without
from index.evaluation.ranking import Rankings
from index.evaluation.sections.quality import measure_quality
from index.evaluation.settings import EvaluationSettings
from pipelines.contracts.manifest import git_commit
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets

RESULT = Path(__file__).parent / "results" / "evaluation_scale.json"
DIM = 64
SEEN = 40
TRUTH = 8


def world(users: int, items: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of users and items, ``[n, DIM] float32``, around the same 500 centers."""
    centers = rng.normal(size=(500, DIM)).astype(np.float32)
    sides = []
    for n in (users, items):
        vectors = centers[rng.integers(0, len(centers), n)] + rng.normal(size=(n, DIM)).astype(np.float32)
        sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return sides[0], sides[1]


def held_out(ranked: np.ndarray, items: int, rng: np.random.Generator) -> HeldOut:
    """Users whose past and truth are partly among their best items, partly anywhere."""
    users, depth = ranked.shape

    def drawn(each: int) -> np.ndarray:
        near = np.take_along_axis(ranked, rng.integers(0, depth, (users, each)), axis=1)
        return np.where(rng.random((users, each)) < 0.5, near, rng.integers(0, items, (users, each))).astype(np.int32)

    def pairs(rows: np.ndarray) -> ItemSets:
        owners = np.repeat(np.arange(users), rows.shape[1])
        return ItemSets.of(owners, rows.ravel(), users, rng.lognormal(2, 1, rows.size))

    seen, fresh = drawn(SEEN), drawn(TRUTH)
    truth = pairs(np.concatenate([fresh, seen[:, :4]], axis=1))
    return HeldOut(np.arange(users, dtype=np.int32), truth, pairs(seen))


def cpu_seconds() -> float:
    """CPU time of all threads of this process; unlike the wall clock, other work on the machine hardly changes it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Runs and writes the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--users", type=int, default=100_000)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=500)
    options = parser.parse_args()
    rng = np.random.default_rng(17)
    users, items = world(options.users, options.items, rng)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    started, cpu = time.perf_counter(), cpu_seconds()
    ranked = exact_top_k(users, items, options.k + SEEN).rows
    searched = time.perf_counter()
    data = held_out(ranked, options.items, rng)
    made = time.perf_counter()
    settings = EvaluationSettings(k=tuple(k for k in (1, 5, 10, 20, 50, 100, 500) if k <= options.k), waterfall_k=10)
    rankings = Rankings(ranked[:, : options.k], without(ranked, data.seen, options.k))
    item_events = np.bincount(data.seen.rows, minlength=options.items).astype(np.float64)
    quality = measure_quality(rankings, data, item_events, {"event": data.truth}, settings)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the end",
        "commit": git_commit(),
        "users": options.users,
        "items": options.items,
        "k": options.k,
        "depth_searched": options.k + SEEN,
        "dim": DIM,
        "search_seconds": round(searched - started, 1),
        "metrics_seconds": round(ended - made, 1),
        "cpu_seconds": round(cpu_seconds() - cpu, 1),
        "total_seconds": round(searched - started + ended - made, 1),
        "peak_gib": round(peak, 2),
        "gib_of_the_vectors": round(before, 2),
        "measures": len(quality.measures),
        "recall": quality.part().recall,
    }
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
