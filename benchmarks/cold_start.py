"""New ads: recall of items with all train events hidden, from their content alone.

A fifth of the items, chosen by a hash of their ids, lose their events of the train and valid splits. The product's
features job and towers learn from the rest; measured is recall of the hidden items' test events, among the hidden items
and in the whole catalogue. For comparison: a random order (its expectation), and a nearest neighbour over the same
content columns (cosine of TF-IDF vectors; a user is the mean of the history). The towers are trained a second time
without ``id_dropout``, to see what learning for new items costs the others. The whole catalogue is ranked once more
with a tenth of the places for ads without an event in train, as with ``[retriever] new_items_share``.

    python -m benchmarks.cold_start --data ../shared/data --only amazon_beauty
    python -m benchmarks.cold_start --config configs/complete_journey.toml
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.published_tables import TEST, events_of, schema_of
from benchmarks.saved_towers import SavedTowers
from index.retrieval.sources.blending import blended
from index.retrieval.sources.ranking import Listed
from pipelines.contracts.arrays import Float32
from pipelines.contracts.manifest import git_commit
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.top_k import top_k
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.features import job as features_job
from pipelines.progress import Progress
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.reader import load_items
from towerline.config import load_config
from towers.data.training_data import TrainingData, load
from towers.settings import TowersSettings, settings_for
from towers.training import job as training
from towers.training.recall import recall_of

RESULTS = Path(__file__).parent / "results" / "cold_start.json"
K = 100
SHARE = 5  # one item in this many is hidden
NEW_ITEMS_SHARE = 0.1
Scores = Any  # rows of users to [users, items]


def is_hidden(item_id: object) -> bool:
    """The same items on every machine and in every run."""
    return zlib.crc32(str(item_id).encode()) % SHARE == 0


def hide(schema: DatasetSchema, out: Path) -> DatasetSchema:
    """Writes the events without those of hidden items before the test split; the schema that reads them."""
    table = schema.tables.events
    events = pq.read_table(table.path)
    ids = events[table.item_id].combine_chunks().dictionary_encode()
    hidden = pc.take(pa.array([is_hidden(value) for value in ids.dictionary.to_pylist()]), ids.indices)
    if schema.split.column is not None:
        is_test = pc.equal(pc.cast(events[schema.split.column], pa.string()), "test")
    else:
        is_test = pc.greater_equal(events[table.time], pa.scalar(schema.split.test_from, events[table.time].type))
    out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(events.filter(pc.or_(pc.invert(hidden), is_test)), out)
    events_table = table.model_copy(update={"path": str(out)})
    return schema.model_copy(update={"tables": schema.tables.model_copy(update={"events": events_table})})


def content_vectors(features: Path, schema: DatasetSchema) -> scipy.sparse.csr_matrix:
    """``[items, terms]`` unit TF-IDF rows of all content columns: words of texts, whole values of the others."""
    items = load_items(features)
    texts = [""] * len(items)
    for feature in schema.features.item:
        if feature.kind not in ("text", "categorical", "list"):
            continue
        for place, value in enumerate(items[feature.source].to_pylist()):
            values = value if isinstance(value, list) else [value]
            for one in values:
                if one is not None:
                    words = str(one).lower().split() if feature.kind == "text" else [str(one)]
                    texts[place] += "\n".join(["", *(f"{feature.name}={word}" for word in words)])
    return TfidfVectorizer(tokenizer=str.split, token_pattern=None, lowercase=False).fit_transform(
        [text.replace(" ", "_") for text in texts]
    )


def recall(score: Scores, held_out: HeldOut, kept: npt.NDArray[np.bool_], *, among: bool) -> float:
    """Recall@100 of the test events of the ``kept`` items, ranked in the whole catalogue or ``among`` themselves."""
    chosen = held_out.where(kept[held_out.truth.rows])

    def scores(part: slice) -> Float32:
        found: Float32 = score(chosen.users[part])
        if among:
            found[:, ~kept] = -np.inf
        return found

    return recall_of(scores, chosen, (K,), remove_seen=False).recall[K]


def trained(features: Path, data: TrainingData, settings: TowersSettings, out: Path, seed: int) -> Scores:
    """The towers' scores, from the written model."""
    training.run(features, settings, out, seed=seed, progress=Progress(sys.stderr), resume=False)
    users = HeldOut.of(data.events, TEST).users
    vectors = SavedTowers(out).vectors(data, users, TEST)
    place = np.zeros(data.events.num_users, np.int64)
    place[users] = np.arange(len(users))
    return lambda rows: vectors.users[place[rows]] @ vectors.items.T


def neighbours(features: Path, data: TrainingData) -> Scores:
    """Cosine of the mean of the history's content and an item's."""
    content = content_vectors(features, data.schema).astype(np.float32)
    known = data.events.before(TEST)
    ones = np.ones(len(known.rows), np.float32)
    history = scipy.sparse.csr_matrix((ones, (known.owners, known.rows)), (known.num_users, data.num_items))
    return lambda rows: np.asarray((history[rows] @ content @ content.T).toarray(), np.float32)


def with_places(score: Scores, new: npt.NDArray[np.bool_]) -> Scores:
    """The order of the first places if ``new [items]`` have their share of them, as scores; -inf after them."""
    rows, shares = np.flatnonzero(new).astype(np.int32), (NEW_ITEMS_SHARE, 1.0 - NEW_ITEMS_SHARE)

    def scores(users: npt.NDArray[np.int64]) -> Float32:
        found: Float32 = score(users)
        placed = np.full_like(found, -np.inf)
        for values, places in zip(found, placed, strict=True):
            sources = [Listed(ranked, values.take) for ranked in (rows[top_k(values[rows], K)], top_k(values, 2 * K))]
            blend = blended(sources, shares, K)
            ranked = [sources[source].rows[place] for source, place in zip(blend.sources, blend.places, strict=True)]
            places[ranked] = -np.arange(len(ranked))
        return placed

    return scores


def run_one(schema: DatasetSchema, settings: TowersSettings, work: Path, seed: int) -> dict[str, Any]:
    """One data set: hide, learn with and without ``id_dropout``, measure."""
    started = time.monotonic()
    features = work / "features"
    features_job.run(hide(schema, work / "events.parquet"), features, progress=Progress(sys.stderr))
    data = load(features)
    held_out = HeldOut.of(data.events, TEST)
    # Items without an event in the train split, whose id was never seen.
    item_ids = Vocabulary.load(features / "vocabulary").item_ids
    cold = np.array([is_hidden(item) for item in item_ids.to_pylist()])
    assert not data.item_frequency[cold].any()
    towers = trained(features, data, settings, work / "model", seed)
    without = settings.model_copy(update={"id_dropout": 0.0})
    plain = trained(features, data, without, work / "model-without", seed)
    content = neighbours(features, data)
    figures: dict[str, Any] = {"random": {"cold_among_cold": K / int(cold.sum()), "cold_in_all": K / len(cold)}}
    for name, score in (("towerline", towers), ("without_id_dropout", plain), ("content_neighbour", content)):
        figures[name] = {
            "cold_among_cold": recall(score, held_out, cold, among=True),
            "cold_in_all": recall(score, held_out, cold, among=False),
            "warm_in_all": recall(score, held_out, ~cold, among=False),
            "warm_among_warm": recall(score, held_out, ~cold, among=True),
        }
    blended = with_places(towers, data.item_frequency == 0)
    figures["towerline_with_places_for_new_items"] = {
        name: recall(blended, held_out, kept, among=False)
        for name, kept in (("cold_in_all", cold), ("warm_in_all", ~cold))
    }
    ours = figures["towerline"]
    return {
        "dataset": data.schema.dataset.name,
        "seed": seed,
        "items": len(cold),
        "hidden": int(cold.sum()),
        "users": held_out.where(cold[held_out.truth.rows]).num_users,
        "recall_at_100": {name: {key: round(v, 5) for key, v in row.items()} for name, row in figures.items()},
        "times_random": round(ours["cold_among_cold"] / figures["random"]["cold_among_cold"], 2),
        "times_random_in_all": round(ours["cold_in_all"] / figures["random"]["cold_in_all"], 2),
        "new_items_share": NEW_ITEMS_SHARE,
        "warm_kept": round(ours["warm_among_warm"] / figures["without_id_dropout"]["warm_among_warm"], 4),
        "id_dropout": settings.id_dropout,
        "seconds": round(time.monotonic() - started),
        "machine": f"{platform.machine()}, {platform.python_version()}",
        "commit": git_commit(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and writes one entry per data set and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder with one folder per data set")
    parser.add_argument("--only", nargs="+", default=["amazon_beauty"], help="names of the folders to run")
    parser.add_argument("--config", type=Path, action="append", default=[], help="a TOML with your own tables")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--work", type=Path, default=Path("runs/cold_start"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    asked = []
    if chosen.data is not None:
        folders = [chosen.data / name for name in chosen.only]
        schemas = [schema_of(folder, events_of(folder, chosen.work)) for folder in folders]
        asked += [(schema, settings_for(schema)) for schema in schemas]
    for path in chosen.config:
        config = load_config(path)
        asked.append((config.schema_only(), config.towers))
    stored = json.loads(chosen.results.read_text()) if chosen.results.exists() else {"runs": []}
    for schema, settings in asked:
        entry = run_one(schema, settings, chosen.work / schema.dataset.name, chosen.seed)
        same = entry["dataset"], entry["seed"]
        stored["runs"] = [run for run in stored["runs"] if (run["dataset"], run["seed"]) != same] + [entry]
        chosen.results.parent.mkdir(parents=True, exist_ok=True)
        chosen.results.write_text(json.dumps(stored, indent=1))
        print(json.dumps(entry["recall_at_100"], indent=1))


if __name__ == "__main__":
    main()
