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
from index.publishing import publish as publishing
from index.registry import delta_writer
from index.registry.bundle import Bundle
from index.registry.delta_search import DeltaSearcher
from index.registry.deltas import Delta, DeltaLog, DeltaState, replay
from index.registry.registry import Registry
from index.settings import GatesSettings, IndexSettings, TreeSettings
from pipelines.contracts.errors import ArtifactError, SchemaError
from tests.index.serving_bundles import CATEGORIES, write_bundle
from tests.index.stage_artifacts import Stages, write_model, write_stages

ITEMS, DIM = 400, 16
ATTRIBUTES = ("category", "price")
NONE = pa.array([], pa.int64())


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
    live = registry.open(version)
    return replay(live.bundle, DeltaLog(registry.store, live.version))


def searcher_of(registry: Registry) -> DeltaSearcher:
    return DeltaSearcher(registry.open().bundle.searcher, state_of(registry))


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
    assert DeltaLog(registry.store, registry.current()).sequences() == []


def test_without_a_live_version_nothing_is_applied(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nothing has been published"):
        delta_writer.apply(tmp_path / "registry", ads([1]))


def test_a_damaged_entry_is_refused_by_name(registry: Registry) -> None:
    delta_writer.apply(registry.url, ads([1], category=["toys"]))
    log = DeltaLog(registry.store, registry.current())
    file = log.open(1).dir / "vectors.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    with pytest.raises(ArtifactError, match=r"vectors\.npy: its checksum"):
        log.after(0)


def test_a_missing_entry_is_noticed(registry: Registry) -> None:
    for item in (1, 2, 3):
        delta_writer.apply(registry.url, ads([item], category=["toys"]))
    log = DeltaLog(registry.store, registry.current())
    registry.store.remove(f"{log.name}/00000002")
    with pytest.raises(ArtifactError, match="entry 2 is missing"):
        log.after(0)
    assert [delta.sequence for delta in log.after(2)] == [3]


def test_the_stamp_changes_with_every_entry(registry: Registry) -> None:
    log = DeltaLog(registry.store, registry.current())
    stamps = [log.stamp()]
    for item in (1, 2):
        delta_writer.apply(registry.url, ads([item], category=["toys"]))
        stamps.append(log.stamp())
    assert len(set(stamps)) == 3


# One change: (kind, item). Upserts give the item a new vector.
changes = st.lists(
    st.lists(st.tuples(st.sampled_from(["upsert", "remove", "pause", "resume"]), st.integers(0, 29)), max_size=6),
    max_size=6,
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.open(write_bundle(tmp_path_factory.mktemp("small") / "bundle", items=20, dim=4, leaves=4))


@given(changes, st.integers(1, 35))
@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_of_changes_gives_what_a_dictionary_gives(
    small: Bundle, entries: list[list[tuple[str, int]]], k: int
) -> None:
    """The reference: a dictionary of id to vector and a set of paused ids, changed in the documented order."""
    rng = np.random.default_rng(1)
    vectors = dict(zip(small.vocabulary.item_ids.to_pylist(), small.vectors, strict=True))
    paused: set[int] = set()
    state = DeltaState.of(small)
    for number, entry in enumerate(entries):
        by_kind: dict[str, list[int]] = {kind: [] for kind in ("upsert", "remove", "pause", "resume")}
        for item, kind in {item: kind for kind, item in entry}.items():
            by_kind[kind].append(1000 + 3 * item)
        fresh = rng.normal(size=(len(by_kind["upsert"]), 4)).astype(np.float32)
        rows = pa.table(
            {name: pa.nulls(len(fresh), small.items.schema.field(name).type) for name in small.items.column_names[1:]}
        ).add_column(0, "item_id", pa.array(by_kind["upsert"], pa.int64()))
        ids = {kind: pa.array(by_kind[kind], pa.int64()) for kind in by_kind}
        state = state.apply(
            Delta(number + 1, rows.select(small.items.column_names), fresh, ids["remove"], ids["pause"], ids["resume"])
        )
        vectors.update(zip(by_kind["upsert"], fresh, strict=True))
        for item in by_kind["remove"]:
            vectors.pop(item, None)
        paused = (paused - set(by_kind["resume"])) | set(by_kind["pause"])
    shown = {item: vector for item, vector in vectors.items() if item not in paused}
    query = rng.normal(size=4).astype(np.float32)
    expected = sorted(shown, key=lambda item: -float(shown[item] @ query))[:k]
    searcher = DeltaSearcher(small.searcher, state)
    assert searcher.num_items == len(shown)
    found = searcher.search(query, k, searcher.full_effort)
    assert state.item_ids().take(pa.array(found.rows)).to_pylist() == expected
    batch = searcher.search_batch(query[None], k, searcher.full_effort)
    assert batch.rows[0][batch.rows[0] >= 0].tolist() == found.rows.tolist()


def test_health_asks_for_a_rebuild(small: Bundle) -> None:
    ids = small.vocabulary.item_ids.slice(0, 3)
    empty = small.items.schema.empty_table()
    state = DeltaState.of(small)
    assert state.why_rebuild() is None
    removed = state.apply(Delta(1, empty, np.zeros((0, 4), np.float32), ids, NONE, NONE))
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
    """Four items: 1003 is removed, 1006 gets a new vector, 77 is new; what is written is known without a search."""
    old = Bundle.open(write_bundle(tmp_path / "bundle", items=4, dim=4))
    frequency = old.vocabulary.item_frequency.tolist()
    assert min(frequency) > 0
    rows = pa.table({name: pa.nulls(2, old.items.schema.field(name).type) for name in old.items.column_names[1:]})
    rows = rows.set_column(rows.column_names.index("price"), "price", pa.array([7.5, 8.5]))
    rows = rows.add_column(0, "item_id", pa.array([77, 1006], pa.int64()))
    fresh = np.array([[1, 2, 3, 4], [5, 6, 7, 8]], np.float32)
    state = DeltaState.of(old).apply(Delta(1, rows, fresh, pa.array([1003], pa.int64()), NONE, NONE))
    new = Bundle.open(compaction.write_bundle(old, state, "v1", tmp_path / "compacted"))
    assert new.vocabulary.item_ids.to_pylist() == new.items["item_id"].to_pylist() == [77, 1000, 1006, 1009]
    np.testing.assert_array_equal(new.vectors, [fresh[0], old.vectors[0], fresh[1], old.vectors[3]])
    # What was never seen in training has no frequency, and takes nobody else's.
    assert new.vocabulary.item_frequency.tolist() == [0, frequency[0], *frequency[2:]]
    prices = old.items["price"].to_pylist()
    assert new.items["price"].to_pylist() == [7.5, prices[0], 8.5, prices[3]]
    assert (new.manifest.facts["compacted_from"], new.manifest.facts["delta_sequence"]) == ("v1", 1)
    assert new.searcher.search(np.array([1, 0, 0, 0], np.float32), 1).rows.tolist() == [2]


def test_what_the_next_version_does_not_have_is_paused_there_but_not_removed(tmp_path: Path) -> None:
    """The old version has items 1000 to 1057, the new one only those up to 1027."""
    registry = Registry(tmp_path / "registry")
    old = registry.publish(write_bundle(tmp_path / "old", items=20, dim=4))
    changes = ads([1003, 1057, 1006, 1054], change=["remove", "remove", "pause", "pause"])
    delta_writer.apply(registry.url, changes)
    new = registry.publish(write_bundle(tmp_path / "new", items=10, dim=4))
    carried = delta_writer.carry(registry, old, new, since=None)
    assert carried is not None
    assert carried.paused_ids == {1006, 1054}
    assert np.flatnonzero(carried.gone).tolist() == [1]
    entry = Delta.read(DeltaLog(registry.store, new).open(1))
    assert entry.removed.to_pylist() == [1003]
    assert entry.paused.to_pylist() == [1006, 1054]


def test_a_rollback_takes_pauses_and_changes_along(registry: Registry, bundle: Path) -> None:
    first = registry.current()
    second = registry.publish(bundle)
    delta_writer.apply(registry.url, ads([77, 1021], category=["toys", None], change=["upsert", "pause"]))
    assert publishing.rollback(registry.url) == first != second
    state = state_of(registry)
    assert state.paused_ids == {1021}
    assert state.rows_of(pa.array([77])).tolist() == [ITEMS]


def test_publishing_embeds_what_came_since_with_the_new_towers(
    registry: Registry, stages: Stages, tmp_path: Path
) -> None:
    """A model of another space: the ad's vector is the new tower's, the pause is kept, older upserts are left out."""
    delta_writer.apply(registry.url, ads([1021], change=["pause"]))
    delta_writer.apply(registry.url, ads([77], category=["toys"]))
    write_model(tmp_path / "model", stages.features, dim=DIM, seed=5)
    embeddings = embed.run(tmp_path / "model", stages.features, tmp_path / "embeddings")
    settings = IndexSettings(attributes=ATTRIBUTES, tuning_queries=20)
    built = build.run(embeddings, tmp_path / "model", stages.features, settings, tmp_path / "bundle")
    gates = GatesSettings(churn=None, recall_drop=None)
    publishing.run(built, stages.features, registry.url, gates)
    state = state_of(registry)
    rng = np.random.default_rng(5)
    by_category = rng.normal(size=(len(CATEGORIES) + 2, DIM)).astype(np.float32) / np.sqrt(DIM)
    np.testing.assert_allclose(state.fresh_vectors, by_category[[CATEGORIES.index("toys") + 2]], rtol=1e-5, atol=1e-6)
    assert state.paused_ids == {1021}
    # As if the tables had been read after the upsert: only the pause comes along.
    options = publishing.Options(since="9999")
    publishing.run(built, stages.features, registry.url, gates, options)
    state = state_of(registry)
    assert state.num_fresh == 0
    assert state.paused_ids == {1021}


def test_a_table_may_lie_in_a_file(registry: Registry, tmp_path: Path) -> None:
    pq.write_table(ads([5], category=["toys"]), tmp_path / "items.parquet")
    assert delta_writer.apply(registry.url, tmp_path / "items.parquet").upserted == 1
