"""Train pairs per second of the two towers and of stock TFRS, and the wall time to the same validation recall.

Reads ``gowalla_m1/interactions.parquet`` below ``--data``; writes ``benchmarks/results/training_throughput.json``. All
are timed in one run on the same machine, alternating over several rounds, because a shared machine's speed drifts by a
third within minutes; reported are medians with all rounds, and the median of the rounds' ratios.

Stock TFRS is its own ``Retrieval`` task with ``remove_accidental_hits`` and the log-q correction, Adagrad, in-batch
negatives, at batch size 1024 or 4096, whichever is faster for it. A train pair is a (user, item) event that was learned
from. The towers run with the recipe for data without order (256 users, all of the batch's items and 2,048 others as
candidates), which is made for recall; with wide batches of few candidates (``WIDE``), made for speed; and, to a recall,
also with a few epochs of batches between the two (``SHORT``).

    python -m benchmarks.training_throughput --data ../shared/data
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from pipelines.contracts.manifest import git_commit
from pipelines.contracts.schema import parse_schema
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from towers.closed_form.start import start_from_svd
from towers.data.sampler import Sampler
from towers.data.training_data import TrainingData
from towers.network.model import TwoTowers, signature, tensors_of
from towers.runtime import tf, tf_keras, tfrs
from towers.settings import settings_for
from towers.training.job import optimizer_of, step_function
from towers.training.prefetch import prefetched
from towers.training.recall import recall_at
from towers.training.validation_recall import evaluate

RESULTS = Path(__file__).parent / "results" / "training_throughput.json"
DIM = 64
WARM_STEPS = 3
# Chosen by the validation recall they reach on gowalla_m1, and how soon.
WIDE = {
    "batch_users": 2048,
    "in_batch_negatives": 256,
    "uniform_negatives": 256,
    "learning_rate": 0.005,
    "epochs": 8,
}
SHORT = {
    "batch_users": 1024,
    "in_batch_negatives": 512,
    "uniform_negatives": 512,
    "learning_rate": 0.005,
    "epochs": 3,
}
RACERS: dict[str, dict[str, float]] = {"towerline": SHORT, "towerline wide": WIDE, "towerline recipe": {}}
RACES = 3  # the one with the median ratio is reported


def data_of(users: npt.NDArray[Any], items: npt.NDArray[Any], splits: npt.NDArray[Any]) -> TrainingData:
    """Pairs as the towers see an unordered data set with user and item ids."""
    order = np.lexsort((items, users))
    users, items, splits = users[order], items[order], splits[order]
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    offsets = np.searchsorted(users, np.arange(num_users + 1)).astype(np.int64)
    frequency = np.bincount(items[splits == 0], minlength=num_items).astype(np.int64)
    events = {"path": "-", "user_id": "user_id", "item_id": "item_id", "unordered": True}
    raw = {
        "dataset": {"name": "throughput"},
        "tables": {"events": events},
        "features": {"user": [{"name": "user_id", "kind": "id"}], "item": [{"name": "item_id", "kind": "id"}]},
        "split": {"column": "split"},
    }
    zeros = np.zeros(len(items), np.int8)
    return TrainingData(
        schema=parse_schema(raw, "throughput"),
        items={"item_id": np.arange(2, num_items + 2, dtype=np.int32)},
        users={"user_id": np.arange(2, num_users + 2, dtype=np.int32)},
        events=EventLists(
            offsets, items.astype(np.int32), np.zeros(len(items), np.int64), zeros, splits.astype(np.int8)
        ),
        item_frequency=frequency,
        table_sizes={"item": {"item_id": num_items + 2}, "user": {"user_id": num_users + 2}},
        frequencies={"item_id": frequency},
        numbers={"item": {}, "user": {}},
    )


def gowalla(data: Path) -> TrainingData:
    """The train part of gowalla_m1; a tenth of it, by position, is held out as validation."""
    table = pq.read_table(data / "gowalla_m1" / "interactions.parquet")
    train = np.asarray(table["split"].cast("string").to_numpy(zero_copy_only=False)) == "train"
    users, items = (np.asarray(table[name])[train] for name in ("user_id", "item_id"))
    held = np.random.default_rng(17).random(len(users)) < 0.1
    return data_of(users, items, held.astype(np.int8))


def synthetic(users: int, items: int, pairs: int) -> TrainingData:
    """Zipf-like items, and users with about equally many events."""
    rng = np.random.default_rng(1)
    who = np.concatenate([np.arange(users), rng.integers(0, users, pairs - users)])
    what = (items * rng.random(pairs) ** 3).astype(np.int64)
    what[:items] = rng.permutation(items)[: min(items, pairs)]
    return data_of(who, what, np.zeros(pairs, np.int8))


class Ours:
    """The product's model and batches, with its recipe for data without order and the keys ``changed``.

    ``starts``: begin with the recipe's closed-form start, which takes ``start_seconds``; speeds do not depend on it.
    """

    def __init__(self, data: TrainingData, changed: dict[str, float], *, starts: bool) -> None:
        given: dict[str, Any] = {"embedding_dim": DIM, **changed}
        self.settings = settings_for(data.schema, **given)
        self.data = data
        events = data.events.before(1)
        self.sampler = Sampler(data, events, self.settings)
        tf.keras.utils.set_random_seed(1)
        self.model = TwoTowers(data, self.settings, 1)
        batch = next(self.sampler.epoch(np.random.default_rng(0)))
        self.model.compute_loss(tensors_of(batch))
        started = time.perf_counter()
        if starts:
            start_from_svd(self.model, data, events)
        self.start_seconds = time.perf_counter() - started
        optimizer = optimizer_of(self.model, data, self.settings, self.sampler.steps)
        self.step = step_function(self.model, optimizer, signature(batch))

    def steps(self, generator: np.random.Generator) -> Iterator[int]:
        """Learns from the batches of one epoch; yields the number of pairs of each."""
        batches = ((tensors_of(batch), len(batch.positives)) for batch in self.sampler.epoch(generator))
        for batch, pairs in prefetched(batches):
            float(self.step(batch))
            yield pairs

    def recall(self) -> float:
        """Validation recall@20, train items removed from the ranking."""
        return evaluate(self.model, self.data, 1, (20,), 5000, ("novel",))["novel"].recall[20]


class _Stock(tfrs.Model):  # type: ignore[misc]
    """Two id towers and TFRS's own task, as its tutorials have them."""

    def __init__(self, users: int, items: int) -> None:
        super().__init__()
        self.user_table = tf_keras.layers.Embedding(users, DIM)
        self.item_table = tf_keras.layers.Embedding(items, DIM)
        self.task = tfrs.tasks.Retrieval(remove_accidental_hits=True)

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """TFRS's sampled softmax over the batch."""
        return self.task(
            self.user_table(inputs["user"]),
            self.item_table(inputs["item"]),
            candidate_sampling_probability=inputs["probability"],
            candidate_ids=inputs["item"],
            compute_metrics=not training,
        )


class Stock:
    """Stock TFRS at one batch size."""

    def __init__(self, data: TrainingData, batch: int, learning_rate: float = 0.1) -> None:
        self.name, self.batch, self.data = f"tfrs batch {batch}", batch, data
        self.start_seconds = 0.0
        events = data.events.before(1)
        self.users, self.items = events.owners, events.rows
        self.probability = (data.item_frequency / data.item_frequency.sum()).astype(np.float32)
        tf.keras.utils.set_random_seed(1)
        self.model = _Stock(data.events.num_users, data.num_items)
        self.model.compile(optimizer=tf_keras.optimizers.Adagrad(learning_rate))
        self.step = tf.function(self.model.train_step, reduce_retracing=True)

    def steps(self, generator: np.random.Generator) -> Iterator[int]:
        """One epoch; yields the number of pairs of each batch (the last, smaller one is left out)."""
        order = generator.permutation(len(self.items))
        for start in range(0, len(order) - self.batch + 1, self.batch):
            chosen = order[start : start + self.batch]
            rows = self.items[chosen]
            inputs = {"user": self.users[chosen], "item": rows, "probability": self.probability[rows]}
            result = self.step({name: tf.constant(value) for name, value in inputs.items()})
            float(result["loss"])
            yield len(chosen)

    def recall(self) -> float:
        """Validation recall@20, train items removed from the ranking."""
        held_out = HeldOut.of(self.data.events, 1).spread(5000).without_seen()
        users, items = (table.embeddings.numpy() for table in (self.model.user_table, self.model.item_table))
        return recall_at(users[held_out.users], items, held_out, (20,), remove_seen=True).recall[20]


def pairs_per_second(contenders: dict[str, Ours | Stock], seconds: float, rounds: int) -> dict[str, list[float]]:
    """The speed of each in each round of at least ``seconds``, after a few steps that are not timed."""
    sources = {name: _endless(contender, np.random.default_rng(2)) for name, contender in contenders.items()}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, source in sources.items():
            for _ in range(WARM_STEPS):
                next(source)
            started, pairs = time.perf_counter(), 0
            while time.perf_counter() - started < seconds:
                pairs += next(source)
            speeds[name].append(pairs / (time.perf_counter() - started))
    return speeds


def _endless(contender: Ours | Stock, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from contender.steps(generator)


def time_to(contender: Ours | Stock, goal: float, epochs: int, limit: float) -> dict[str, Any]:
    """Training seconds (validation not counted) until the recall is ``goal``, and the best recall seen."""
    generator, spent = np.random.default_rng(3), contender.start_seconds
    best = contender.recall() if spent else 0.0
    curve = [{"epoch": 0, "seconds": round(spent, 1), "recall": round(best, 5)}]
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        for _ in contender.steps(generator):
            pass
        spent += time.perf_counter() - started
        best = max(best, contender.recall())
        curve.append({"epoch": epoch, "seconds": round(spent, 1), "recall": round(best, 5)})
        if best >= goal or spent > limit:
            break
    return {"reached": best >= goal, "best": best, "seconds": spent, "curve": curve}


def race(data: TrainingData, batch: int, limit: float) -> dict[str, Any]:
    """Stock TFRS's best validation recall, and the seconds to it: its own and each of ``RACERS``'."""
    stock = time_to(Stock(data, batch), 1.0, 100, limit)
    at_best = next(point["seconds"] for point in stock["curve"] if point["recall"] >= round(stock["best"], 5))
    found: dict[str, Any] = {"goal": stock["best"], "tfrs": stock, "tfrs_seconds": at_best}
    for name, changed in RACERS.items():
        contender = Ours(data, changed, starts=True)
        ours = time_to(contender, stock["best"], contender.settings.epochs, limit)
        found[name] = {**ours, "settings": changed, "ratio": ours["seconds"] / at_best if ours["reached"] else None}
    return found


def implicit_speeds(data: TrainingData) -> dict[str, float]:
    """Pairs per second of ``implicit``'s BPR and ALS, for epochs over the same pairs."""
    import scipy.sparse
    from implicit.als import AlternatingLeastSquares
    from implicit.bpr import BayesianPersonalizedRanking

    events = data.events.before(1)
    shape = (events.num_users, data.num_items)
    ones = np.ones(len(events.rows), np.float32)
    matrix = scipy.sparse.csr_matrix((ones, (events.owners, events.rows)), shape)
    speeds = {}
    threads = os.cpu_count() or 1
    for name, kind in (("implicit BPR", BayesianPersonalizedRanking), ("implicit ALS", AlternatingLeastSquares)):
        started = time.perf_counter()
        kind(factors=DIM, iterations=3, num_threads=threads).fit(matrix, show_progress=False)
        speeds[name] = 3 * matrix.nnz / (time.perf_counter() - started)
    return speeds


def compare(name: str, data: TrainingData, seconds: float, rounds: int) -> dict[str, Any]:
    """One pair of tables: all contenders' speeds."""
    ours = {"towerline": Ours(data, WIDE, starts=False), "towerline recipe": Ours(data, {}, starts=False)}
    stocks = {f"tfrs batch {batch}": Stock(data, batch) for batch in (1024, 4096)}
    speeds = pairs_per_second({**ours, **stocks}, seconds, rounds)
    medians = {contender: statistics.median(values) for contender, values in speeds.items()}
    best = max(stocks, key=lambda name: medians[name])
    ratios = [fast / slow for fast, slow in zip(speeds["towerline"], speeds[best], strict=True)]
    return {
        "tables": name,
        "dim": DIM,
        "batch": {"towerline": WIDE, "towerline recipe": "256 users with all their items", "tfrs": [1024, 4096]},
        "examples_per_second": medians["towerline"],
        "speedup_over_stock_tfrs": statistics.median(ratios),
        "speedup_of_rounds": ratios,
        "peers": {**{k: v for k, v in medians.items() if k != "towerline"}, **implicit_speeds(data)},
        "rounds": speeds,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tables", nargs="+", default=["gowalla", "million", "time"], help="parts to measure")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of stock TFRS's search for its best recall")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    stored: dict[str, Any] = json.loads(arguments.results.read_text()) if arguments.results.exists() else {}
    stored |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "commit": git_commit()}
    runs = {run["tables"]: run for run in stored.get("runs", [])}
    small = gowalla(arguments.data)
    if "gowalla" in arguments.tables:
        runs["30k x 41k"] = compare("30k x 41k", small, arguments.seconds, arguments.rounds)
    if "million" in arguments.tables:
        million = synthetic(1_000_000, 1_000_000, 12_000_000)
        runs["1M x 1M"] = compare("1M x 1M", million, arguments.seconds, arguments.rounds)
    stored["runs"] = list(runs.values())
    if "time" in arguments.tables:
        peers = {name: speed for name, speed in stored["runs"][0]["peers"].items() if name.startswith("tfrs")}
        batch = int(max(peers, key=lambda name: peers[name]).rsplit(" ", 1)[1])
        races = [race(small, batch, arguments.limit) for _ in range(RACES)]
        races.sort(key=lambda one: one["towerline"]["ratio"] or np.inf)
        ratios = {name: [one[name]["ratio"] for one in races] for name in RACERS}
        stored["time_to_recall"] = {**races[RACES // 2], "ratios": ratios}
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(stored, indent=1))
    for run in stored["runs"]:
        print(
            f"{run['tables']}: {run['examples_per_second']:,.0f} pairs/s, {run['speedup_over_stock_tfrs']:.1f} x TFRS"
        )


if __name__ == "__main__":
    main()
