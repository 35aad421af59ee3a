"""Deltas in a serving retriever: a pause holds in the next call, a new ad joins, rules see both."""

from __future__ import annotations

import dataclasses
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.registry import delta_writer
from index.registry.delta_log import CHANGE_COLUMN, ID_COLUMN, Entry
from index.registry.registry import Registry
from index.retrieval.live.delta_follower import DeltaFollower
from index.retrieval.live.kills import hidden
from index.retrieval.live.layout import grown_planner
from index.retrieval.retriever import Retriever
from index.rules.planner import Planner
from index.search.exact import ExactSearcher, load_vectors
from index.search.growing_vectors import GrowingVectors
from index.search.leaves import Leaves
from index.settings import IndexSettings, TreeSettings
from tests.index.stage_artifacts import Stages, write_stages

ITEMS, DIM = 400, 16
RECORD = {"history": [1021, 1024, 1027], "country": "US"}


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return write_stages(tmp_path_factory.mktemp("stages"), items=ITEMS, dim=DIM)


@pytest.fixture(scope="module", params=["exact", "scann"])
def bundle(request: pytest.FixtureRequest, stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(request.param)
    embeddings = embed.run(stages.model, stages.features, root / "embeddings")
    tree = TreeSettings(leaves=20, leaves_to_search=20, reorder=400, training_sample=ITEMS)
    settings = IndexSettings(
        attributes=("category", "price"),
        tuning_queries=20,
        engine=request.param,
        tree=tree if request.param == "scann" else None,
    )
    return build.run(embeddings, stages.model, stages.features, settings, root / "bundle")


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    opened = Registry(tmp_path / "registry")
    opened.publish(bundle)
    return opened


def settle(retriever: Retriever) -> None:
    """Lets what was taken in join."""
    retriever.retrieve(RECORD, 1)
    assert isinstance(retriever._follower, DeltaFollower)
    retriever._follower.wait()


def test_a_paused_ad_is_gone_in_the_next_call(registry: Registry) -> None:
    retriever = Retriever.open(registry.url)
    for _ in range(5):
        first = int(retriever.retrieve(RECORD, 1).item_ids[0])
        delta_writer.apply(registry.url, pa.table({"item_id": [first], "change": ["pause"]}))
        assert first not in retriever.retrieve(RECORD, ITEMS).item_ids
        settle(retriever)
        assert first not in retriever.retrieve(RECORD, ITEMS).item_ids
    assert retriever.delta_sequence == 5
    assert len(retriever.retrieve(RECORD, ITEMS)) == ITEMS - 5


def test_a_new_ad_joins_and_rules_see_it(registry: Registry) -> None:
    retriever = Retriever.open(registry.url)
    new = pa.table({"item_id": [5, 6], "category": ["toys", "bags"], "price": [0.01, 0.02]})
    delta_writer.apply(registry.url, new)
    settle(retriever)
    found = retriever.retrieve(RECORD, ITEMS + 2)
    assert {5, 6} <= set(found.item_ids.tolist())
    assert retriever.retrieve(RECORD, 10, where="price < 0.03").item_ids.tolist() in ([5, 6], [6, 5])
    assert retriever.retrieve(RECORD, 10, where="price < 0.03 and category == 'toys'").item_ids.tolist() == [5]
    described = retriever.describe(retriever.retrieve(RECORD, 10, where="price < 0.03 and category == 'bags'"))
    assert described["item_id"].to_pylist() == [6]
    # A new ad may occur in a history, be excluded, and be resumed after a pause.
    assert len(retriever.retrieve({"history": [5, 6]}, 5)) == 5
    assert 5 not in retriever.retrieve(RECORD, ITEMS + 2, exclude=[5]).item_ids
    delta_writer.apply(registry.url, pa.table({"item_id": [5], "change": ["pause"]}))
    assert len(retriever.retrieve(RECORD, 10, where="price < 0.03")) == 1


def test_a_retriever_opened_later_answers_the_same(registry: Registry) -> None:
    early = Retriever.open(registry.url)
    changes = pa.table(
        {"item_id": [5, 1000, 1003, 1006], "change": ["upsert", "remove", "pause", "upsert"], "category": ["toys"] * 4}
    )
    delta_writer.apply(registry.url, changes)
    settle(early)
    late = Retriever.open(registry.url)
    assert late.delta_sequence == early.delta_sequence == 1
    for k in (1, 10, ITEMS + 5):
        np.testing.assert_array_equal(early.retrieve(RECORD, k).item_ids, late.retrieve(RECORD, k).item_ids)
    ids = late.retrieve(RECORD, ITEMS + 5).item_ids.tolist()
    assert len(ids) == len(set(ids)) == ITEMS - 1
    cold = late.retrieve({}, ITEMS + 5).item_ids
    assert not {1000, 1003} & set(cold.tolist())


def test_calls_go_on_while_deltas_come(registry: Registry) -> None:
    """Two threads ask all the while; a paused ad never comes back once a call has seen its pause."""
    retriever = Retriever.open(registry.url)
    wrong: list[str] = []
    paused: list[int] = []
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            before = list(paused)
            try:
                ids = set(retriever.retrieve(RECORD, 50).item_ids.tolist())
            except Exception as err:
                wrong.append(repr(err))
                return
            wrong.extend(f"{item} came back" for item in before if item in ids)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(10):
        item = int(retriever.retrieve(RECORD, 1).item_ids[0])
        delta_writer.apply(
            registry.url,
            pa.table({"item_id": [number, item], "change": ["upsert", "pause"], "category": ["toys", None]}),
        )
        paused.append(item)
        time.sleep(0.02)
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    settle(retriever)
    assert retriever.delta_sequence == 10


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_fresh_vectors_join_without_a_copy(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    made = rng.normal(size=(1000, 24)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", made)
    base = load_vectors(tmp_path / "vectors.npy") if kind == "file" else made
    growing = GrowingVectors(base, room=4)
    fresh = rng.normal(size=(9, 24)).astype(np.float32)
    given = [growing.with_fresh(fresh[:n]) for n in (0, 1, 3, 9)]  # the last has outgrown the room
    for n, vectors in zip((0, 1, 3, 9), given, strict=True):
        assert (vectors == np.concatenate([made, fresh[:n]])).all()
    assert given[0] is base
    assert np.shares_memory(given[1], given[2])
    # Written privately: the file has not changed.
    assert (np.load(tmp_path / "vectors.npy") == made).all()


def test_fresh_rows_are_at_the_end_of_their_leaf() -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(50, 4)).astype(np.float32)
    leaf_of_row = rng.integers(0, 5, 50).astype(np.int32)
    leaf_of_row[-1] = 4
    rows = np.argsort(leaf_of_row, kind="stable").astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(leaf_of_row, minlength=5))])
    centroids = rng.normal(size=(5, 4)).astype(np.float32)
    fresh = rng.normal(size=(20, 4)).astype(np.float32)
    planner = Planner.of(ExactSearcher(vectors), vectors, None)
    planner = dataclasses.replace(planner, leaves=Leaves(rows, offsets, centroids, leaf_of_row))
    leaves = grown_planner(planner, np.concatenate([vectors, fresh]), fresh, None).leaves
    assert leaves is not None
    # The slow way: sort all rows by their leaf.
    expected = np.concatenate([leaf_of_row, (fresh @ centroids.T).argmax(axis=1)])
    assert leaves.leaf_of_row.tolist() == expected.tolist()
    assert leaves.rows.tolist() == np.argsort(expected, kind="stable").tolist()
    assert leaves.sizes.tolist() == np.bincount(expected, minlength=5).tolist()


def entry(sequence: int, **changes: list[int]) -> Entry:
    """One entry of the log: ids by what happens to them (upsert, remove, pause, resume)."""
    ids = pa.array([item_id for ids in changes.values() for item_id in ids], pa.int64())
    kinds = pa.array([kind for kind, ids in changes.items() for _ in ids], pa.string())
    return Entry(sequence, 0, pa.table({ID_COLUMN: ids, CHANGE_COLUMN: kinds}))


@pytest.mark.parametrize(
    ("entries", "gone"),
    [
        ([{"pause": [5]}], [5]),
        ([{"pause": [5]}, {"resume": [5]}], []),
        ([{"resume": [5]}, {"pause": [5]}], [5]),
        ([{"remove": [5]}], [5]),
        ([{"remove": [5]}, {"upsert": [5]}], []),
        ([{"upsert": [5]}, {"remove": [5]}], [5]),
        # A pause outlives an upsert, a removal a resume.
        ([{"pause": [5]}, {"upsert": [5]}], [5]),
        ([{"remove": [5]}, {"resume": [5]}], [5]),
        ([{"remove": [5], "pause": [5]}, {"upsert": [5]}, {"resume": [5]}], []),
        ([{"pause": [1, 2], "remove": [3]}, {"resume": [2], "pause": [4]}, {"upsert": [3, 8]}], [1, 4]),
    ],
)
def test_what_waits_hides_what_is_removed_or_paused_in_the_end(
    entries: list[dict[str, list[int]]], gone: list[int]
) -> None:
    """Until waiting entries are laid out, only their removals and pauses show."""
    types = SimpleNamespace(ids=lambda ids: ids)
    state = SimpleNamespace(bundle=SimpleNamespace(delta_sequence=0, item_types=types), paused_ids=frozenset())
    waiting = [entry(1 + number, **changes) for number, changes in enumerate(entries)]
    assert sorted(hidden(state, waiting)) == gone  # type: ignore[arg-type]
