"""Two versions compared: which is better, certain or not, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from index.evaluation.compare import churn, movers, run
from index.evaluation.settings import EvaluationSettings
from index.publishing.gates import judge
from index.registry.bundle import Bundle
from index.settings import GatesSettings
from pipelines.contracts.errors import ArtifactError, SchemaError
from tests.index.evaluation.conftest import Written
from tests.index.evaluation.worlds import make_world, write_bundle

SETTINGS = EvaluationSettings(resamples=200, category="category", price="price", first_seen="first_seen")
GATES = GatesSettings(panel=100)


def compare(written: Written, first: Path, second: Path, out: Path) -> dict:
    path = run(
        first,
        second,
        written.features,
        SETTINGS,
        lambda after, before: judge(after, before, written.features, GATES),
        out,
    )
    assert path == out / "compare.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def broken(written, tmp_path_factory) -> Path:
    """A version whose vectors are each another item's."""
    shifted = np.roll(written.world.vectors, 7, axis=0)
    return write_bundle(tmp_path_factory.mktemp("broken") / "bundle", written.world, vectors=shifted)


@pytest.fixture(scope="module")
def result(written, broken, tmp_path_factory) -> dict:
    out = tmp_path_factory.mktemp("compared")
    result = compare(written, written.bundle, broken, out)
    result["page"] = (out / "compare.html").read_text()
    return result


def test_a_version_is_the_same_as_itself(written, tmp_path):
    result = compare(written, written.bundle, written.bundle, tmp_path)
    assert {one["verdict"] for one in result["metrics"]} == {"same"}
    assert {one["verdict"] for one in result["slices"]} <= {"same", "small", "empty"}
    assert result["churn"]["mean"] == 0.0
    assert result["advertisers"] == result["categories"] == []
    assert "no certain difference" in (tmp_path / "compare.html").read_text()


def test_a_crippled_version_is_worse_for_certain(result):
    recall = next(one for one in result["metrics"] if (one["metric"], one["part"], one["k"]) == ("recall", "all", 100))
    assert recall["verdict"] == "worse"
    assert recall["interval"][1] < 0
    assert recall["difference"] == pytest.approx(recall["second"] - recall["first"])
    assert any(one["verdict"] == "worse" for one in result["slices"])
    assert result["churn"]["mean"] > 0
    assert result["items"] == {"in_both": 2000, "only_first": 0, "only_second": 0}
    assert result["latency"]["first"]["searches"] > 0


def test_the_verdicts_are_the_gates(written, broken, result):
    expected = judge(Bundle.open(broken), Bundle.open(written.bundle), written.features, GATES)
    gates = {verdict.gate: verdict.outcome for verdict in expected}
    assert {one["gate"]: one["outcome"] for one in result["verdicts"]} == gates
    lines = {verdict.gate: verdict.line for verdict in expected}
    for one, line in zip(result["verdicts"], result["verdict_lines"], strict=True):
        if "latency" not in one["gate"]:
            assert line == lines[one["gate"]]
    assert "FAIL" in "".join(result["verdict_lines"])


def test_the_page_is_complete_and_self_contained(result):
    page = result["page"]
    assert "hold it back" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.split("</style>")[1].split("data:image")[0]
    for title in ("Quality", "Exposure by advertisers", "Latency and size", "Verdicts of the gates"):
        assert title in page


def test_items_that_went_are_counted_and_the_gates_are_not_asked(written, tmp_path):
    smaller = write_bundle(tmp_path / "smaller", written.world, items=1900)
    result = compare(written, written.bundle, smaller, tmp_path / "out")
    assert result["items"] == {"in_both": 1900, "only_first": 100, "only_second": 0}
    assert result["second"]["counts"]["truth_outside_catalogue"] > 0
    assert result["verdicts"] == []
    assert "skip all gates" in result["verdict_lines"][0]


def test_a_version_that_does_not_exist(written, tmp_path):
    with pytest.raises(ArtifactError, match="nowhere"):
        compare(written, written.bundle, tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_versions_of_different_catalogues(written, tmp_path, monkeypatch):
    from tests.index.evaluation import worlds

    monkeypatch.setattr(worlds, "FIRST_ID", 900_001)
    other = write_bundle(tmp_path / "other", make_world())
    with pytest.raises(SchemaError, match=r"none of its 2000 items.*different catalogues"):
        compare(written, written.bundle, other, tmp_path / "out")


def test_churn_by_hand():
    first = np.array([[1, 2, 3, 4], [1, 2, -1, -1], [-1, -1, -1, -1]], np.int32)
    second = np.array([[4, 3, 9, 8], [1, 2, -1, -1], [-1, -1, -1, -1]], np.int32)
    # Half of the first user's list is new, nothing of the second's; the third is shown nothing and has no value.
    assert churn(first, second, SETTINGS).mean == pytest.approx(0.25)
    assert churn(first, second, SETTINGS).users == 2


def test_movers_by_hand():
    first, second = np.array([[0, 1], [0, 2]], np.int32), np.array([[1, 1], [0, -1]], np.int32)
    moved = movers([first, second], np.array([0, 1, 1], np.int32), ("a", "b", "(missing)"), 2)
    assert [one.name for one in moved] == ["b", "a"]
    assert moved[0].change == pytest.approx(2 / 3 - 1 / 2)
