"""The waterfall sums to what is lost, and names the stage that was crippled on purpose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.evaluation.sections.waterfall import Waterfall, fresh_recall, measure_waterfall
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.settings import TreeSettings
from pipelines.sequences.item_sets import ItemSets
from tests.index.evaluation.conftest import Written
from tests.index.evaluation.worlds import write_bundle

SETTINGS = EvaluationSettings(resamples=200, waterfall_k=50)
FINE = TreeSettings(leaves=40, leaves_to_search=40, reorder=2000, dims_per_block=1, training_sample=2000)


def fall(written: Written, bundle: Path, settings: EvaluationSettings = SETTINGS) -> Waterfall:
    subject = Subject.open(bundle, EvaluationData.open(written.features, settings))
    return measure_waterfall(subject, settings)


def check_sum(found: Waterfall) -> None:
    parts = sum(stage.lost for stage in found.stages.values())
    assert parts == pytest.approx(1.0 - found.recall, abs=1e-9)
    for stage in found.stages.values():
        assert stage.interval[0] <= stage.lost <= stage.interval[1]


def test_exact_search_loses_by_the_model_alone(written):
    found = fall(written, written.bundle)
    check_sum(found)
    assert found.culprit == "model"
    assert [stage.lost for stage in list(found.stages.values())[1:]] == [0.0] * 7
    assert found.lost == pytest.approx(found.stages["model"].lost)


@pytest.mark.parametrize(
    ("stage", "tree", "items"),
    [
        ("pruning", FINE.model_copy(update={"leaves_to_search": 1}), None),
        ("quantisation", FINE.model_copy(update={"reorder": 50, "dims_per_block": 16}), None),
        ("staleness", FINE, 1400),
    ],
)
def test_the_crippled_stage_is_named(written, tmp_path, stage, tree, items):
    bundle = write_bundle(tmp_path / "crippled", written.world, tree=tree, items=items)
    found = fall(written, bundle)
    check_sum(found)
    assert found.culprit == stage


def test_rules_are_stages(written):
    settings = SETTINGS.model_copy(update={"eligible": "in_stock", "max_per": {"advertiser_id": 1}})
    found = fall(written, written.bundle, settings)
    check_sum(found)
    lost = {name: stage.lost for name, stage in found.stages.items()}
    assert lost["filters"] > 0.0
    assert lost["crowding"] > lost["filters"] > lost["value"] == 0.0
    assert found.culprit == "crowding"


def test_fresh_recall_by_hand():
    truth = ItemSets.of(np.array([0, 0, 1, 2]), np.array([1, 9, 9, 2], np.int32), 4)
    in_catalogue = np.arange(10) < 9
    exact = np.array([[1, 5], [5, 6], [5, 6], [5, 6]], np.int32)
    # User 0 finds its one other item; user 1 has no other: the mean of users 0 and 2 (1 and 0); user 3 has no truth.
    assert fresh_recall(exact, truth, in_catalogue, 2).tolist()[:3] == [1.0, 0.5, 0.0]
    assert np.isnan(fresh_recall(exact, truth, in_catalogue, 2)[3])
