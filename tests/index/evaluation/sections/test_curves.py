"""The report's smaller sections: value, training, the map; gaps with many users and few ads; plots."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from index.evaluation.catalogue import Catalogue
from index.evaluation.evaluate import evaluate
from index.evaluation.pages import plots
from index.evaluation.sections import curves as sections
from index.evaluation.sections.curves import frontier, training_curves, value_frontier
from index.evaluation.sections.embedding_map import EmbeddingMap, by_pca, by_umap, directions, embedding_map
from index.evaluation.sections.gaps import Regions, find_gaps, good_ads, nearest_middle, user_demand
from index.evaluation.settings import SEED, EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.registry.searcher_spec import Measured, SearcherSpec
from index.settings import TreeSettings
from pipelines.contracts.errors import ConfigError
from tests.index.evaluation.worlds import write_bundle

SETTINGS = EvaluationSettings(resamples=200, category="category", price="price", waterfall_k=50, gaps=3)
TREE = TreeSettings(leaves=40, leaves_to_search=20, reorder=400, training_sample=2000)


@pytest.fixture(scope="module")
def subject(written, tmp_path_factory) -> Subject:
    """A version searched by a tree."""
    bundle = write_bundle(tmp_path_factory.mktemp("tree") / "bundle", written.world, tree=TREE)
    return Subject.open(bundle, EvaluationData.open(written.features, SETTINGS))


def test_demand_by_hand():
    middles = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]], np.float32)
    regions = Regions(np.zeros(1, np.int32), middles, of_tree=True)
    users = np.array([[2.0, 1.0], [0.0, -3.0]], np.float32)
    # The first scores 2, 1, -2, -1; the second 0, -3, 0, 3: ties go to the first region.
    assert user_demand(users, regions).tolist() == pytest.approx([2 / 3, 1 / 3, 1 / 3, 2 / 3])


def test_good_ads_and_middles_by_hand():
    assert good_ads(np.array([[3, -1], [5, 3]], np.int32), np.array([5, 4, 3, -1], np.int32)).tolist() == [
        True,
        False,
        True,
        False,
    ]
    vectors, middles = np.array([[0.1, 0], [5, 5]], np.float32), np.array([[0, 0], [4, 4]], np.float32)
    assert nearest_middle(vectors, middles).tolist() == [0, 1]


def test_a_region_emptied_of_eligible_ads_is_the_largest_gap(written, subject, monkeypatch):
    from index.evaluation.sections import gaps

    data = subject.data
    regions = Regions.of(subject.bundle, SEED)
    assert regions.of_tree
    busiest = int(user_demand(subject.user_vectors, regions).argmax())
    kept = regions.region_of_row != busiest
    monkeypatch.setattr(gaps, "mask_of", lambda where, attributes: kept)
    settings = SETTINGS.model_copy(update={"eligible": "in_stock"})
    everything = np.tile(np.arange(2000, dtype=np.int32), (data.held_out.num_users, 1))
    settings = settings.model_copy(update={"waterfall_k": 500})
    shown = np.stack([np.random.default_rng(user).permutation(row) for user, row in enumerate(everything)])
    found = find_gaps(shown, subject, Catalogue.of(data, settings), settings).found
    assert found[0].region == busiest
    assert (found[0].supply, found[0].good) == (0, 0)
    assert found[0].ads == int((~kept).sum())


def test_the_pressure_of_a_region_by_hand(monkeypatch):
    """Demand 6, 0.5, 0.2 and 3 of four regions; good ads 2, 2, 0 and 0: 9.7 users for 4 good ads, 2.425 for one.

    Users per good ad, one more being supposed: 6 / 3, 0.5 / 3, 0.2 / 1 and 3 / 1. The third region's demand is below a
    tenth of the mean, 0.2425, so that it comes last although its pressure is above the second one's.
    """
    from index.evaluation.sections import gaps

    words = {"categories": (), "tokens": (), "nearest": (), "median_price": None}
    regions = Regions(np.array([0, 0, 0, 1, 1, 2, 3], np.int32), np.eye(4, dtype=np.float32), of_tree=True)
    monkeypatch.setattr(gaps.Regions, "of", lambda bundle, seed: regions)
    monkeypatch.setattr(gaps, "user_demand", lambda users, regions: np.array([6.0, 0.5, 0.2, 3.0]))
    monkeypatch.setattr(gaps, "_Describer", lambda *_: SimpleNamespace(words=lambda region: words))
    version = SimpleNamespace(
        bundle=SimpleNamespace(num_items=7), user_vectors=None, to_feature_row=np.arange(7, dtype=np.int32)
    )
    # Row 2 is shown below the cut.
    served = np.array([[0, 3, 2], [1, 4, -1]], np.int32)
    settings = SETTINGS.model_copy(update={"waterfall_k": 2, "gaps": 4})
    found = find_gaps(served, version, None, settings).found
    assert [gap.region for gap in found] == [3, 0, 1, 2]
    assert [gap.good for gap in found] == [0, 2, 2, 0]
    assert [gap.ads for gap in found] == [1, 3, 2, 1]
    expected = [round(users * 4 / 9.7, 3) for users in (3 / 1, 6 / 3, 0.5 / 3, 0.2 / 1)]
    assert [gap.pressure for gap in found] == pytest.approx(expected)


def test_the_trend_counts_the_previous_versions_ads(written, subject, tmp_path):
    from index.registry.bundle import Bundle

    previous = Bundle.open(write_bundle(tmp_path / "previous", written.world, items=1000))
    data = subject.data
    shown = np.tile(np.arange(100, dtype=np.int32), (data.held_out.num_users, 1))
    settings = SETTINGS.model_copy(update={"gaps": 40})
    found = find_gaps(shown, subject, Catalogue.of(data, settings), settings, previous).found
    assert sum(gap.supply_before for gap in found) == 1000
    assert find_gaps(shown, subject, Catalogue.of(data, settings), settings).found[0].supply_before is None


def test_the_map_shows_a_sample_and_its_gaps(subject):
    catalogue = Catalogue.of(subject.data, SETTINGS)
    shown = np.tile(np.arange(100, dtype=np.int32), (subject.data.held_out.num_users, 1))
    placed = embedding_map(subject, catalogue, find_gaps(shown, subject, catalogue, SETTINGS), SETTINGS)
    assert len(placed.points) == len(placed.category) == 2000
    assert len(placed.gaps) == SETTINGS.gaps
    assert set(placed.categories) >= {"shoes", "bags", "lamps", "rugs", "toys"}
    assert 0 < placed.explained[1] <= placed.explained[0] < 1
    assert plots.embedding_map(SimpleNamespace(map=placed)).png.startswith(b"\x89PNG")


def test_the_map_shows_directions_not_lengths():
    vectors = np.array([[3, 0], [0.1, 0], [0, 2], [0, 0]], np.float32)
    assert directions(vectors).tolist() == pytest.approx(np.array([[1, 0], [1, 0], [0, 1], [0, 0]]))
    ads, marks, explained = by_pca(directions(vectors[:3]), np.array([[1.0, 0.0]]))
    # Three points on one line of length √2: the first axis has all the variance.
    assert explained == pytest.approx([1.0, 0.0], abs=1e-12)
    assert ads[0] == pytest.approx(marks[0])
    assert abs(ads[0, 0] - ads[2, 0]) == pytest.approx(2**0.5)


def test_umap_that_is_missing_is_named(written, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"evaluation\.map: umap needs the library umap-learn.*towerline\[umap\]"):
        evaluate(tmp_path, written.features, EvaluationSettings(map="umap", baselines=()), tmp_path / "out")


@pytest.mark.slow
def test_umap_keeps_neighbors_together():
    pytest.importorskip("umap", reason="needs the extra `umap`")
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(4, 16))
    group = np.arange(200) % 4
    points = directions((centers[group] + 0.05 * rng.normal(size=(200, 16))).astype(np.float32))
    placed = by_umap(points, seed=3)
    apart = np.linalg.norm(placed[:, None] - placed[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    assert (group[apart.argmin(axis=1)] == group).all()
    assert (placed == by_umap(points, seed=3)).all()
    shown = EmbeddingMap(
        method="umap",
        points=placed.tolist(),
        category=group.tolist(),
        categories=list("abcd"),
        gaps=placed[:2].tolist(),
        explained=None,
    )
    assert plots.embedding_map(SimpleNamespace(map=shown)).png.startswith(b"\x89PNG")


def test_k_means_regions_are_of_directions_and_none_is_a_single_ad(written, tmp_path):
    from index.registry.bundle import Bundle

    bundle = Bundle.open(write_bundle(tmp_path / "exact", written.world))
    stretched = bundle.vectors * np.where(np.arange(bundle.num_items) % 100 == 0, 50.0, 1.0)[:, None].astype(np.float32)
    version = SimpleNamespace(searcher=bundle.searcher, vectors=stretched)
    regions = Regions.of(version, SEED)  # type: ignore[arg-type]
    assert not regions.of_tree
    sizes = np.bincount(regions.region_of_row, minlength=regions.number)
    assert sizes.min() >= 20
    assert (regions.containing(bundle.vectors) == regions.region_of_row).all()


def test_training_curves_are_read(tmp_path):
    epochs = [
        {"phase": "search", "epoch": 0, "loss": 0.0, "recall": {"all.20": 0.05}},
        {"phase": "search", "epoch": 1, "loss": 2.0, "recall": {"all.20": 0.1}},
        {"phase": "search", "epoch": 2, "loss": 1.5, "recall": None},
        {"phase": "refit", "epoch": 1, "loss": 1.9, "recall": None},
    ]
    (tmp_path / "training.json").write_text(json.dumps({"epochs": epochs}))
    curves = training_curves(tmp_path)
    assert curves.as_json() == {"epoch": [0, 1, 2], "loss": [None, 2.0, 1.5], "recall": {"all.20": [0.05, 0.1, None]}}
    assert plots.training(curves).png.startswith(b"\x89PNG")
    assert training_curves(tmp_path / "nowhere") is None


def test_the_frontier_is_the_tuners(subject):
    assert frontier(subject.bundle) is None
    points = [
        Measured(tree=tree, ann_recall_at_100=recall, p50_us=us, p99_us=2 * us, build_seconds=1.0, queries=10)
        for tree, recall, us in ((TREE, 0.9, 50.0), (None, 1.0, 900.0))
    ]
    spec = SearcherSpec(engine="scann", tree=TREE, target=0.95, chosen=points[0], frontier=tuple(points))

    class Tuned:
        pass

    tuned = Tuned()
    tuned.spec = spec  # type: ignore[attr-defined]
    found = frontier(tuned)  # type: ignore[arg-type]
    assert [one.kind for one in found.measured] == ["tree", "exact"]
    assert found.chosen.p99_us == 100.0
    assert plots.latency_frontier(found).png.startswith(b"\x89PNG")


def test_value_against_recall(subject, monkeypatch):
    assert value_frontier(subject, SETTINGS) is None

    class Spec:
        attribute = "price"

    class Value:
        spec = Spec()
        log_values = np.log(np.arange(1.0, 2001.0))

    plain = subject.answers

    def answers(self, records, k, **rules):
        assert rules in ({}, {"value_weight": 0.5})
        return plain(records, k)

    monkeypatch.setattr(sections, "load_value", lambda folder: Value())
    monkeypatch.setattr(Subject, "answers", answers)
    found = value_frontier(subject, SETTINGS.model_copy(update={"value_weights": (0.0, 0.5)}))
    assert [one.weight for one in found.points] == [0.0, 0.5]
    places = np.arange(min(300, subject.data.held_out.num_users))
    rows = subject.rows_of_answers(plain(subject.records(places), 50), 50)
    # The value of row r is r + 1.
    assert found.points[0].value == pytest.approx((rows[rows >= 0] + 1.0).mean())
    drawn = plots.value_frontier(found, 50)
    assert drawn.png.startswith(b"\x89PNG")
