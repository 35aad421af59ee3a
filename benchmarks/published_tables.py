"""Recall on public data sets with the product's own functions: features, train, exact evaluation.

Reads folders of ``interactions.parquet`` (user_id, item_id, split, and optionally timestamp or pos) and
``items.parquet``; writes ``benchmarks/results/published_tables.json``, one entry per data set and seed as soon as it
is known. Runs that are already in the file are skipped. The columns decide the protocol, never a folder's name.

    python -m benchmarks.published_tables --data ../shared/data --only amazon_beauty --seeds 1 2 3
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.saved_towers import SavedTowers
from pipelines.contracts.arrays import Float32, Int32
from pipelines.contracts.manifest import git_commit
from pipelines.contracts.schema import DatasetSchema, parse_schema
from pipelines.features import job as features_job
from pipelines.progress import Progress
from pipelines.sequences.held_out import HeldOut
from towers.data.training_data import load
from towers.settings import settings_for
from towers.training import job as training
from towers.training.recall import Figures, recall_at, recall_of

RESULTS = Path(__file__).parent / "results" / "published_tables.json"
# Share of a random split's train events that choose the epoch.
VALID_FRACTION = 0.1
# Tried for data without order, where the best differs most between data sets; the validation slice chooses, once per
# data set, with the first seed.
TEMPERATURES = (0.1, 0.14, 0.2)
TEST = 2


def events_of(folder: Path, work: Path) -> Path:
    """The interactions of a benchmark folder; if they are held out user by user, with all columns this needs.

    These are an order of all events, in which held-out ones without a time come last, and a validation part
    (``_validation``). If something is missing, a copy that has it is written below ``work``.
    """
    source = folder / "interactions.parquet"
    table = pq.read_table(source)
    name = next((name for name in ("timestamp", "pos") if name in table.column_names), None)
    if name is None:
        return source
    split = _values(table["split"])
    moments, complete = pc.cast(table[name], pa.int64()), table[name].null_count == 0
    order = pc.fill_null(moments, pc.max(moments).as_py() + 1).to_numpy()
    if pa.types.is_timestamp(table[name].type):
        if complete and order[split != "train"].min() >= order[split == "train"].max():
            return source  # one moment splits them all
    elif complete and "valid" in split:
        return source
    if "valid" not in split:
        split[_validation(table, split, order)] = "valid"
    kept = [column for column in ("user_id", "item_id", "behavior") if column in table.column_names]
    copy = table.select(kept).append_column("pos", pa.array(order)).append_column("split", pa.array(split))
    out = work / folder.name / "interactions.parquet"
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(copy, out)
    return out


def _validation(table: pa.Table, split: npt.NDArray[Any], order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Each user's last train event of the kinds that the test part has; if no test pair is in train, all of the user's
    events with that item.
    """
    known, held = split == "train", split == "test"
    users, items = (
        table[name].combine_chunks().dictionary_encode().indices.to_numpy() for name in ("user_id", "item_id")
    )
    pairs = users.astype(np.int64) * (int(items.max()) + 1) + items
    of_kind = known
    if "behavior" in table.column_names:
        behaviors = _values(table["behavior"])
        of_kind = known & np.isin(behaviors, np.unique(behaviors[held]))
    places = np.flatnonzero(of_kind)[np.lexsort((order[of_kind], users[of_kind]))]
    last = places[np.append(users[places[1:]] != users[places[:-1]], True)]
    if np.isin(pairs[held], pairs[known]).any():
        return np.isin(np.arange(len(split)), last)
    return known & np.isin(pairs, pairs[last])


def _values(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    values: npt.NDArray[Any] = pc.cast(column, pa.string()).to_numpy(zero_copy_only=False)
    return values


def schema_of(folder: Path, interactions: Path) -> DatasetSchema:
    """The schema of a benchmark folder and its ``interactions``, from the columns and their types alone."""
    events = pq.read_schema(interactions)
    table: dict[str, Any] = {"path": str(interactions), "user_id": "user_id", "item_id": "item_id"}
    split: dict[str, Any] = {"column": "split"}
    names = set(pq.read_table(interactions, columns=["split"])["split"].unique().to_pylist())
    if "valid" not in names:
        split["valid_fraction"] = VALID_FRACTION
    if "timestamp" in events.names and pa.types.is_timestamp(events.field("timestamp").type):
        table["time"] = "timestamp"
    elif "timestamp" in events.names or "pos" in events.names:
        table["order"] = "timestamp" if "timestamp" in events.names else "pos"
    else:
        table["unordered"] = True
    raw: dict[str, Any] = {"dataset": {"name": folder.name}, "tables": {"events": table}, "split": split}
    if "behavior" in events.names:
        table["action"] = "behavior"
        behaviors = pq.read_table(interactions, columns=["behavior"])["behavior"]
        raw["actions"] = dict.fromkeys(sorted(behaviors.unique().to_pylist()), 1.0)
    raw["features"] = {"item": [{"name": "item_id", "kind": "id"}], "user": []}
    if (folder / "items.parquet").exists():
        raw["tables"]["items"] = {"path": str(folder / "items.parquet"), "item_id": "item_id"}
        raw["features"]["item"] += _content(pq.read_table(folder / "items.parquet"))
    if table.get("unordered"):
        raw["features"]["user"] = [{"name": "user_id", "kind": "id"}]
    # As many events as the models of the published tables see; a pooled history takes more.
    raw["history"] = {"max_length": 200 if "time" in table else 50}
    raw["validation"] = {"max_reject_rate": 0.05}
    return parse_schema(raw, str(folder))


def _content(items: pa.Table) -> list[dict[str, Any]]:
    """A feature for each column that describes an item: words, lists, real numbers.

    Left out: whole numbers (other ids and counts over the whole period), times, and texts of one word per row.
    """
    features: list[dict[str, Any]] = []
    for field in items.schema:
        column = items[field.name]
        if pa.types.is_list(field.type):
            features.append({"name": field.name, "kind": "list", "max_length": 24})
        elif pa.types.is_floating(field.type):
            features.append({"name": field.name, "kind": "numeric", "scale": "quantile"})
        elif pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            spaced = pc.mean(pc.cast(pc.fill_null(pc.match_substring(column, " "), False), pa.float64())).as_py()
            if spaced > 0.5:
                features.append({"name": field.name, "kind": "text", "max_length": 24})
    return features


def cutoffs(schema: DatasetSchema) -> tuple[int, ...]:
    """The tables' k: 20 for random splits, 10 for leave-last-out, 20 and 100 for a split by time."""
    events = schema.tables.events
    return (20,) if events.unordered else (20, 100) if events.time is not None else (10,)


def measure(model: Path, features: Path, ks: tuple[int, ...]) -> dict[str, Figures]:
    """Exact figures on the test part, from the written artifacts: ``all``, ``removed`` (the user's earlier items are
    left out of the ranking), and ``novel`` (left out of the truth as well).
    """
    data = load(features)
    held_out = HeldOut.of(data.events, TEST)
    vectors = SavedTowers(model).vectors(data, held_out.users, TEST)
    items, users = vectors.items, vectors.users
    novel = held_out.without_seen()
    kept = np.isin(held_out.users, novel.users)
    return {
        "all": recall_at(users, items, held_out, ks, remove_seen=False),
        "removed": recall_at(users, items, held_out, ks, remove_seen=True),
        "novel": recall_at(users[kept], items, novel, ks, remove_seen=True),
    }


def baselines(features: Path, ks: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """Popularity, item-kNN and ALS (the library ``implicit``), fitted on train and valid, on the same test part."""
    import scipy.sparse
    from implicit.als import AlternatingLeastSquares
    from implicit.nearest_neighbours import CosineRecommender
    from threadpoolctl import threadpool_limits

    data = load(features)
    held_out = HeldOut.of(data.events, TEST)
    known = data.events.before(TEST)
    ones = np.ones(len(known.rows), np.float32)
    counts = scipy.sparse.csr_matrix((ones, (known.owners, known.rows)), (known.num_users, data.num_items))
    counts.sum_duplicates()
    with threadpool_limits(1, "blas"):
        als = AlternatingLeastSquares(factors=64, iterations=15, random_state=1, num_threads=2)
        als.fit(counts, show_progress=False)
    knn = CosineRecommender(K=100)
    knn.fit(counts, show_progress=False)
    popular = np.asarray(counts.sum(0), np.float32)
    by_popularity = lambda users: np.tile(popular, (len(users), 1))  # noqa: E731
    by_als = lambda users: als.user_factors[users] @ als.item_factors.T  # noqa: E731
    by_knn = lambda users: (counts[users] @ knn.similarity).toarray().astype(np.float32)  # noqa: E731
    scores = {"popularity": by_popularity, "als": by_als, "item_knn": by_knn}
    return {name: _baseline(score, held_out, ks) for name, score in scores.items()}


def _baseline(score: Callable[[Int32], Float32], held_out: HeldOut, ks: tuple[int, ...]) -> dict[str, Any]:
    """``score`` returns ``[users, items]`` for rows of users."""
    novel = held_out.without_seen()
    return {
        "all": plain(recall_of(lambda part: score(held_out.users[part]), held_out, ks, remove_seen=False)),
        "removed": plain(recall_of(lambda part: score(held_out.users[part]), held_out, ks, remove_seen=True)),
        "novel": plain(recall_of(lambda part: score(novel.users[part]), novel, ks, remove_seen=True)),
    }


def plain(figures: Figures) -> dict[str, Any]:
    """Figures as JSON."""
    return {
        "recall": {str(k): round(value, 5) for k, value in figures.recall.items()},
        "capped_recall": {str(k): round(value, 5) for k, value in figures.capped_recall.items()},
        "ndcg": {str(k): round(value, 5) for k, value in figures.ndcg.items()},
        "users": figures.users,
    }


def tuned(features: Path, given: dict[str, Any], seed: int) -> dict[str, Any]:
    """The given settings with the temperature that validation prefers, if the protocol leaves it open."""
    data = load(features)
    if settings_for(data.schema, **given).protocol != "sets" or "temperature" in given:
        return given
    tried = {}
    for temperature in TEMPERATURES:
        candidate = settings_for(data.schema, **{**given, "temperature": temperature, "refit": False})
        curves = training.train(data, candidate, seed=seed, progress=Progress(sys.stderr)).curves
        tried[temperature] = max(epoch.valid for epoch in curves if epoch.valid is not None)
    best = max(tried, key=lambda temperature: tried[temperature])
    print(f"validation recall by temperature: {tried}, chosen {best}")
    return {**given, "temperature": best}


def run_one(
    schema: DatasetSchema, work: Path, given: dict[str, Any], seed: int, temperature: float | None
) -> dict[str, Any]:
    """Features, train, evaluate; returns the run's entry. ``temperature``: the choice of another seed's tuning."""
    started = time.monotonic()
    name = schema.dataset.name
    features = work / name / "features"
    features_job.run(schema, features)
    asked = settings_for(schema, **given).model_dump(mode="json")
    given = tuned(features, given, seed) if temperature is None else {**given, "temperature": temperature}
    resolved = settings_for(schema, **given)
    model = work / name / f"model-{resolved.embedding_dim}-{seed}"
    training.run(features, resolved, model, seed=seed, progress=Progress(sys.stderr))
    ks = cutoffs(schema)
    figures = measure(model, features, ks)
    headline = figures["all" if resolved.protocol == "windows" else "removed"]
    record = json.loads((model / "training.json").read_text())
    return {
        "dataset": name,
        "protocol": {"windows": "time split", "positions": "leave last out", "sets": "random split"}[
            str(resolved.protocol)
        ],
        "seed": seed,
        "k": ks[0],
        "recall": headline.recall[ks[0]],
        "ndcg": headline.ndcg[ks[0]],
        "figures": {name: plain(figure) for name, figure in figures.items()},
        "valid": max((epoch["valid"] for epoch in record["epochs"] if epoch["valid"] is not None), default=None),
        "best_epoch": record["best_epoch"],
        "dim": resolved.embedding_dim,
        "given": asked,
        "config": resolved.model_dump(mode="json"),
        "seconds": round(time.monotonic() - started, 1),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "machine": f"{platform.processor() or platform.machine()}, {platform.python_version()}",
        "commit": git_commit(),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the seeds of each data set and dimension."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["dataset"], run["dim"]), []).append(run)
    lines = []
    for (dataset, dim), members in sorted(groups.items()):
        line: dict[str, Any] = {"dataset": dataset, "dim": dim, "k": members[0]["k"], "seeds": len(members)}
        for metric in ("recall", "ndcg", "seconds"):
            values = [member[metric] for member in members]
            line[metric] = round(statistics.mean(values), 5)
            line[f"{metric}_spread"] = round(statistics.stdev(values), 5) if len(values) > 1 else None
        lines.append(line)
    return lines


def main() -> None:
    """Runs everything that is not in the results yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with one folder per data set")
    parser.add_argument("--only", nargs="*", help="names of the folders to run; default: all with interactions.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--dim", type=int, help="exported dimension, including the item bias")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=JSON", help="settings of [towers]")
    parser.add_argument("--work", type=Path, default=Path("runs/published_tables"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    given = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in arguments.set)}
    if arguments.dim is not None:
        given["embedding_dim"] = arguments.dim
    folders = sorted(path.parent for path in arguments.data.glob("*/interactions.parquet"))
    for folder in folders:
        if arguments.only and folder.name not in arguments.only:
            continue
        for seed in arguments.seeds:
            _run_and_store(folder, given, seed, arguments)


def _run_and_store(folder: Path, given: dict[str, Any], seed: int, arguments: argparse.Namespace) -> None:
    stored: dict[str, Any] = {"runs": [], "baselines": {}}
    if arguments.results.exists():
        stored = json.loads(arguments.results.read_text())
    schema = schema_of(folder, events_of(folder, arguments.work))
    wanted = settings_for(schema, **given).model_dump(mode="json")
    # A stored run may name keys that no longer exist.
    same = [
        run
        for run in stored["runs"]
        if run["dataset"] == folder.name and all(run["given"].get(key) == value for key, value in wanted.items())
    ]
    if any(run["seed"] == seed for run in same):
        print(f"{folder.name} seed {seed}: already in {arguments.results}")
        return
    entry = run_one(schema, arguments.work, given, seed, same[0]["config"]["temperature"] if same else None)
    # One run per data set, dimension and seed is kept: others are of an earlier recipe.
    place = [entry[key] for key in ("dataset", "dim", "seed")]
    stored["runs"] = [run for run in stored["runs"] if [run[key] for key in ("dataset", "dim", "seed")] != place]
    stored["runs"].append(entry)
    if not schema.tables.events.unordered and folder.name not in stored["baselines"]:
        features = arguments.work / folder.name / "features"
        stored["baselines"][folder.name] = baselines(features, cutoffs(schema))
    stored["summary"] = summary(stored["runs"])
    arguments.results.parent.mkdir(parents=True, exist_ok=True)
    arguments.results.write_text(json.dumps(stored, indent=1))
    print(f"{folder.name} seed {seed}: recall@{entry['k']} {entry['recall']:.4f} ndcg {entry['ndcg']:.4f}, "
          f"{entry['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
