"""Slices: recall by hand, worse slices are found, none by chance, bad columns are named."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from index.evaluation.catalogue import Catalogue
from index.evaluation.sections.slices import Cut, TruthHits, _measure, ad_cuts, bands, corrected, measure_slices
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.schema import Split
from pipelines.sequences.item_sets import ItemSets
from tests.index.evaluation.worlds import DAY_US, TEST_FROM_US, write_bundle

SETTINGS = EvaluationSettings(
    resamples=200, category="category", price="price", first_seen="first_seen", slices=("country", "in_stock")
)


def found_of(hits: np.ndarray) -> TruthHits:
    """Users with ten items each, of which those in ``hits [users, 10] bool`` are found."""
    users = len(hits)
    truth = ItemSets.of(np.repeat(np.arange(users), 10), np.tile(np.arange(10, dtype=np.int32), users), users)
    return TruthHits(truth, hits.ravel(), 100)


def test_recall_by_hand():
    truth = ItemSets.of(np.array([0, 0, 0, 1]), np.array([1, 2, 3, 2], np.int32), 3)
    found = TruthHits.of(np.array([[3, 9, 2], [1, 0, 0], [1, 2, 3]], np.int32), truth, 2)
    everything = np.ones(4, np.bool_)
    assert found.recall(everything)[:2].tolist() == [1 / 2, 0.0]
    assert np.isnan(found.recall(everything)[2])
    # Only items 1 and 2: the first user finds none of both (2 is at place 3).
    assert found.recall(truth.rows < 3)[:2].tolist() == [0.0, 0.0]


def test_a_crippled_slice_is_worse_and_the_p_value_is_the_tests():
    rng = np.random.default_rng(0)
    hits = rng.random((200, 10)) < 0.5
    hits[:50] &= rng.random((50, 10)) < 0.5
    found = found_of(hits)
    overall = found.recall(np.ones(2000, np.bool_))
    first = np.arange(200) < 50
    cuts = [Cut("users", "kind", "first", first), Cut("users", "kind", "rest", ~first)]
    slices = corrected([_measure(cut, found, overall, SETTINGS) for cut in cuts], SETTINGS)
    assert [one.verdict for one in slices] == ["worse", "better"]
    expected = stats.ttest_ind(overall[:50], overall[50:], equal_var=False).pvalue
    assert slices[0].p_value == pytest.approx(expected)
    assert slices[0].difference == pytest.approx(overall[:50].mean() - overall[50:].mean())


def test_by_chance_alone_hardly_anything_differs():
    rng = np.random.default_rng(1)
    called = 0
    for _ in range(20):
        found = found_of(rng.random((300, 10)) < 0.4)
        overall = found.recall(np.ones(3000, np.bool_))
        cuts = [Cut("users", "random", str(cut), rng.random(300) < 0.3) for cut in range(20)]
        slices = corrected([_measure(cut, found, overall, SETTINGS) for cut in cuts], SETTINGS)
        called += any(one.verdict in ("worse", "better") for one in slices)
    # Uncorrected, 20 tests a world would call something in 64 % of the worlds.
    assert called <= 4


def test_small_and_empty_slices_are_flagged_and_never_called():
    hits = np.zeros((100, 10), np.bool_)
    hits[5:] = True
    found = found_of(hits)
    overall = found.recall(np.ones(1000, np.bool_))
    cuts = [Cut("users", "a", "few", np.arange(100) < 5), Cut("users", "a", "none", np.zeros(100, np.bool_))]
    few, none = corrected([_measure(cut, found, overall, SETTINGS) for cut in cuts], SETTINGS)
    assert (few.verdict, few.users, few.p_value) == ("small", 5, None)
    assert (none.verdict, none.users, none.recall) == ("empty", 0, None)


def test_slices_of_a_world(written):
    data = EvaluationData.open(written.features, SETTINGS)
    catalogue = Catalogue.of(data, SETTINGS)
    users = data.held_out.num_users
    ranked = np.tile(np.arange(500, dtype=np.int32), (users, 1))
    slices = measure_slices(ranked, data, catalogue, SETTINGS)
    names = {one.name for one in slices}
    assert names >= {"history", "country", "ad", "category", "price", "advertiser size", "popularity", "age of the ad"}
    by_country = [one for one in slices if one.name == "country"]
    assert sum(one.users for one in by_country) == users
    deciles = [one for one in slices if one.name == "popularity"]
    assert len(deciles) == 10
    never = int((data.item_events[data.held_out.truth.rows] == 0).sum())
    assert sum(one.pairs for one in deciles) == len(data.held_out.truth.rows) - never


@pytest.mark.parametrize(
    ("facts", "until"),
    [
        ({}, "test"),
        ({"learned_from": ["train", "valid"]}, "test"),
        ({"learned_from": ["train"]}, "valid"),
        # A version of an earlier night, which has learned until its own validation part began, or its test part.
        ({"learned_from": ["train"], "window": {"valid_from": -20, "test_from": -14, "end": -7}}, -20),
        ({"learned_from": ["train", "valid"], "window": {"valid_from": -20, "test_from": -14, "end": -7}}, -14),
    ],
)
@pytest.mark.parametrize("by_time", [True, False])
def test_never_seen_is_what_the_measured_towers_have_not_learned_from(written, tmp_path, facts, until, by_time):
    """By a loop over the events; without a split by time it follows from the parts of the split."""
    if "window" in facts:
        if not by_time:
            pytest.skip("windows roll by time alone")
        days = {name: TEST_FROM_US + day * DAY_US for name, day in facts["window"].items()}
        facts = {**facts, "window": days}
        until = TEST_FROM_US + until * DAY_US
    bundle = write_bundle(tmp_path / "bundle", written.world, facts=facts)
    data = EvaluationData.open(written.features, SETTINGS)
    subject = Subject.open(bundle, data)
    split = {"valid_days": 6, "test_days": 7} if "window" in facts else {} if by_time else {"leave_last_out": True}
    if split:
        schema = subject.bundle.schema
        vars(subject.bundle)["schema"] = schema.model_copy(update={"split": Split.model_validate(split)})
    events = data.users.events
    latest = {"valid": 1, "test": 2}.get(until)
    learned = {
        row
        for row, time, split in zip(events.rows.tolist(), events.times.tolist(), events.splits.tolist(), strict=True)
        if (time < until if latest is None else split < latest)
    }
    catalogue = Catalogue.of(data, SETTINGS, subject.learned_events)
    cuts = {cut.value: cut.chosen for cut in ad_cuts(data, catalogue, SETTINGS) if cut.name == "ad"}
    assert set(np.flatnonzero(~cuts["never seen in training"]).tolist()) == learned
    assert set(np.flatnonzero(cuts["seen in training"]).tolist()) == learned
    assert 0 < len(learned) < data.num_items


def test_bands():
    values = np.array([0.0, 1.0, 4.0, 5.0, 99.0, np.nan])
    found = {name: chosen.tolist() for name, chosen in bands(values, (1, 5), "days")}
    assert found == {
        "0 days": [True, False, False, False, False, False],
        "1–4 days": [False, True, True, False, False, False],
        "5+ days": [False, False, False, True, True, False],
        "(missing)": [False, False, False, False, False, True],
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": ("nonsense",)}, r"evaluation\.slices: expected columns.*got 'nonsense'"),
        ({"category": "nonsense"}, r"evaluation\.category: expected a column of the items.*got 'nonsense'"),
        ({"price": "title"}, r"evaluation\.price: expected a column of numbers, got 'title' of type string"),
        ({"first_seen": "price"}, r"evaluation\.first_seen: expected a column of times, got 'price' of type double"),
    ],
)
def test_unknown_columns_are_named(written, change, message):
    settings = SETTINGS.model_copy(update=change)
    data = EvaluationData.open(written.features, settings)
    with pytest.raises(ConfigError, match=message):
        measure_slices(np.zeros((data.held_out.num_users, 5), np.int32), data, Catalogue.of(data, settings), settings)
