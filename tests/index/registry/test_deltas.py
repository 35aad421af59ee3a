"""Deltas: replayed in order they equal a rebuilt catalogue; bad ones change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from index.building import compaction
from index.building import embedding_job as embed
from index.building import job as build
from index.inference.item_embedder import Embedded, ItemEmbedder
from index.publishing import publish as publishing
from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.delta_log import CHANGE_COLUMN, ID_COLUMN, SAID_COLUMN, DeltaLog, Entry
from index.registry.delta_search import DeltaSearcher
from index.registry.deltas import DeltaState
from index.registry.registry import Registry
from index.settings import GatesSettings, IndexSettings, TreeSettings
from pipelines.contracts.errors import ArtifactError, SchemaError
from tests.index.serving_bundles import CATEGORIES, write_bundle
from tests.index.stage_artifacts import Stages, write_model, write_stages

ITEMS, DIM = 400, 16
ATTRIBUTES = ("category", "price")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return write_stages(tmp_path_factory.mktemp("stages"), items=ITEMS, dim=DIM)


@pytest.fixture(scope="module")
def bundle(stages: Stages) -> Path:
    embeddings = embed.run(stages.model, stages.features, stages.root / "embeddings")
    tree = TreeSettings(leaves=20, leaves_to_search=20, reorder=400, training_sample=ITEMS)
    settings = IndexSettings(attributes=ATTRIBUTES, tuning_queries=20, engine="scann", tree=tree)
    return build.run(embeddings, stages.model, stages.features, settings, stages.root / "bundle")


@pytest.fixture
def registry(bundle: Path, tmp_path: Path) -> Registry:
    opened = Registry(tmp_path / "registry")
    opened.publish(bundle)
    return opened


def state_of(registry: Registry, version: str | None = None) -> DeltaState:
    bundle = registry.open(version).bundle
    return DeltaState.opened(bundle, DeltaLog(registry.store), ItemEmbedder(bundle))


def searcher_of(registry: Registry) -> DeltaSearcher:
    state = state_of(registry)
    return DeltaSearcher(registry.open().bundle.searcher, state.fresh_vectors, state.dead, None)


def ids_found(registry: Registry, query: np.ndarray, k: int) -> list[int]:
    state, found = state_of(registry), searcher_of(registry).search(query, k)
    return state.item_ids().take(pa.array(found.rows)).to_pylist()


def ads(ids: list[int], **columns: list[Any]) -> pa.Table:
    return pa.table({"item_id": ids, **columns})


def test_a_new_ad_has_the_vector_of_its_content_and_is_found(registry: Registry, stages: Stages) -> None:
    applied = delta_writer.apply(registry.url, ads([77, 78], category=["toys", "lamps"], price=[3.5, None]))
    assert (applied.sequence, applied.upserted, applied.rebuild) == (1, 2, None)
    state = state_of(registry)
    # The tower of the test: no row of its own (code 1 is a zero row), so the category's row alone.
    rng = np.random.default_rng(0)
    by_category = rng.normal(size=(len(CATEGORIES) + 2, DIM)).astype(np.float32) / np.sqrt(DIM)
    expected = by_category[[CATEGORIES.index("toys") + 2, CATEGORIES.index("lamps") + 2]]
    np.testing.assert_allclose(state.fresh_vectors, expected, rtol=1e-5, atol=1e-6)
    assert state.fresh_items.to_pylist()[0]["price"] == 3.5
    assert ids_found(registry, 10 * expected[0].astype(np.float32), ITEMS + 2).count(77) == 1
    assert state.rows_of(pa.array([77, 78, 1000])).tolist() == [ITEMS, ITEMS + 1, 0]


def test_a_changed_ad_is_found_once_by_its_new_vector(registry: Registry) -> None:
    old_category = registry.open().bundle.items["category"][5].as_py()
    new = next(name for name in CATEGORIES if name != old_category)
    delta_writer.apply(registry.url, ads([1015], category=[new]))
    state = state_of(registry)
    assert state.rows_of(pa.array([1015])).tolist() == [ITEMS]
    found = searcher_of(registry).search(np.ones(DIM, np.float32), ITEMS + 1)
    ids = state.item_ids().take(pa.array(found.rows)).to_pylist()
    assert len(ids) == ITEMS
    assert ids.count(1015) == 1
    assert 5 not in found.rows.tolist()


def test_a_paused_ad_is_gone_until_it_is_resumed(registry: Registry) -> None:
    query = registry.open().bundle.vectors[7].copy()
    assert 1021 in ids_found(registry, query, ITEMS)
    delta_writer.apply(registry.url, ads([1021], change=["pause"]))
    assert 1021 not in ids_found(registry, query, ITEMS)
    # A new version of the ad does not end its pause.
    delta_writer.apply(registry.url, ads([1021], category=["toys"]))
    assert 1021 not in ids_found(registry, query, ITEMS)
    delta_writer.apply(registry.url, ads([1021], change=["resume"]))
    assert 1021 in ids_found(registry, query, ITEMS)


def test_a_removed_ad_is_gone_and_may_come_back(registry: Registry) -> None:
    delta_writer.apply(registry.url, ads([1000, 1003], change=["remove", "remove"]))
    query = np.ones(DIM, np.float32)
    assert not {1000, 1003} & set(ids_found(registry, query, ITEMS))
    delta_writer.apply(registry.url, ads([1000], category=["bags"]))
    assert 1000 in ids_found(registry, query, ITEMS)


def test_several_changes_in_one_table_are_one_entry(registry: Registry) -> None:
    table = ads(
        [1, 1000, 1003, 1006],
        change=[None, "remove", "pause", "upsert"],
        category=["toys", None, None, "bags"],
        price=[1.0, None, None, 2.0],
    )
    applied = delta_writer.apply(registry.url, table)
    assert (applied.upserted, applied.removed, applied.paused, applied.resumed) == (2, 1, 1, 0)
    state = state_of(registry)
    assert state.sequence == 1
    assert state.num_dead == 3  # 1000 removed, 1003 paused, the old row of 1006


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table({"id": [1]}), r"expected a column 'item_id', found id"),
        (
            pa.table({"item_id": [1, None]}),
            r"null:item_id, 1 row.* row 1, column 'item_id': expected an id: .*got None",
        ),
        (pa.table({"item_id": [5, 6, 5]}), r"twice:item_id, 1 row.* row 2, .*expected each id once, got 5"),
        (pa.table({"item_id": ["a"]}), r"type:item_id, 1 row.* row 0, .*expected an integer .*got 'a'"),
        (pa.table({"item_id": [5], "change": ["drop"]}), r"expected one of upsert, remove, pause, resume, got 'drop'"),
        (pa.table({"item_id": [5], "change": ["pause"]}), r"unknown:item_id.* an item of the live version, got 5"),
        (
            pa.table({"item_id": [5], "price": ["cheap"]}),
            r"type:price.* 'price': expected a finite number, got 'cheap'",
        ),
        (
            pa.table({"item_id": [5], "tags": [1], "tag": ["x"]}).rename_columns(["item_id", "x", "x"]),
            "column twice: x",
        ),
        ("nothing_there.csv", r"found none"),
        (7, r"expected a path, an Arrow table, .*got int"),
    ],
)
def test_a_bad_table_is_refused_and_nothing_is_written(registry: Registry, table: Any, message: str) -> None:
    with pytest.raises(SchemaError, match=message):
        delta_writer.apply(registry.url, table)
    assert DeltaLog(registry.store).last() == 0


def test_without_a_live_version_nothing_is_applied(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing has been published"):
        delta_writer.apply(tmp_path / "registry", ads([1]))


def test_a_damaged_entry_is_named_and_left_out(registry: Registry, caplog: pytest.LogCaptureFixture) -> None:
    for item in (1, 2, 3):
        delta_writer.apply(registry.url, ads([item], category=["toys"]))
    file = Path(registry.url) / "deltas" / "00000002.delta"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    assert [entry.sequence for entry in DeltaLog(registry.store).after(0)] == [1, 3]
    assert "00000002.delta: damaged, and left out" in caplog.text
    assert state_of(registry).fresh_items["item_id"].to_pylist() == [1, 3]
    assert delta_writer.apply(registry.url, ads([4], category=["toys"])).sequence == 4


# One change: (kind, item). Upserts give the item a new vector.
changes = st.lists(
    st.lists(st.tuples(st.sampled_from(["upsert", "remove", "pause", "resume"]), st.integers(0, 29)), max_size=6),
    max_size=6,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("small") / "bundle", items=20, dim=4, leaves=4))


class Drawn(ItemEmbedder):
    """Vectors by item id, as no tower makes them."""

    def embed(self, raw: pa.Table) -> Embedded:
        vectors = [drawn(item) for item in raw["item_id"].to_pylist()]
        return Embedded(np.array(vectors, np.float32).reshape(-1, 4), {})


def drawn(item: int) -> np.ndarray:
    return np.random.default_rng(item).normal(size=4).astype(np.float32)


def entry_of(sequence: int, changes: dict[int, str], price: float) -> Entry:
    """One entry; upserts set the price."""
    rows = {
        ID_COLUMN: pa.array(list(changes), pa.int64()),
        CHANGE_COLUMN: pa.array(list(changes.values()), pa.string()),
    }
    said = pa.array([["price"] if kind == "upsert" else None for kind in changes.values()], pa.list_(pa.string()))
    return Entry(sequence, 0, pa.table({**rows, SAID_COLUMN: said, "price": pa.array([price] * len(changes))}))


@given(changes, st.integers(1, 35), st.lists(st.integers(1, 3), max_size=6))
@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_of_changes_gives_what_a_dictionary_gives(
    small: Bundle, entries: list[list[tuple[str, int]]], k: int, paces: list[int]
) -> None:
    """The reference: a dictionary of id to vector and a set of paused ids, changed in the documented order; the entries
    are read in groups of any size."""
    vectors = dict(zip(small.vocabulary.item_ids.to_pylist(), small.vectors, strict=True))
    paused: set[int] = set()
    log = []
    for number, entry in enumerate(entries):
        by_item = {1000 + 3 * item: kind for kind, item in entry}
        log.append(entry_of(number + 1, by_item, 1000.0 + number))
        for item, kind in by_item.items():
            if kind == "upsert":
                vectors[item] = drawn(item)
            if kind == "remove":
                vectors.pop(item, None)
            if kind == "pause":
                paused.add(item)
            if kind == "resume":
                paused.discard(item)
    state = DeltaState.of(small)
    done = 0
    for pace in [*paces, len(log)]:
        state = state.after(log[done : done + pace], Drawn(small))
        done += pace
    shown = {item: vector for item, vector in vectors.items() if item not in paused}
    query = np.random.default_rng(1).normal(size=4).astype(np.float32)
    expected = sorted(shown, key=lambda item: -float(shown[item] @ query))[:k]
    searcher = DeltaSearcher(small.searcher, state.fresh_vectors, state.dead, None)
    assert searcher.num_items == len(shown)
    assert state.paused_ids == paused
    assert state.sequence == len(log)
    found = searcher.search(query, k, searcher.full_effort)
    assert state.item_ids().take(pa.array(found.rows)).to_pylist() == expected
    batch = searcher.search_batch(query[None], k, searcher.full_effort)
    assert batch.rows[0][batch.rows[0] >= 0].tolist() == found.rows.tolist()


def test_health_asks_for_a_rebuild(small: Bundle) -> None:
    state = DeltaState.of(small)
    assert state.why_rebuild() is None
    removed = state.after([entry_of(1, dict.fromkeys((1000, 1003, 1006), "remove"), 0.0)], ItemEmbedder(small))
    assert removed.why_rebuild() == "15.0% of the rows are dead, above 10%: searches return too few live rows"


def test_a_rebuild_folds_the_deltas_in(registry: Registry, tmp_path: Path) -> None:
    delta_writer.apply(registry.url, ads([77, 1015], category=["toys", "bags"], price=[1.0, 2.0]))
    delta_writer.apply(registry.url, ads([1000, 1021], change=["remove", "pause"]))
    query = np.random.default_rng(0).normal(size=DIM).astype(np.float32)
    before = ids_found(registry, query, ITEMS)
    old = registry.current()
    version = compaction.run(registry.url, tmp_path / "compacted")
    assert registry.current() == version != old
    opened = registry.open()
    assert opened.bundle.num_items == ITEMS  # one new, one removed
    assert opened.bundle.vocabulary.item_ids.to_pylist() == sorted(opened.bundle.vocabulary.item_ids.to_pylist())
    assert opened.bundle.items["item_id"].to_pylist() == opened.bundle.vocabulary.item_ids.to_pylist()
    assert ids_found(registry, query, ITEMS) == before
    state = state_of(registry)
    assert state.paused_ids == {1021}
    assert state.num_fresh == 0
    assert opened.bundle.manifest.facts["compacted_from"] == old


def test_a_compacted_bundle_by_hand(tmp_path: Path) -> None:
    """Four items: 1003 is removed, 1006 gets a new price and vector, 77 is new; what is written is known without a
    search."""
    old = Bundle.open(write_bundle(tmp_path / "bundle", items=4, dim=4))
    frequency = old.vocabulary.item_frequency.tolist()
    assert min(frequency) > 0
    entry = entry_of(1, {77: "upsert", 1006: "upsert", 1003: "remove"}, 7.5)
    state = DeltaState.of(old).after([entry], Drawn(old))
    new = Bundle.open(compaction.write_bundle(state, "v1", tmp_path / "compacted"))
    assert new.vocabulary.item_ids.to_pylist() == new.items["item_id"].to_pylist() == [77, 1000, 1006, 1009]
    expected = [drawn(77), old.vectors[0], drawn(1006), old.vectors[3]]
    np.testing.assert_array_equal(new.vectors, expected)
    # What was never seen in training has no frequency; what changed keeps its own.
    assert new.vocabulary.item_frequency.tolist() == [0, frequency[0], *frequency[2:]]
    prices, titles = old.items["price"].to_pylist(), old.items["title"].to_pylist()
    assert new.items["price"].to_pylist() == [7.5, prices[0], 7.5, prices[3]]
    assert new.items["title"].to_pylist() == [None, titles[0], titles[2], titles[3]]
    assert (new.manifest.facts["compacted_from"], new.delta_sequence) == ("v1", 1)
    best = max(range(4), key=lambda row: expected[row][0])
    assert new.searcher.search(np.array([1, 0, 0, 0], np.float32), 1).rows.tolist() == [best]


def test_changes_are_in_force_on_every_version(registry: Registry, bundle: Path) -> None:
    first = registry.current()
    second = registry.publish(bundle)
    delta_writer.apply(registry.url, ads([77, 1021], category=["toys", None], change=["upsert", "pause"]))
    assert publishing.rollback(registry.url) == first != second
    for version in (first, second):
        state = state_of(registry, version)
        assert state.paused_ids == {1021}
        assert state.rows_of(pa.array([77])).tolist() == [ITEMS]


def test_each_version_embeds_what_came_since_with_its_own_towers(
    registry: Registry, stages: Stages, tmp_path: Path
) -> None:
    """A model of another space: the ad's vector is the new tower's, the pause is kept."""
    delta_writer.apply(registry.url, ads([1021], change=["pause"]))
    delta_writer.apply(registry.url, ads([77], category=["toys"]))
    write_model(tmp_path / "model", stages.features, dim=DIM, seed=5)
    embeddings = embed.run(tmp_path / "model", stages.features, tmp_path / "embeddings")
    settings = IndexSettings(attributes=ATTRIBUTES, tuning_queries=20)
    built = build.run(embeddings, tmp_path / "model", stages.features, settings, tmp_path / "bundle")
    gates = GatesSettings(churn=None, recall_drop=None, category_recall_drop=None)
    publishing.run(built, stages.features, registry.url, gates)
    state = state_of(registry)
    rng = np.random.default_rng(5)
    by_category = rng.normal(size=(len(CATEGORIES) + 2, DIM)).astype(np.float32) / np.sqrt(DIM)
    np.testing.assert_allclose(state.fresh_vectors, by_category[[CATEGORIES.index("toys") + 2]], rtol=1e-5, atol=1e-6)
    assert state.paused_ids == {1021}


def test_a_table_may_lie_in_a_file(registry: Registry, tmp_path: Path) -> None:
    pq.write_table(ads([5], category=["toys"]), tmp_path / "items.parquet")
    assert delta_writer.apply(registry.url, tmp_path / "items.parquet").upserted == 1
