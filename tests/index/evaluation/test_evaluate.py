"""The report as a whole: its keys, the retriever's own ranking, counted exclusions, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.evaluation.evaluate import current_report, evaluate
from index.evaluation.pages.plots import pictures
from index.evaluation.ranking import rank
from index.evaluation.reports import EvaluationReport
from index.evaluation.sections import baselines
from index.evaluation.settings import EvaluationSettings
from index.evaluation.subject import EvaluationData, Subject
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from tests.index.evaluation.conftest import Written
from tests.index.evaluation.worlds import make_world, write_bundle, write_features

SETTINGS = EvaluationSettings(
    resamples=200,
    category="category",
    price="price",
    first_seen="first_seen",
    slices=("country",),
    eligible="in_stock",
    max_per={"advertiser_id": 10},
)


@pytest.fixture(scope="module")
def out(written: Written, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert evaluate(written.bundle, written.features, SETTINGS, folder) == folder / "report.json"
    return folder


@pytest.fixture(scope="module")
def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def test_keys_are_where_the_contract_says(report):
    for figures in (report, *report["baselines"].values()):
        for part in ("all", "novel", "repeat"):
            assert list(figures["recall"][part]) == ["1", "5", "10", "20", "50", "100", "500"]
        low, high = figures["intervals"]["recall"]["all"]["20"]
        assert low <= figures["recall"]["all"]["20"] <= high
    names = ["popularity", "recent_popularity", "own_frequency", "own_decayed", "item_knn", "als"]
    assert list(report["baselines"]) == names
    assert set(report["by_action"]) == {"click", "purchase"}
    assert {"ndcg", "mrr", "hit_rate", "value_recall", "debiased_recall"} <= set(report)


def test_recall_is_what_the_retriever_answers(written, report):
    """The rule: the item that the report ranks for a user is the item that retrieval returns."""
    data = EvaluationData.open(written.features, SETTINGS)
    subject = Subject.open(written.bundle, data)
    rankings = rank(subject, 500)
    retriever = Retriever.open(written.bundle)
    ids = np.asarray(data.item_ids)
    truth, recalls, novel = data.held_out.truth, [], []
    for user in range(data.held_out.num_users):
        record = subject.records(np.array([user]))[0]
        answer = retriever.retrieve(record, 100)
        found = answer.item_ids
        other = np.flatnonzero(ids[rankings.served[user, :100]] != found)
        # One by one and in a batch, a score may differ in its last bit: then equal neighbors change places.
        if len(other):
            assert np.ptp(answer.scores[other]) < 1e-6
            assert set(ids[rankings.served[user, other]].tolist()) == set(found[other].tolist())
        own = set(ids[truth.rows[truth.offsets[user] : truth.offsets[user + 1]]].tolist())
        recalls.append(len(own & set(found[:20].tolist())) / min(20, len(own)))
        seen = data.held_out.seen
        met = set(ids[seen.rows[seen.offsets[user] : seen.offsets[user + 1]]].tolist())
        if own - met:
            left = retriever.retrieve(record, 20, exclude=met).item_ids
            novel.append(len((own - met) & set(left.tolist())) / min(20, len(own - met)))
    assert report["recall"]["all"]["20"] == pytest.approx(np.mean(recalls))
    assert report["recall"]["novel"]["20"] == pytest.approx(np.mean(novel))


def test_exclusions_are_counted_and_named(written, report):
    grouped = written.world.sequences
    owners = np.repeat(np.arange(len(grouped.user_ids)), np.diff(grouped.offsets))
    with_truth = len(np.unique(owners[grouped.splits == 2]))
    assert report["counts"]["users_evaluated"] == with_truth
    assert report["counts"]["users_without_truth"] == len(grouped.user_ids) - with_truth
    assert report["counts"]["truth_outside_catalogue"] == 0


def test_the_waterfall_in_the_report_sums(report):
    figures = report["waterfall"]
    assert sum(stage["lost"] for stage in figures["stages"].values()) == pytest.approx(1 - figures["recall"], abs=1e-9)


def test_the_page_is_self_contained(out, report):
    page = (out / "report.html").read_text()
    drawn = pictures(EvaluationReport.model_validate(report))
    assert page.count("data:image/png;base64,") == len(drawn) >= 5
    assert "http" not in page.split("</style>")[1].split("data:image")[0]
    for title in (
        "Recall compared with the baselines",
        "Health of the marketplace",
        "Content gaps",
        "Where recall is lost",
    ):
        assert title in page
    for picture in drawn:
        assert picture.png.startswith(b"\x89PNG")
        assert picture.caption


def test_gaps_describe_their_content(report):
    found = report["gaps"]["found"]
    assert found
    assert [gap["pressure"] for gap in found] == sorted((gap["pressure"] for gap in found), reverse=True)
    for gap in found:
        assert gap["good"] <= gap["supply"] <= gap["ads"]
        assert gap["categories"]
        assert gap["nearest"]
        assert gap["median_price"] > 0


def test_a_true_report_is_read_and_a_stale_one_is_made_again(written, out, tmp_path, monkeypatch):
    from index.evaluation import evaluate as module

    first = current_report(written.bundle, written.features, SETTINGS, out)
    monkeypatch.setattr(module, "rank", lambda *args, **options: pytest.fail("evaluated again"))
    assert current_report(written.bundle, written.features, SETTINGS, out) == first
    with pytest.raises(pytest.fail.Exception, match="evaluated again"):
        changed = SETTINGS.model_copy(update={"resamples": 300})
        current_report(written.bundle, written.features, changed, out)


def test_a_stale_index_counts_its_misses(written, tmp_path):
    stale = write_bundle(tmp_path / "stale", written.world, items=1000)
    settings = SETTINGS.model_copy(update={"baselines": ()})
    path = evaluate(stale, written.features, settings, tmp_path / "out")
    figures = json.loads(path.read_text())
    truth = EvaluationData.open(written.features, settings).held_out.truth
    assert figures["counts"]["truth_outside_catalogue"] == int((truth.rows >= 1000).sum()) > 0
    assert "name items this version does not have" in (tmp_path / "out" / "report.html").read_text()


def test_without_repeats(written, tmp_path):
    settings = SETTINGS.model_copy(update={"baselines": ("popularity",), "remove_seen": True})
    path = evaluate(written.bundle, written.features, settings, tmp_path)
    figures = json.loads(path.read_text())
    assert list(figures["recall"]) == ["all", "new items", "known items"]
    assert list(figures["ndcg"]) == ["all"]


def test_a_sample_of_users_is_stable(written):
    settings = SETTINGS.model_copy(update={"max_users": 30})
    first, second = (EvaluationData.open(written.features, settings).held_out for _ in range(2))
    assert first.num_users == 30
    assert (first.users == second.users).all()
    everyone = EvaluationData.open(written.features, SETTINGS).held_out
    assert set(first.users.tolist()) <= set(everyone.users.tolist())


@pytest.mark.parametrize(("k", "message"), [((0, 5), "got [0, 5]"), ((5, 5), "got [5, 5]"), ((), "got []")])
def test_bad_cut_offs_are_refused(k, message):
    with pytest.raises(ValueError) as caught:
        EvaluationSettings(k=k)
    assert f"expected rising cut-offs of 1 or more, {message}" in str(caught.value)


def test_the_waterfall_cannot_be_deeper_than_the_ranking():
    with pytest.raises(ValueError, match="waterfall_k: at most the largest k, 50, got 100"):
        EvaluationSettings(k=(10, 50))


def test_no_held_out_event_at_all(written, tmp_path):
    world = make_world(items=200, users=20)
    world.sequences.splits[:] = 0
    features = write_features(tmp_path / "features", world)
    with pytest.raises(SchemaError, match="expected users with events in the test part, found none among 20"):
        evaluate(written.bundle, features, SETTINGS, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_version_that_does_not_exist(written, tmp_path):
    registry = Registry(tmp_path / "registry")
    registry.publish(written.bundle)
    with pytest.raises(ArtifactError, match="expected version 'nonsense'"):
        evaluate(registry.url, written.features, SETTINGS, tmp_path / "out", version="nonsense")
    with pytest.raises(ArtifactError):
        evaluate(tmp_path / "nowhere", written.features, SETTINGS, tmp_path / "out")


def test_an_unknown_attribute_in_the_rule(written, tmp_path):
    settings = SETTINGS.model_copy(update={"eligible": "nonsense", "baselines": ()})
    with pytest.raises(SchemaError, match="nonsense"):
        evaluate(written.bundle, written.features, settings, tmp_path / "out")


def test_a_missing_library_is_named_before_work_begins(written, tmp_path, monkeypatch):
    monkeypatch.setattr(baselines.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"implicit, which is not installed\. Install 'towerline\[demo\]'"):
        evaluate(tmp_path / "nowhere", written.features, SETTINGS, tmp_path / "out")
