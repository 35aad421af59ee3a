"""A version with a backtest: held-out events are measured on the backtest's towers, and the report says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.evaluation.compare import run
from index.evaluation.evaluate import current_report, evaluate
from index.evaluation.settings import EvaluationSettings
from index.publishing.gates import judge
from index.registry.registry import Registry
from index.settings import GatesSettings, TreeSettings
from tests.index.evaluation.conftest import Written
from tests.index.evaluation.worlds import DAY_US, TEST_FROM_US, write_bundle
from tests.index.serving_bundles import nest

SETTINGS = EvaluationSettings(resamples=100, category="category", price="price", baselines=("popularity",))
GATES = GatesSettings(panel=60, agreement=None)
WINDOW = {"history_from": None, "valid_from": 0, "test_from": TEST_FROM_US, "end": TEST_FROM_US + 7 * DAY_US}
WHOLE = {**WINDOW, "valid_from": WINDOW["end"], "test_from": WINDOW["end"]}


@pytest.fixture(scope="module")
def night(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A night's version: its towers are bad, as if their training had failed; its backtest's are good."""
    root = tmp_path_factory.mktemp("night")
    shifted = np.roll(written.world.vectors, 7, axis=0)
    tree = TreeSettings(leaves=8, leaves_to_search=6, reorder=200)
    published = write_bundle(root / "published", written.world, vectors=shifted, items=1900, tree=tree)
    backtest = nest(written.bundle, None, root / "inner", window=WINDOW)
    return nest(published, backtest, root / "night", window=WHOLE)


@pytest.fixture(scope="module")
def registry(night: Path) -> Registry:
    opened = Registry(night.parent / "registry")
    opened.publish(night)
    return opened


@pytest.fixture(scope="module")
def report(written: Written, registry: Registry, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("report")
    found = json.loads(evaluate(registry.url, written.features, SETTINGS, out).read_text())
    return {**found, "page": (out / "report.html").read_text(), "out": out}


@pytest.fixture(scope="module")
def alone(written: Written, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of the backtest's towers, published as a version of its own."""
    return json.loads(
        evaluate(written.bundle, written.features, SETTINGS, tmp_path_factory.mktemp("alone")).read_text()
    )


def test_figures_on_held_out_events_are_the_backtests(report: dict[str, Any], alone: dict[str, Any]) -> None:
    for name in ("recall", "ndcg", "by_action", "examples", "waterfall", "slices", "baselines", "intervals"):
        assert report[name] == alone[name]


def test_the_version_and_the_number_of_items_are_those_of_the_night(
    report: dict[str, Any], alone: dict[str, Any], registry: Registry
) -> None:
    assert report["version"] == registry.current()
    assert (report["counts"]["items"], alone["counts"]["items"]) == (1900, 2000)
    assert report["counts"]["truth_outside_catalogue"] == alone["counts"]["truth_outside_catalogue"]


def test_the_report_says_whose_figures_they_are(
    report: dict[str, Any], alone: dict[str, Any], registry: Registry
) -> None:
    backtest = registry.open().bundle.backtest
    assert backtest is not None
    assert report["towers"] == {
        "backtest": True,
        "bundle": backtest.manifest.fingerprint,
        "learned_until": "2025-02-23",
        "held_out_from": "2025-02-23",
        "seen": False,
        "weights": None,
        "why": None,
    }
    assert "are of the backtest&#39;s towers, which have learned from events until 2025-02-23." in report["page"]
    assert alone["towers"]["backtest"] is False
    assert alone["towers"]["learned_until"] == "2025-02-23"


def test_a_true_report_of_a_night_is_read_again(
    written: Written, registry: Registry, report: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from index.evaluation import evaluate as module

    monkeypatch.setattr(module, "rank", lambda *args, **options: pytest.fail("evaluated again"))
    read = current_report(registry.url, written.features, SETTINGS, report["out"])
    assert read.towers is not None
    assert read.towers.backtest


@pytest.mark.parametrize(("weights", "which"), [("start", "start, without training"), ("trained", "trained ones")])
def test_the_report_says_which_towers_are_published_and_why(
    written: Written, tmp_path: Path, weights: str, which: str
) -> None:
    facts = {"towers": weights, "towers_why": "as these figures say"}
    bundle = write_bundle(tmp_path / "bundle", written.world, facts=facts)
    found = json.loads(evaluate(bundle, written.features, SETTINGS, tmp_path / "report").read_text())
    assert (found["towers"]["weights"], found["towers"]["why"]) == (weights, "as these figures say")
    assert f"The towers are the {which}: as these figures say." in (tmp_path / "report" / "report.html").read_text()


def test_towers_that_have_seen_the_held_out_events_are_marked(written: Written, tmp_path: Path) -> None:
    whole = nest(written.bundle, None, tmp_path / "whole", window=WHOLE)
    found = json.loads(evaluate(whole, written.features, SETTINGS, tmp_path / "out").read_text())
    assert found["towers"]["seen"] is True
    page = (tmp_path / "out" / "report.html").read_text()
    assert "learned from events until 2025-03-02, and the held-out events begin at 2025-02-23" in page


def test_two_nights_are_compared_by_their_backtests(written: Written, night: Path, tmp_path: Path) -> None:
    """Both backtests are the same towers: no difference in quality, though the published versions differ."""
    good = nest(written.bundle, night / "backtest", tmp_path / "good", window=WHOLE)

    def judged(after: Any, before: Any) -> Any:
        return judge(after, before, written.features, GATES)

    path = run(good, night, written.features, SETTINGS, judged, tmp_path / "out")
    found = json.loads(path.read_text())
    assert {one["verdict"] for one in found["metrics"]} == {"same"}
    assert found["churn"]["mean"] == 0.0
    verdicts = {one["gate"]: one for one in found["verdicts"]}
    assert verdicts["recall against live"]["measured"] == 0.0
    assert verdicts["churn"]["measured"] > 0.3
    first, second = found["first"], found["second"]
    assert (first["engine"], second["engine"]) == ("exact", "scann")
    assert (first["counts"]["items"], second["counts"]["items"]) == (2000, 1900)
    assert second["size_bytes"] == sum(file.stat().st_size for file in night.rglob("*") if file.is_file()) - (
        (night / "manifest.json").stat().st_size
    )
    assert first["towers"]["bundle"] == second["towers"]["bundle"]
    assert found["latency"]["second"]["searches"] > 0
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("are of the backtest&#39;s towers") == 2
