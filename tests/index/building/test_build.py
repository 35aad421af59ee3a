"""Embedding and building: from a model and features to a bundle that opens and answers."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.building import compaction
from index.building import embedding_job as embed
from index.building import job as build
from index.registry.bundle import Bundle
from index.registry.deltas import DeltaState
from index.registry.registry import check_answers
from index.retrieval.retriever import Retriever
from index.search.exact import ExactSearcher
from index.settings import IndexSettings, TreeSettings
from pipelines.contracts.errors import ArtifactError, ConfigError
from pipelines.contracts.manifest import open_artifact, write_artifact
from pipelines.sequences.reader import Sequences
from tests.index.stage_artifacts import Stages, item_vectors_by_hand, write_model, write_stages
from tests.recorded import Recorded

ITEMS, DIM = 500, 16
ATTRIBUTES = ("category", "price", "in_stock")


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return write_stages(tmp_path_factory.mktemp("stages"), items=ITEMS, dim=DIM)


@pytest.fixture(scope="module")
def embeddings(stages: Stages) -> Path:
    return embed.run(stages.model, stages.features, stages.root / "embeddings")


@pytest.fixture(scope="module")
def bundle(stages: Stages, embeddings: Path) -> Path:
    settings = IndexSettings(attributes=ATTRIBUTES, tuning_queries=40)
    return build.run(embeddings, stages.model, stages.features, settings, stages.root / "bundle")


def test_vectors_are_the_towers_in_row_order(stages: Stages, embeddings: Path) -> None:
    expected = item_vectors_by_hand(stages.features, dim=DIM, seed=0)
    vectors = np.load(embeddings / "vectors.npy")
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)
    facts = open_artifact(embeddings, kind="embeddings").manifest.facts
    norms = np.linalg.norm(expected, axis=1)
    assert facts["items"] == ITEMS
    assert facts["space"] == f"space-0-{DIM}"
    assert facts["norm_mean"] == pytest.approx(norms.mean(), rel=1e-5)
    assert facts["norm_max"] == pytest.approx(norms.max(), rel=1e-5)


def test_the_cut_into_elements_does_not_matter(
    stages: Stages, embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "_ELEMENT_ROWS", 70)
    monkeypatch.setattr(embed, "_BATCH_ROWS", 33)
    assert len(list(embed.plan(stages.features / "items_encoded"))) == 6  # 100, 100, 50 rows of each half
    again = embed.run(stages.model, stages.features, tmp_path / "embeddings")
    np.testing.assert_allclose(np.load(again / "vectors.npy"), np.load(embeddings / "vectors.npy"), rtol=1e-6)


def test_a_vector_with_nan_is_refused_and_nothing_is_left(stages: Stages, tmp_path: Path) -> None:
    write_model(tmp_path / "model", stages.features, dim=DIM, seed=0, broken=True)
    with pytest.raises(ArtifactError, match="row 3 of the catalogue got NaN or infinity"):
        embed.run(tmp_path / "model", stages.features, tmp_path / "embeddings")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


def test_features_of_another_run_are_refused(stages: Stages, tmp_path: Path) -> None:
    other = write_stages(tmp_path, items=40, seed=9)
    with pytest.raises(ArtifactError, match="trained on features"):
        embed.run(stages.model, other.features, tmp_path / "embeddings")


def test_the_bundle_is_whole_and_answers_its_probes(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    assert opened.num_items == ITEMS
    assert opened.items.column_names == ["item_id", "category", "price", "in_stock", "advertiser_id", "title"]
    assert opened.spec.engine == "exact"
    assert opened.manifest.facts["ann_recall_at_100"] == 1.0
    assert len(opened.probes.records) == 32
    check_answers(opened)


def test_a_probe_retrieves_what_the_builder_saw(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    retriever = Retriever.open(bundle)
    for record, vector, rows in zip(
        opened.probes.records, opened.probes.vectors, opened.probes.neighbors.rows, strict=True
    ):
        np.testing.assert_allclose(retriever.embed(record), vector, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(retriever.retrieve(record, 20).rows, rows)


def test_every_user_can_be_retrieved_by_id(bundle: Path) -> None:
    users = Bundle.open(bundle).users
    assert users is not None
    assert users.num_rows == 120
    retriever = Retriever.open(bundle)
    record = {key: value for key, value in users.slice(7, 1).to_pylist()[0].items() if value is not None}
    by_id = retriever.retrieve_by_id("u0007", 10)
    np.testing.assert_array_equal(by_id.item_ids, retriever.retrieve(record, 10).item_ids)


def test_a_tree_is_tuned_to_the_target(stages: Stages, embeddings: Path, tmp_path: Path) -> None:
    settings = IndexSettings(engine="scann", tuning_queries=40, tuning_seconds=20, ann_recall_at_100=0.95)
    progress = Recorded()
    built = build.run(embeddings, stages.model, stages.features, settings, tmp_path / "bundle", progress=progress)
    opened = Bundle.open(built)
    assert opened.spec.engine == "scann"
    assert opened.spec.chosen is not None
    assert opened.spec.chosen.ann_recall_at_100 >= 0.952
    assert opened.spec.check is not None
    recalls = [point.ann_recall_at_100 for point in opened.spec.frontier]
    assert recalls == sorted(recalls)
    assert any("leaves" in line for line in progress.lines)
    check_answers(opened)
    assert not list(built.rglob("*.pkl"))
    assert not [file for file in built.rglob("*.json") if str(tmp_path) in file.read_text()]


def test_figures_of_a_bundle_with_a_value_are_those_of_the_tree_that_is_served(
    stages: Stages, embeddings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tree with the value's dimension finds other items than the one that was tuned."""
    parts = []
    users_of = build._users
    monkeypatch.setattr(build, "_users", lambda *given: parts.append(users_of(*given)) or parts[-1])
    tree = TreeSettings(leaves=12, leaves_to_search=2, reorder=100)
    plain = IndexSettings(attributes=ATTRIBUTES, tree=tree, tuning_queries=40)
    figures = []
    for name, settings in (("plain", plain), ("value", plain.model_copy(update={"value": "price"}))):
        opened = Bundle.open(build.run(embeddings, stages.model, stages.features, settings, tmp_path / name))
        assert opened.spec.check is not None
        assert opened.spec.chosen is not None
        assert opened.manifest.facts["ann_recall_at_100"] == opened.spec.check.ann_recall_at_100
        assert opened.manifest.facts["p99_us"] == opened.spec.check.p99_us
        for told, queries in ((opened.spec.check, parts[-1].check), (opened.spec.chosen, parts[-1].tuning)):
            found = [opened.searcher.search(vector, 100).rows for vector in queries.vectors]
            shares = [np.isin(best, rows).mean() for best, rows in zip(queries.truth, found, strict=True)]
            assert told.ann_recall_at_100 == pytest.approx(np.mean(shares))
        figures.append(opened.spec.check.ann_recall_at_100)
    assert figures[0] != figures[1]


def test_shards_equal_one_tree_at_full_effort(stages: Stages, embeddings: Path, tmp_path: Path) -> None:
    tree = TreeSettings(leaves=20, leaves_to_search=5, reorder=200, training_sample=500)
    paths = {}
    for shards in (1, 3):
        settings = IndexSettings(engine="scann", tree=tree, shards=shards, tuning_queries=20)
        paths[shards] = build.run(embeddings, stages.model, stages.features, settings, tmp_path / f"bundle-{shards}")
    one, three = (Bundle.open(paths[shards]).searcher for shards in (1, 3))
    queries = np.random.default_rng(3).normal(size=(20, DIM)).astype(np.float32)
    a, b = one.search_batch(queries, 30, one.full_effort), three.search_batch(queries, 30, three.full_effort)
    np.testing.assert_array_equal(a.rows, b.rows)
    np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5)
    # Rebuilt without an item, they are still three, and none of the others is lost.
    sharded = Bundle.open(paths[3])
    state = DeltaState.of(sharded)
    gone = np.zeros(ITEMS, bool)
    gone[7] = True
    rebuilt = compaction.write_bundle(replace(state, gone=gone), "v", tmp_path / "rebuilt")
    c = Bundle.open(rebuilt).searcher.search_batch(queries, 30, three.full_effort)
    without = ExactSearcher(np.delete(np.asarray(sharded.vectors), 7, axis=0)).search_batch(queries, 30)
    np.testing.assert_array_equal(c.rows, without.rows)
    assert Bundle.open(rebuilt).spec.shards == 3


def test_an_unknown_attribute_is_refused(stages: Stages, embeddings: Path, tmp_path: Path) -> None:
    settings = IndexSettings(attributes=("colour",))
    with pytest.raises(ConfigError, match=r"columns of the items table .*got 'colour'"):
        build.run(embeddings, stages.model, stages.features, settings, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_vectors_of_another_model_are_refused(stages: Stages, embeddings: Path, tmp_path: Path) -> None:
    write_model(tmp_path / "model", stages.features, dim=DIM, seed=1)
    with pytest.raises(ArtifactError, match="made from model"):
        build.run(embeddings, tmp_path / "model", stages.features, IndexSettings(), tmp_path / "bundle")


@pytest.mark.parametrize("key", ["memory_gib", "disk_gib", "minutes"])
def test_a_build_over_its_budget_does_not_start(stages: Stages, embeddings: Path, tmp_path: Path, key: str) -> None:
    settings = IndexSettings.model_validate({key: 1e-9})
    with pytest.raises(ConfigError, match=rf"index.{key}: the build is predicted to need .*Options: .*int8"):
        build.run(embeddings, stages.model, stages.features, settings, tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_damaged_input_is_refused_by_name(stages: Stages, embeddings: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(embeddings, tmp_path / "embeddings"))
    content = bytearray((damaged / "vectors.npy").read_bytes())
    content[-3] ^= 4
    (damaged / "vectors.npy").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"vectors\.npy: its checksum"):
        build.run(damaged, stages.model, stages.features, IndexSettings(), tmp_path / "bundle")


def test_items_are_in_row_order(stages: Stages, bundle: Path) -> None:
    ids = pq.read_table(bundle / "items.parquet")["item_id"].to_pylist()
    assert ids == [1000 + 3 * item for item in range(ITEMS)]
    assert json.loads((bundle / "towers.json").read_text())["space"] == Bundle.open(bundle).space


def test_a_plan_builds_nothing(embeddings: Path, tmp_path: Path) -> None:
    kept = sorted(embeddings.parent.rglob("*"))
    own = build.plan(embeddings, IndexSettings(engine="exact"))
    assert own.line.startswith(f"plan: {ITEMS:,} items × {DIM}: ")
    assert sorted(embeddings.parent.rglob("*")) == kept
    # Another size needs no embeddings: here ten times the items, so ten times the vectors on disk.
    other = build.plan(tmp_path / "none", IndexSettings(engine="exact"), items=10 * ITEMS, dim=DIM)
    assert other.disk_bytes == 10 * own.disk_bytes
    with pytest.raises(ArtifactError):
        build.plan(tmp_path / "none", IndexSettings())
    with pytest.raises(ConfigError, match=r"index.memory_gib: .* Nothing was started"):
        build.plan(embeddings, IndexSettings(engine="exact", memory_gib=1e-6))


def test_a_bundle_takes_its_backtest_along(stages: Stages, embeddings: Path, bundle: Path, tmp_path: Path) -> None:
    settings = IndexSettings(attributes=ATTRIBUTES, tuning_queries=40)
    out = build.run(
        embeddings, stages.model, stages.features, settings, tmp_path / "night", retriever=None, backtest=bundle
    )
    night, inner = Bundle.open(out), Bundle.open(bundle)
    assert night.backtest is not None
    assert night.measured.manifest.fingerprint == inner.manifest.fingerprint
    assert night.manifest.inputs["backtest"] == inner.manifest.fingerprint
    by = night.manifest.facts[build.MEASURED_BY]
    assert by["held-out events"]["bundle"] == "backtest"
    assert by["held-out events"]["model"] == inner.manifest.inputs["model"]
    assert by["everything else"]["model"] == night.manifest.inputs["model"]
    # Its files are among the night's own, each with its checksum.
    assert {f"backtest/{name}" for name in [*inner.manifest.files, "manifest.json"]} <= set(night.manifest.files)
    assert build.MEASURED_BY not in inner.manifest.facts


def popularity_by_hand(features: Path, half_life: float | None) -> np.ndarray:
    """By a loop over the events before the test part; a purchase weighs 3."""
    events = Sequences.open(features).events
    columns = (events.rows, events.times, events.actions, events.splits)
    before = [(row, time, action) for row, time, action, split in zip(*columns, strict=True) if split < 2]
    newest = max(time for _, time, _ in before)
    expected = np.zeros(ITEMS)
    for row, time, action in before:
        age = float(newest - time) / 86_400e6
        expected[row] += (3.0 if action == 1 else 1.0) * (1.0 if half_life is None else 0.5 ** (age / half_life))
    return expected


def test_popularity_is_of_all_events_before_the_test_part(stages: Stages, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    chosen = opened.manifest.facts[build.POPULARITY]
    expected = popularity_by_hand(stages.features, chosen["days"])
    np.testing.assert_allclose(opened.popularity, expected, rtol=1e-9)
    answer = Retriever.open(bundle).retrieve({}, 50)
    assert answer.cold_start == "popularity"
    np.testing.assert_allclose(answer.scores, np.log1p(np.sort(expected)[::-1][:50]), rtol=1e-6)


@pytest.mark.parametrize("days", [None, 14.0])
def test_a_night_takes_the_half_life_that_its_backtest_chose(
    stages: Stages, embeddings: Path, bundle: Path, tmp_path: Path, days: float | None
) -> None:
    inner = Bundle.open(bundle)
    chosen = {"days": days, "users": 70, "new_users": False, "recall": 0.5, "undecayed": 0.25}
    with write_artifact(tmp_path / "backtest", kind="bundle", format_version=2, inputs=inner.manifest.inputs) as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        draft.facts.update(inner.manifest.facts | {build.POPULARITY: chosen})
    settings, shown = IndexSettings(attributes=ATTRIBUTES, tuning_queries=40), Recorded()
    out = build.run(
        *(embeddings, stages.model, stages.features, settings, tmp_path / "night"),
        backtest=tmp_path / "backtest",
        progress=shown,
    )
    night = Bundle.open(out)
    assert night.manifest.facts[build.POPULARITY] == chosen
    np.testing.assert_allclose(night.popularity, popularity_by_hand(stages.features, days), rtol=1e-9)
    half = "any age count alike" if days is None else "half after 14 days"
    assert any(line.startswith("popularity: ") and half in line for line in shown.lines)


def test_a_popularity_of_another_catalogue_is_refused(bundle: Path, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "bundle", kind="bundle", format_version=2, inputs={}) as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
        np.save(draft.dir / "popularity.npy", np.ones(ITEMS - 1))
    with pytest.raises(ArtifactError, match=r"popularity\.npy: expected 500 numbers, one per item, got shape \(499,\)"):
        Bundle.open(tmp_path / "bundle").popularity  # noqa: B018


def test_a_bundle_without_popularity_ranks_by_train_events(bundle: Path, tmp_path: Path) -> None:
    with write_artifact(tmp_path / "bundle", kind="bundle", format_version=2, inputs={}) as draft:
        shutil.copytree(
            bundle, draft.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json", "popularity.npy")
        )
    old = Bundle.open(tmp_path / "bundle")
    assert old.popularity.tolist() == old.vocabulary.item_frequency.tolist()


def test_a_damaged_backtest_is_refused_by_name(stages: Stages, embeddings: Path, bundle: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(bundle, tmp_path / "broken")
    with (broken / "vectors.npy").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x01\x02\x03\x04")
    with pytest.raises(ArtifactError, match=r"broken/vectors\.npy.*damaged"):
        build.run(
            embeddings,
            stages.model,
            stages.features,
            IndexSettings(),
            tmp_path / "out",
            retriever=None,
            backtest=broken,
        )
    assert not (tmp_path / "out").exists()


def test_the_tree_of_the_version_published_last_is_tried_first(
    stages: Stages, embeddings: Path, tmp_path: Path
) -> None:
    settings = IndexSettings(engine="scann", tuning_queries=40, tuning_seconds=20, ann_recall_at_100=0.9)
    inputs = (embeddings, stages.model, stages.features)
    first = Bundle.open(build.run(*inputs, settings, tmp_path / "first"))
    second = Bundle.open(build.run(*inputs, settings, tmp_path / "second", last=first))
    assert second.spec.taken_over
    # Other settings: the tree is looked for.
    other = settings.model_copy(update={"ann_recall_at_100": 0.92})
    third = Bundle.open(build.run(*inputs, other, tmp_path / "third", last=first))
    assert (third.spec.taken_over, third.spec.tuned_items) == (False, ITEMS)
