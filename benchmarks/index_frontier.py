"""The tuned index against ScaNN's autopilot: recall, latency, build time, memory. Writes results/index_frontier.json.

    python -m benchmarks.index_frontier                                   # 1 M × 64
    python -m benchmarks.index_frontier --evenness 100 --key even_interests
    python -m benchmarks.index_frontier --items 10000000 --reorder int8 --queries 500 --key ten_million

Items are unit vectors in 3,000 clusters of very different sizes, the clusters in 60 departments. Queries are
user-like: the recency-weighted mean of a history of 20 items from three clusters, with a little noise and normalised;
none is an item. ``--evenness`` (Dirichlet) sets how evenly a user's events are spread over the three: at .5 most users
have one main interest; at 100 they have three equal ones, and a single vector between them is far from every item,
which is the hardest case. One half of the users is used for tuning, the other for measuring. Both engines are queried
through the same class, one query at a time in one thread, in alternating rounds; a figure is the median over rounds, a
ratio that of the two medians of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from index.building.forecast import GIB, forecast
from index.building.tuning.measurement import Queries, measure
from index.building.tuning.tree_search import Climb
from index.building.tuning.tuner import tune
from index.registry.searcher_spec import Measured
from index.search.scann_binding import builder, compiled
from index.search.scann_tree import ScannSearcher
from index.search.searcher import Searcher, Vectors
from index.settings import IndexSettings, TreeSettings
from pipelines.contracts.manifest import git_commit
from pipelines.progress import SILENT

RESULTS = Path(__file__).parent / "results" / "index_frontier.json"
# How far above autopilot's recall the target of a tree is that is compared at the same recall.
_AIM_ABOVE = 0.0005
ROUNDS = 5
# Runs that have their own key in the file.
_OTHER_RUNS = ("ten_million", "even_interests")
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Data:
    """items: ``[items, dim] float32`` unit rows; queries: ``[queries, dim] float32`` unit rows."""

    items: Vectors
    queries: Vectors


def make_data(arguments: argparse.Namespace) -> Data:
    """Cluster sizes by a power law, centers at a spread of .8 around their department's, items at .6 around a center;
    users as described above. Items are in a file, so that ten million of them fit in memory next to a build."""
    items, dim = arguments.items, arguments.dim
    rng = np.random.default_rng(arguments.seed)
    departments = _unit(rng.normal(size=(60, dim)))
    centers = _around(departments[rng.integers(60, size=3000)], rng, 0.8)
    weights = np.arange(1, 3001) ** -0.7
    weights /= weights.sum()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    vectors = np.lib.format.open_memmap(arguments.folder / "items.npy", mode="w+", dtype=np.float32, shape=(items, dim))
    for start in range(0, items, _CHUNK):
        n = min(_CHUNK, items - start)
        vectors[start : start + n] = _around(centers[rng.choice(3000, n, p=weights)], rng)
    recency = 0.9 ** np.arange(20)
    users = np.empty((2 * arguments.queries, dim), np.float32)
    for user in range(len(users)):
        interests = rng.choice(3000, 3, p=weights)
        shares = rng.dirichlet([arguments.evenness] * 3)
        history = _around(centers[rng.choice(interests, 20, p=shares)], rng)
        users[user] = recency @ history / recency.sum() + 0.1 / dim**0.5 * rng.normal(size=dim)
    return Data(vectors.view(np.ndarray), _unit(users))


def _around(centers: Vectors, rng: np.random.Generator, spread: float = 0.6) -> Vectors:
    return _unit(centers + spread / centers.shape[1] ** 0.5 * rng.normal(size=centers.shape).astype(np.float32))


def _unit(vectors: np.ndarray) -> Vectors:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def autopilot(items: Vectors, threads: int) -> tuple[Searcher, float]:
    """ScaNN's own choice by size alone, behind the same class, and the seconds of its build."""
    config = builder().ScannBuilder(items, 100, "dot_product").autopilot().create_config()
    config = compiled().ScannNumpy.suggest_autopilot(config, *items.shape)
    start = time.perf_counter()
    searcher = compiled().ScannNumpy(items, config, threads)
    seconds = time.perf_counter() - start
    return _AsChosen(searcher, items), seconds


class _AsChosen(ScannSearcher):
    """A searcher that is queried with the settings of its own configuration."""

    def __init__(self, searcher: Any, items: Vectors) -> None:
        # -1 is ScaNN's word for "as configured".
        tree = TreeSettings.model_construct(leaves=-1, leaves_to_search=-1, reorder=-1, reorder_type="float32")
        super().__init__(searcher, tree, items, np.zeros(0, np.int32))

    def _search(self, query: Vectors, k: int, effort: Any) -> Any:  # noqa: ARG002
        found, scores = self._searcher.search(query, k, -1, -1)
        return self._finish(found, scores, query, k)


def alternating(searchers: dict[str, Searcher], check: Queries) -> dict[str, dict[str, Any]]:
    """Measures each in turn, ``ROUNDS`` times; medians and all rounds."""
    rounds: dict[str, list[Measured]] = {name: [] for name in searchers}
    for _ in range(ROUNDS):
        for name, searcher in searchers.items():
            rounds[name].append(measure(searcher, check, None, 0.0))
    return {
        name: {
            "ann_recall_at_100": points[0].ann_recall_at_100,
            "p50_us": float(np.median([point.p50_us for point in points])),
            "p99_us": float(np.median([point.p99_us for point in points])),
            "rounds_p50_us": [round(point.p50_us, 1) for point in points],
        }
        for name, points in rounds.items()
    }


def fastest_effort(searcher: ScannSearcher, queries: Queries, goal: float) -> ScannSearcher:
    """The same tree with the fastest effort that meets a recall; with its own where none does."""
    settings = IndexSettings(ann_recall_at_100=goal, recall_margin=0.0)
    built = Climb(searcher.vectors, queries, settings, SILENT, time.perf_counter()).aimed(searcher, 0.0)
    return searcher.with_effort(built.effort) if built.meets else searcher


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """One size: data, tuning, autopilot, measurement."""
    data = make_data(arguments)
    settings = IndexSettings(
        ann_recall_at_100=arguments.target,
        reorder_types=tuple(arguments.reorder),
        tuning_queries=arguments.queries,
        tuning_seconds=arguments.tuning_seconds,
        engine="scann",
    )
    start = time.perf_counter()
    predicted = forecast(arguments.items, arguments.dim, settings)
    forecast_seconds = time.perf_counter() - start
    start = time.perf_counter()
    tuning = Queries.of(data.queries[: arguments.queries], data.items)
    check = Queries.of(data.queries[arguments.queries :], data.items)
    truth_seconds = time.perf_counter() - start
    tuned = tune(data.items, tuning, check, settings, print)
    if tuned.spec.tree is None:
        raise SystemExit("the tuner chose exact search: nothing to compare")
    chosen_tree = cast(ScannSearcher, tuned.searcher)
    # The peak of the whole process: vectors read from the file, trees, and creating the data.
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    searchers: dict[str, Searcher] = {"chosen": chosen_tree}
    result: dict[str, Any] = {}
    if arguments.autopilot:
        searchers["autopilot"], seconds = autopilot(data.items, os.cpu_count() or 1)
        # The target for the users it is tuned with is a little higher, so that it is not missed on the others.
        recall = measure(searchers["autopilot"], tuning, None, 0.0).ann_recall_at_100
        equal = fastest_effort(chosen_tree, tuning, min(1.0, recall + _AIM_ABOVE))
        searchers["at_autopilots_recall"] = equal
        result["autopilot_build_seconds"] = seconds
    measured = alternating(searchers, check)
    spec = tuned.spec
    chosen = measured.pop("chosen")
    result |= {
        "items": arguments.items,
        "dim": arguments.dim,
        "target": arguments.target,
        "evenness": arguments.evenness,
        "chosen": spec.tree.model_dump() if spec.tree else None,
        **chosen,
        "build_seconds": spec.build_seconds,
        "tune_seconds": spec.tune_seconds + truth_seconds,
        "build_and_tune_seconds": spec.build_seconds + spec.tune_seconds + truth_seconds,
        "autopilot": measured.get("autopilot"),
        "at_autopilots_recall": measured.get("at_autopilots_recall"),
        "peak_memory_gib_of_tuning": peak_gib,
        "forecast": {
            "build_seconds": predicted.time.build_seconds,
            "build_and_tune_seconds": predicted.time.build_seconds + predicted.time.tune_seconds,
            "memory_gib": predicted.memory_bytes / GIB,
            "seconds_to_forecast": forecast_seconds,
        },
        "points_measured": spec.points,
        "frontier": [point.model_dump(mode="json") for point in spec.frontier],
    }
    if arguments.autopilot:
        own, equal_p50 = result["autopilot"]["p50_us"], result["at_autopilots_recall"]["p50_us"]
        result["p50_over_autopilot"] = result["p50_us"] / own
        result["p50_over_autopilot_at_its_recall"] = equal_p50 / own
    return {**result, "config": settings.model_dump(mode="json"), **machine()}


def machine() -> dict[str, Any]:
    """The machine and the commit."""
    model = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    return {
        "machine": {"cpu": model[0] if model else platform.machine(), "cores": os.cpu_count()},
        "commit": git_commit(),
        "measured_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def main() -> None:
    """Measures and merges the result into the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--target", type=float, default=0.99)
    parser.add_argument("--queries", type=int, default=1000, help="users to tune with, and as many others to measure")
    parser.add_argument("--reorder", nargs="+", default=["float32", "int8", "bf16"])
    parser.add_argument("--tuning-seconds", type=float, default=130.0)
    parser.add_argument("--autopilot", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--evenness", type=float, default=0.5, help="how even a user's interests are")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/towerline-index-frontier"), help="for the vectors")
    parser.add_argument("--key", default=None, help="key in the file for the result; default: the top level")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    result = run(arguments)
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    if arguments.key is not None:
        merged = {**kept, arguments.key: result}
    else:
        merged = {**result, **{key: value for key, value in kept.items() if key in _OTHER_RUNS}}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(merged, indent=1) + "\n")
    print({key: value for key, value in result.items() if key not in ("frontier", "config")})


if __name__ == "__main__":
    main()
