"""The whole call, measured: raw record to candidates, beside the peers' searches over the same vectors, in one run.

    python -m benchmarks.retrieval_latency [--items 1000000] [--out benchmarks/results/retrieval_latency.json]

Writes one JSON file; needs the extra ``bench``. About eight minutes and 8 GB at a million items.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import retrieval_world as world_of
from index.registry import Registry
from index.retriever import Retriever
from index.settings import TreeSettings
from pipelines.manifest import git_commit

# One thread a query, for every engine; read when NumPy, TensorFlow and FAISS are loaded.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_USE_LEGACY_KERAS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
K = 100
PEERS = ("tfrs_scann_layer", "faiss_ivfpq_fastscan", "faiss_hnsw", "hnswlib")
LAMBDAS = (0.0, 0.05, 0.1, 0.2, 0.5)
VALUE_SCALE = 0.3
# Users whose answers are compared with exact search.
JUDGED = 200


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
    """Each contestant in turn, several times over: the median of the turns' quantiles, and all of them."""
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


def recall_of(found: Callable[[int], np.ndarray], truth: list[np.ndarray]) -> float:
    """Mean share of the true rows found."""
    shares = [len(np.intersect1d(found(place), rows)) / max(1, len(rows)) for place, rows in enumerate(truth)]
    return round(float(np.mean(shares)), 5)


def best(scores: np.ndarray, k: int = K) -> np.ndarray:
    """Rows of the k best of ``[n]`` scores."""
    k = min(k, len(scores))
    return np.argpartition(-scores, k - 1)[:k]


def peers(
    names: list[str], vectors: np.ndarray, vector_of: Callable[[int], np.ndarray], truth: list[np.ndarray]
) -> dict[str, Any]:
    """Bare searches of other engines at the least effort that reaches a recall of .99; search call and recall each."""
    import faiss
    import hnswlib

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    items, dim = vectors.shape
    found: dict[str, Any] = {}
    fast = faiss.index_factory(dim, f"IVF{max(16, items // 250)},PQ{dim // 2}x4fs,RFlat", faiss.METRIC_INNER_PRODUCT)
    inner = faiss.downcast_index(fast.base_index)
    graph = faiss.IndexHNSWFlat(dim, 16, faiss.METRIC_INNER_PRODUCT)
    hnsw = hnswlib.Index(space="ip", dim=dim)
    if "faiss_ivfpq_fastscan" in names:
        fast.train(vectors[:: max(1, items // 200_000)])
        fast.add(vectors)
    if "faiss_hnsw" in names:
        graph.hnsw.efConstruction = 100
        graph.add(vectors)
    if "hnswlib" in names:
        hnsw.init_index(max_elements=items, M=16, ef_construction=100)
        hnsw.add_items(vectors)
        hnsw.set_num_threads(1)
    faiss.omp_set_num_threads(1)

    def set_fast(step: tuple[int, int]) -> None:
        inner.nprobe, fast.k_factor = step[0], step[1]

    def set_graph(ef: int) -> None:
        graph.hnsw.efSearch = ef

    settings: dict[str, tuple[Callable[[Any], None], list[Any], Callable[[int], Any], Callable[[Any], np.ndarray]]] = {
        "faiss_ivfpq_fastscan": (
            set_fast,
            [(4, 4), (8, 4), (12, 4), (8, 8), (16, 4), (16, 8), (32, 8), (64, 8)],
            lambda place: fast.search(vector_of(place)[None], K),
            lambda answer: answer[1][0],
        ),
        "faiss_hnsw": (
            set_graph,
            [100, 150, 200, 300, 400, 600],
            lambda place: graph.search(vector_of(place)[None], K),
            lambda answer: answer[1][0],
        ),
        "hnswlib": (
            hnsw.set_ef,
            [100, 120, 150, 200, 300, 400, 600],
            lambda place: hnsw.knn_query(vector_of(place)[None], K),
            lambda answer: answer[0][0],
        ),
    }
    for name in [name for name in settings if name in names]:
        configure, steps, search, rows_of = settings[name]
        for step in steps:
            configure(step)
            recall = recall_of(lambda place, search=search, rows_of=rows_of: rows_of(search(place)), truth)
            if recall >= 0.99:
                break
        found[name] = {"setting": str(step), "ann_recall_at_100": recall, "call": search}
    return found


def tfrs_peer(
    tower: Any, vectors: np.ndarray, records: list[dict[str, Any]], truth: list[np.ndarray]
) -> dict[str, Any]:
    """TFRS's ScaNN layer behind the same user tower, a ``tf.function`` loaded as a SavedModel signature."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    items = len(vectors)
    table = tf.constant(vectors)
    layer = tfrs.layers.factorized_top_k.ScaNN(
        None,
        k=K,
        num_leaves=max(8, items // 1000),
        num_leaves_to_search=15,
        num_reordering_candidates=400,
    )
    layer.index(table)

    def answer(**inputs: Any) -> dict[str, Any]:
        scores, rows = layer(tower.vectors(inputs))
        return {"scores": scores, "rows": rows}

    specs = {name: tf.TensorSpec(spec.shape, spec.dtype, name=name) for name, spec in tower.specs(1).items()}
    holder = tf.Module()
    holder.layer, holder.tower = layer, tower
    holder.answer = tf.function(answer)
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(
            holder,
            folder,
            signatures={"serving_default": holder.answer.get_concrete_function(**specs)},
            options=tf.saved_model.SaveOptions(namespace_whitelist=["Scann"]),
        )
        served = tf.saved_model.load(folder)
    signature = served.signatures["serving_default"]
    code_of = {value: place + 2 for place, value in enumerate(world_of.VALUES)}
    inputs = []
    for record in records:
        rows = (np.array(record["history"]) - 1_000_003) // 37
        given: dict[str, Any] = {
            "history": tf.constant(vectors[rows][None]),
            "history_mask": tf.ones([1, len(rows)]),
        }
        given |= {name: tf.constant([code_of[record[name]]], tf.int32) for name in world_of.CATEGORICAL}
        given |= {name: tf.constant([[record[name], 1.0]], tf.float32) for name in world_of.NUMERIC}
        inputs.append(given)
    search = lambda place: signature(**inputs[place % len(inputs)])["rows"].numpy()  # noqa: E731
    recall = recall_of(lambda place: search(place)[0], truth)
    return {
        "setting": "15 leaves, reorder 400; inputs ready as tensors",
        "ann_recall_at_100": recall,
        "call": search,
        "keep": served,
    }


def filters(
    retriever: Retriever, world: world_of.World, records: list[Any], scores: np.ndarray
) -> list[dict[str, Any]]:
    """Recall, latency, fill and plans at each selectivity, for rules at random and along the vectors."""
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
    """``max_per = 2`` over skewed advertisers, against greedy taking down the exact ranking."""
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


def throughput(retriever: Retriever, records: list[Any]) -> dict[str, Any]:
    """Calls a second in one thread and in two, in turns; and users a second in batches."""

    def ask(calls: int) -> None:
        for place in range(calls):
            retriever.retrieve(records[place % len(records)], K)

    ones, twos = [], []
    for _ in range(5):
        started = time.perf_counter()
        ask(4000)
        ones.append(4000 / (time.perf_counter() - started))
        threads = [threading.Thread(target=ask, args=(4000,)) for _ in range(2)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        twos.append(8000 / (time.perf_counter() - started))
    batches = []
    for _ in range(5):
        started = time.perf_counter()
        retriever.retrieve_batch(records, K)
        batches.append(len(records) / (time.perf_counter() - started))
    return {
        "one_thread_qps": round(float(np.median(ones))),
        "two_threads_qps": round(float(np.median(twos))),
        "two_threads_over_one": round(float(np.median(np.array(twos) / np.array(ones))), 3),
        "batch_qps": round(float(np.median(batches))),
        "batch_runs": [round(run) for run in batches],
    }


def rss_mb() -> float:
    """Resident memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def reload(bundles: list[Path], folder: Path, records: list[Any], swaps: int, calls: int) -> dict[str, Any]:
    """Calls across swaps: errors, the longest call, answers by version, memory before and after."""
    registry = Registry(folder / "registry")
    names = [registry.publish(bundle) for bundle in bundles]
    retriever = Retriever.open(folder / "registry", names[0], verify=True)
    watcher = retriever.watch(3600.0)
    for name in (names[1], names[0]):
        registry.store.write_text("CURRENT", name + "\n")
        watcher.check()
    for record in records[:500]:
        retriever.retrieve(record, K)
    before = rss_mb()
    taken: list[float] = []
    errors: list[str] = []
    versions: set[str] = set()
    done = threading.Event()

    def ask() -> None:
        place = 0
        while not done.is_set() or len(taken) < calls:
            started = time.perf_counter()
            try:
                versions.add(retriever.retrieve(records[place % len(records)], K).version)
            except Exception as err:
                errors.append(repr(err))
            taken.append(time.perf_counter() - started)
            place += 1

    asking = threading.Thread(target=ask)
    asking.start()
    for swap in range(swaps):
        registry.store.write_text("CURRENT", names[(swap + 1) % 2] + "\n")
        if not watcher.check():
            errors.append(f"swap {swap}: {retriever.last_error}")
    done.set()
    asking.join()
    retriever.close()
    over = np.array(taken) * 1e3
    return {
        "items": retriever.num_items,
        "calls": len(taken),
        "swaps": swaps,
        "errors": len(errors),
        "first_errors": errors[:3],
        "versions_answered": len(versions),
        "p50_us": round(float(np.percentile(over, 50)) * 1e3, 1),
        "p99_us": round(float(np.percentile(over, 99)) * 1e3, 1),
        "p999_us": round(float(np.percentile(over, 99.9)) * 1e3, 1),
        "max_ms": round(float(over.max()), 2),
        "calls_over_20_ms": int((over > 20).sum()),
        "rss_before_mb": round(before, 1),
        "rss_after_mb": round(rss_mb(), 1),
        "rss_change": round(rss_mb() / before - 1, 4),
    }


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
    leaves = max(8, items // 1000)
    tree = TreeSettings(leaves=leaves, leaves_to_search=min(15, leaves), reorder=min(400, items))
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
    report |= one_version(bundle, world, tower, records, turns, contestants)
    valued = world_of.write_bundle(folder / "value", world, tree, tower=lite, value_scale=VALUE_SCALE, tag="value")
    report["value_weight"] = values(valued, report["ann_recall_at_100"], world, records)
    other = world_of.make_world(items, dim, seed=7)
    second = world_of.write_bundle(folder / "second", other, tree, tower=lite, tag="second")
    report["reload"] = reload([bundle, second], folder, records, swaps=20, calls=10_000)
    return report


def one_version(
    bundle: Path, world: world_of.World, tower: Any, records: list[Any], turns: int, contestants: list[str]
) -> dict[str, Any]:
    """The call and its rules, and the peers' searches over the same vectors."""
    retriever = Retriever.open(bundle)
    queries = np.stack([retriever.embed(record) for record in records[:JUDGED]])
    scores = queries @ world.vectors.T
    truth = [best(line) for line in scores]
    recall = recall_of(lambda place: retriever.retrieve(records[place], K).rows, truth)
    others = peers(contestants, world.vectors, lambda place: queries[place % len(queries)], truth)
    if "tfrs_scann_layer" in contestants:
        others["tfrs_scann_layer"] = tfrs_peer(tower, world.vectors, records[:JUDGED], truth)

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
        **throughput(retriever, records),
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
    parser.add_argument("--peers", default=",".join(PEERS), help="which, with commas between; empty for none")
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
