"""Measures the whole call, raw record to candidates, and other engines' searches over the same vectors in one run.

    python -m benchmarks.retrieval_latency [--items 1000000] [--out benchmarks/results/retrieval_latency.json]

Writes one JSON file; needs the extra ``bench``. Takes about twenty minutes and 8 GB at a million items, mostly for the
two HNSW graphs: five minutes without them (``--peers tfrs_scann_layer,faiss_ivfpq_fastscan``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.retrieval import world as world_of
from benchmarks.retrieval.peers import TARGET, K, aimed, peers, recall_of, tfrs_peer
from benchmarks.retrieval.reload import in_own_process
from benchmarks.retrieval.throughput import throughput
from index.building.tuning.measurement import Queries
from index.retrieval.retriever import Retriever
from index.settings import TreeSettings
from pipelines.contracts.manifest import git_commit

# One thread per query, for every engine; read when NumPy, TensorFlow and FAISS are loaded.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
PEERS = ("tfrs_scann_layer", "faiss_ivfpq_fastscan", "faiss_hnsw", "hnswlib")
LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.5)
VALUE_SCALE = 0.3
# Users whose answers are compared with exact search, and other users with whom efforts are chosen.
JUDGED = 200
CHOOSING = 500
# Added to the recall target: users differ from those with whom an effort is chosen.
MARGIN = 0.004
# What ``index.building.tuning.tuner`` chose for this world, given 200 seconds (2026-11-21).
ITEMS_PER_LEAF = 1000
TREE = {"anisotropic_threshold": 0.3, "dims_per_block": 1}


def quantiles(call: Callable[[int], Any], calls: int, warm: int = 200) -> dict[str, float]:
    """p50 and p99 in microseconds of ``call(0..)``, one at a time."""
    for number in range(min(warm, calls)):
        call(number)
    taken = np.empty(calls)
    for number in range(calls):
        started = time.perf_counter_ns()
        call(number)
        taken[number] = time.perf_counter_ns() - started
    return {
        "p50_us": round(float(np.percentile(taken, 50)) / 1e3, 1),
        "p99_us": round(float(np.percentile(taken, 99)) / 1e3, 1),
    }


def rounds(calls: dict[str, Callable[[int], Any]], number: int, turns: int) -> dict[str, dict[str, Any]]:
    """Each contestant in turn, several times: the median of the turns' quantiles, and all of them."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            runs[name].append(quantiles(call, number))
    return {
        name: {
            "p50_us": round(float(np.median([run["p50_us"] for run in taken])), 1),
            "p99_us": round(float(np.median([run["p99_us"] for run in taken])), 1),
            "runs": taken,
        }
        for name, taken in runs.items()
    }


def best(scores: np.ndarray, k: int = K) -> np.ndarray:
    """Rows of the k best of ``[n]`` scores."""
    k = min(k, len(scores))
    return np.argpartition(-scores, k - 1)[:k]


def filters(
    retriever: Retriever, world: world_of.World, records: list[Any], scores: np.ndarray
) -> list[dict[str, Any]]:
    """Recall, latency, fill and plans at each selectivity, for random rules and rules along the vectors."""
    measured = []
    for kind, column in (("random", "chance"), ("correlated", "direction")):
        for selectivity in world_of.SELECTIVITIES:
            where = f"{column} < {selectivity}"
            eligible = np.flatnonzero(world.attributes[column] < selectivity)
            started = time.perf_counter()
            retriever.retrieve(records[0], K, where=where)
            first = time.perf_counter() - started
            truth = [eligible[best(line[eligible])] for line in scores]
            answers = [retriever.retrieve(record, K, where=where) for record in records[: len(scores)]]
            wanted = min(K, len(eligible))
            methods = [answer.plan.method for answer in answers]
            measured.append(
                {
                    "kind": kind,
                    "selectivity": selectivity,
                    "eligible": len(eligible),
                    "recall_at_100": recall_of(lambda place, answers=answers: answers[place].rows, truth),
                    "fill_exact": all(len(answer) == wanted for answer in answers),
                    "plans": {method: methods.count(method) for method in sorted(set(methods))},
                    "first_call_ms": round(first * 1e3, 2),
                    **quantiles(
                        lambda place, where=where: retriever.retrieve(records[place % len(records)], K, where=where),
                        1000,
                    ),
                }
            )
    return measured


def crowding(retriever: Retriever, world: world_of.World, records: list[Any], scores: np.ndarray) -> dict[str, Any]:
    """``max_per = 2`` over skewed advertisers, against greedy selection from the exact ranking."""
    groups = world.attributes["advertiser_id"]
    truth = []
    for line in scores:
        taken: dict[int, int] = {}
        rows = []
        for row in np.argsort(-line, kind="stable"):
            if taken.get(groups[row], 0) < 2:
                taken[groups[row]] = taken.get(groups[row], 0) + 1
                rows.append(row)
                if len(rows) == K:
                    break
        truth.append(np.array(rows))
    ask = lambda place: retriever.retrieve(records[place % len(records)], K, max_per={"advertiser_id": 2})  # noqa: E731
    answers = [ask(place) for place in range(len(scores))]
    violated = sum(int((np.bincount(groups[answer.rows]) > 2).any()) for answer in answers)
    return {
        "max_per": 2,
        "largest_share": round(float(np.bincount(groups).max() / len(groups)), 4),
        "recall_at_100": recall_of(lambda place: answers[place].rows, truth),
        "violations": violated,
        "fill_exact": all(len(answer) == K for answer in answers),
        **quantiles(ask, 1000),
    }


def values(bundle: Path, plain_recall: float, world: world_of.World, records: list[Any]) -> dict[str, Any]:
    """Recall against exact utility for each weight, on one tree with a value dimension."""
    retriever = Retriever.open(bundle, verify=False)
    scores = np.stack([retriever.embed(record) for record in records[:JUDGED]]) @ world.vectors.T
    logs = np.log(world.attributes["bid"]).astype(np.float32)
    measured = []
    for weight in LAMBDAS:
        truth = [best(line + np.float32(weight) * logs) for line in scores]
        ask = lambda place, weight=weight: retriever.retrieve(records[place % len(records)], K, value_weight=weight)  # noqa: E731
        recall = recall_of(lambda place, ask=ask: ask(place).rows, truth)
        measured.append({"weight": weight, "recall_at_100": recall, **quantiles(ask, 500)})
    return {"scale": VALUE_SCALE, "plain_recall_at_100": plain_recall, "weights": measured}


def machine() -> dict[str, Any]:
    """Where this was measured."""
    model = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        "",
    )
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "load_1m": os.getloadavg()[0]}


def measure(items: int, dim: int, users: int, turns: int, folder: Path, contestants: list[str]) -> dict[str, Any]:
    """Builds everything once and measures."""
    world = world_of.make_world(items, dim)
    tower = world_of.make_tower(dim)
    lite = world_of.lite_tower(tower)
    choosing = world_of.tower_inputs(world_of.make_records(world, CHOOSING, seed=11), world.vectors)
    queries = Queries.of(tower.vectors(choosing).numpy(), world.vectors)
    leaves = max(8, items // ITEMS_PER_LEAF)
    first = TreeSettings(leaves=leaves, leaves_to_search=min(10, leaves), reorder=min(200, items), **TREE)
    tree = aimed(world.vectors, first, queries, TARGET + MARGIN)
    bundle = world_of.write_bundle(folder / "plain", world, tree, tower=lite)
    records = world_of.make_records(world, users)
    report: dict[str, Any] = {
        "machine": machine(),
        "commit": git_commit(),
        "items": items,
        "dim": dim,
        "k": K,
        "history": world_of.HISTORY,
        "features": len(world_of.CATEGORICAL) + len(world_of.NUMERIC),
        "tree": tree.model_dump(),
    }
    report |= one_version(bundle, world, tower, records, queries, turns, contestants)
    valued = world_of.write_bundle(folder / "value", world, tree, tower=lite, value_scale=VALUE_SCALE, tag="value")
    report["value_weight"] = values(valued, report["ann_recall_at_100"], world, records)
    other = world_of.make_world(items, dim, seed=7)
    second = world_of.write_bundle(folder / "second", other, tree, tower=lite, tag="second")
    report["reload"] = in_own_process([bundle, second], folder, records)
    return report


def one_version(
    bundle: Path,
    world: world_of.World,
    tower: Any,
    records: list[Any],
    choosing: Queries,
    turns: int,
    contestants: list[str],
) -> dict[str, Any]:
    """The call and its rules, and the peers' searches over the same vectors."""
    retriever = Retriever.open(bundle)
    queries = np.stack([retriever.embed(record) for record in records[:JUDGED]])
    scores = queries @ world.vectors.T
    truth = [best(line) for line in scores]
    recall = recall_of(lambda place: retriever.retrieve(records[place], K).rows, truth)
    others = peers(contestants, world.vectors, lambda place: queries[place % len(queries)], truth)
    if "tfrs_scann_layer" in contestants:
        others["tfrs_scann_layer"] = tfrs_peer(tower, world.vectors, records[:JUDGED], truth, choosing)

    def ask(place: int) -> Any:
        return retriever.retrieve(records[place % len(records)], K)

    contest = rounds({"towerline": ask, **{name: other["call"] for name, other in others.items()}}, 2000, turns)
    ours = contest.pop("towerline")
    for name, other in others.items():
        contest[name] |= {key: other[key] for key in ("setting", "ann_recall_at_100")}
        contest[name]["p50_over_ours"] = round(contest[name]["p50_us"] / ours["p50_us"], 2)
    return {
        "ann_recall_at_100": recall,
        **ours,
        "filters": filters(retriever, world, records, scores),
        "crowding": crowding(retriever, world, records, scores),
        **throughput(retriever, bundle, records),
        "peers": contest,
        "speedup_over_tfrs_scann_layer": contest.get("tfrs_scann_layer", {}).get("p50_over_ours"),
    }


def main() -> None:
    """Measures and writes the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--users", type=int, default=3000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--peers", default=",".join(PEERS), help="engines, separated by commas; empty for none")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval_latency.json")
    arguments = parser.parse_args()
    if not ENVIRONMENT.items() <= os.environ.items():
        command = [sys.executable, "-m", "benchmarks.retrieval_latency", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **ENVIRONMENT})
    with tempfile.TemporaryDirectory() as folder:
        report = measure(
            arguments.items, arguments.dim, arguments.users, arguments.turns, Path(folder), arguments.peers.split(",")
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key not in ("filters", "peers")}, indent=1))
    print(arguments.out)


if __name__ == "__main__":
    main()
