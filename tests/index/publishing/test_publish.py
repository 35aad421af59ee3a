"""Gates: each can pass and fail, a failed one leaves CURRENT alone, a force is recorded."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from index.building import embedding_job as embed
from index.building import job as build
from index.inference.user_records import UserRecords
from index.publishing import publish as publishing
from index.publishing.answers import Answers
from index.publishing.gates import judge
from index.publishing.panel import TEST, Panel
from index.publishing.publish import Options
from index.publishing.verdict import Verdict
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.registry.searcher_spec import SearcherSpec
from index.search.scann_tree import ScannSearcher
from index.settings import GatesSettings, IndexSettings, TreeSettings
from pipelines.contracts.errors import ConfigError, GateError
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.sequences.item_sets import ItemSets
from tests.index.stage_artifacts import Stages, write_model, write_stages
from tests.recorded import Recorded

ITEMS, DIM = 600, 16


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    return write_stages(tmp_path_factory.mktemp("stages"), items=ITEMS, users=80, dim=DIM)


def built(stages: Stages, model: Path, root: Path) -> Path:
    embeddings = embed.run(model, stages.features, root / "embeddings")
    return build.run(embeddings, model, stages.features, IndexSettings(tuning_queries=20), root / "bundle")


@pytest.fixture(scope="module")
def bundle(stages: Stages) -> Path:
    return built(stages, stages.model, stages.root)


@pytest.fixture(scope="module")
def other(stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of another model, in another space."""
    root = tmp_path_factory.mktemp("other")
    write_model(root / "model", stages.features, dim=DIM, seed=3)
    return built(stages, root / "model", root)


def changed(bundle: Path, out: Path, change: Callable[[Path], None]) -> Path:
    """A whole artifact with some of its files changed."""
    manifest = read_manifest(bundle)
    with write_artifact(out, kind="bundle", inputs=manifest.inputs) as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        change(draft.dir)
        draft.facts.update(manifest.facts)
    return out


def verdict_of(verdicts: tuple[Verdict, ...], gate: str) -> Verdict:
    return next(verdict for verdict in verdicts if verdict.gate == gate)


def poor_tree(folder: Path) -> None:
    """A tree that looks at one leaf of three and reorders nothing."""
    vectors = np.load(folder / "vectors.npy")
    tree = TreeSettings(leaves=3, leaves_to_search=1, reorder=100, training_sample=ITEMS)
    (folder / "scann").mkdir()
    ScannSearcher.build(vectors, tree, 1).save(folder / "scann")
    spec = SearcherSpec(engine="scann", tree=tree, target=0.99)
    (folder / "searcher.json").write_text(spec.model_dump_json())


def test_the_first_version_passes_with_what_needs_a_live_one_skipped(stages: Stages, bundle: Path) -> None:
    verdicts = judge(Bundle.open(bundle), None, stages.features, GatesSettings())
    outcomes = {verdict.gate: verdict.outcome for verdict in verdicts}
    assert outcomes == {
        "items": "passed",
        "items against live": "skipped",
        "vector lengths": "passed",
        "golden probes": "passed",
        "ann recall": "passed",
        "reachable items": "passed",
        "reachable advertisers": "passed",
        "latency": "skipped",
        "recall against live": "skipped",
        "recall by category": "skipped",
        "churn": "skipped",
    }
    assert verdict_of(verdicts, "ann recall").measured == 1.0


def test_a_bundle_against_itself_loses_nothing(stages: Stages, bundle: Path) -> None:
    opened = Bundle.open(bundle)
    verdicts = judge(opened, opened, stages.features, GatesSettings())
    assert verdict_of(verdicts, "churn").measured == 0.0
    assert verdict_of(verdicts, "recall against live").measured == 0.0
    assert verdict_of(verdicts, "items against live").measured == 0.0
    assert verdict_of(verdicts, "vector lengths").measured == 0.0
    assert [verdict.gate for verdict in verdicts if verdict.outcome != "passed"] == ["latency"]


def test_another_space_churns(stages: Stages, bundle: Path, other: Path) -> None:
    verdicts = judge(Bundle.open(other), Bundle.open(bundle), stages.features, GatesSettings(churn=0.3))
    churn = verdict_of(verdicts, "churn")
    assert churn.outcome == "failed"
    assert churn.stage == "train"
    assert churn.measured is not None
    assert 0.3 < churn.measured <= 1.0


def test_a_poor_tree_fails_recall(stages: Stages, bundle: Path, tmp_path: Path) -> None:
    poor = changed(bundle, tmp_path / "poor", poor_tree)
    opened = Bundle.open(poor)
    verdicts = judge(opened, None, stages.features, GatesSettings(panel=10))
    recall = verdict_of(verdicts, "ann recall")
    assert (recall.outcome, recall.stage, recall.threshold) == ("failed", "build", 0.99)
    panel = Panel.of(stages.features, 10)
    served, exact = (
        set(Answers.from_bundle(one, panel.records(one)).rows.ravel().tolist()) for one in (opened, Bundle.open(bundle))
    )
    assert verdict_of(verdicts, "reachable items").measured == len(served) / len(exact)
    assert recall.line.startswith("FAIL ann recall 0.")
    assert "look at `towerline build`" in recall.line


@pytest.mark.parametrize(("allowed", "outcome"), [(0.05, "failed"), (0.99, "passed")])
def test_a_certain_drop_of_recall_fails_above_what_is_allowed(
    stages: Stages, bundle: Path, other: Path, monkeypatch: pytest.MonkeyPatch, allowed: float, outcome: str
) -> None:
    """Held-out events are what the live version ranks first: by construction it has recall 1, another model less."""
    live = Bundle.open(bundle)

    def truth(panel: Panel) -> ItemSets:
        rows = Answers.from_bundle(live, panel.records(live)).rows[:, :10]
        return ItemSets.of(np.repeat(np.arange(len(rows)), 10), rows.ravel(), len(rows))

    monkeypatch.setattr(Panel, "truth", property(truth))
    settings = GatesSettings(recall_drop=allowed)
    found = verdict_of(judge(Bundle.open(other), live, stages.features, settings), "recall against live")
    assert found.outcome == outcome
    assert found.measured is not None
    assert -0.99 < found.measured < -0.05
    assert "against 1.0000" in found.detail
    same = verdict_of(judge(live, live, stages.features, settings), "recall against live")
    assert (same.outcome, same.measured) == ("passed", 0.0)


def test_a_bundle_whose_vectors_do_not_fit_its_probes_fails(stages: Stages, bundle: Path, tmp_path: Path) -> None:
    def reverse(folder: Path) -> None:
        np.save(folder / "vectors.npy", -np.load(folder / "vectors.npy"))

    turned = changed(bundle, tmp_path / "turned", reverse)
    verdicts = judge(Bundle.open(turned), None, stages.features, GatesSettings())
    assert verdict_of(verdicts, "golden probes").outcome == "failed"


@pytest.mark.parametrize(
    ("changes", "gate", "stage"),
    [
        ({"items": ITEMS + 1}, "items", "features"),
        ({"latency_p99_us": 1e-3}, "latency", "build"),
        ({"ann_recall_at_100": 1.0}, None, None),
    ],
)
def test_thresholds_decide(
    stages: Stages, bundle: Path, changes: dict[str, float], gate: str | None, stage: str | None
) -> None:
    verdicts = judge(Bundle.open(bundle), None, stages.features, GatesSettings.model_validate(changes))
    failed = [(verdict.gate, verdict.stage) for verdict in verdicts if verdict.outcome == "failed"]
    assert failed == ([] if gate is None else [(gate, stage)])


def test_gates_can_be_switched_off(stages: Stages, bundle: Path) -> None:
    off = dict.fromkeys(
        (
            "recall_drop",
            "category_recall_drop",
            "items",
            "items_change",
            "reachable_items",
            "reachable_advertisers",
            "norm_change",
        ),
        None,
    )
    settings = GatesSettings.model_validate({**off, "probe_score_error": None, "churn": None})
    verdicts = judge(Bundle.open(bundle), None, stages.features, settings)
    assert [(verdict.gate, verdict.outcome) for verdict in verdicts] == [
        ("ann recall", "passed"),
        ("latency", "skipped"),
    ]


def test_a_latency_without_a_threshold_is_shown_and_not_judged(stages: Stages, bundle: Path) -> None:
    asked = [GatesSettings(), GatesSettings(latency_p99_us=1e9)]
    shown, judged = (
        verdict_of(judge(Bundle.open(bundle), None, stages.features, settings), "latency") for settings in asked
    )
    assert (shown.outcome, shown.threshold) == ("skipped", None)
    assert shown.measured is not None
    assert shown.measured > 0
    assert shown.line.startswith("skip latency ")
    assert shown.line.endswith("not judged: set gates.latency_p99_us")
    assert (judged.outcome, judged.threshold) == ("passed", 1e9)
    assert "not judged" not in judged.line


def without_a_past(users: UserRecords, places: np.ndarray) -> UserRecords:
    """The same users; those at ``places`` have no event before the test part."""
    events = users.events
    kept = (events.splits == TEST) | ~np.isin(events.owners, places)
    sequences = dataclasses.replace(users._sequences, events=events.where(kept))
    return UserRecords(users._features, sequences)


def test_a_night_whose_buyers_are_all_new_is_judged(
    stages: Stages, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has both a past and held-out events: the buyers are known by their features, others show the search."""
    known = UserRecords.open(stages.features)
    users = without_a_past(known, np.flatnonzero(known.events.of_split(TEST).counts))
    monkeypatch.setattr("index.publishing.panel.UserRecords.open", lambda features: users)
    opened = Bundle.open(bundle)
    verdicts = judge(opened, opened, stages.features, GatesSettings())
    assert [verdict.gate for verdict in verdicts if verdict.outcome == "failed"] == []
    recall = verdict_of(verdicts, "recall against live")
    assert (recall.outcome, recall.measured) == ("passed", 0.0)
    assert "by profile" in verdict_of(verdicts, "churn").detail


def test_a_failed_gate_leaves_the_live_version_and_names_the_stage(
    stages: Stages, bundle: Path, other: Path, tmp_path: Path
) -> None:
    registry = tmp_path / "registry"
    progress = Recorded()
    first = publishing.run(bundle, stages.features, registry, GatesSettings(), progress=progress)
    assert first.version == Registry(registry).current()
    assert len(progress.lines) == len(first.verdicts)
    strict = GatesSettings(churn=0.01)
    with pytest.raises(GateError, match=rf"at fault: train.*\. {first.version} stays live") as refused:
        publishing.run(other, stages.features, registry, strict)
    assert refused.value.exit_code == 1
    assert "FAIL churn" in str(refused.value)
    assert [one["gate"] for one in refused.value.verdicts if one["outcome"] == "failed"] == ["churn"]
    assert len(refused.value.verdicts) == len(first.verdicts)
    assert Registry(registry).version_names() == [first.version]


def test_a_force_needs_a_reason_and_records_it(stages: Stages, bundle: Path, other: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    publishing.run(bundle, stages.features, registry.url, GatesSettings())
    strict = GatesSettings(churn=0.01)
    with pytest.raises(ConfigError, match="--force: expected a reason, got none"):
        publishing.run(other, stages.features, registry.url, strict, Options(force_reason="  "))
    forced = publishing.run(
        other, stages.features, registry.url, strict, Options(force_reason="new towers, churn is meant")
    )
    assert forced.forced
    facts = registry.open().bundle.manifest.facts
    assert facts["forced_reason"] == "new towers, churn is meant"
    assert {"gate": "churn", "outcome": "failed"}.items() <= facts["gates"][-1].items()


def test_a_dry_run_judges_and_publishes_nothing(stages: Stages, bundle: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    dry = publishing.run(bundle, stages.features, registry, GatesSettings(), Options(dry_run=True))
    assert dry.version is None
    assert dry.failed == ()
    assert Registry(registry).version_names() == []
    failing = publishing.run(bundle, stages.features, registry, GatesSettings(items=ITEMS + 1), Options(dry_run=True))
    assert [verdict.gate for verdict in failing.failed] == ["items"]


def test_retention_comes_with_publishing(stages: Stages, bundle: Path, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    for _ in range(4):
        publishing.run(bundle, stages.features, registry.url, GatesSettings(), Options(keep=2))
    assert len(registry.version_names()) == 2
    assert registry.version_names()[-1] == registry.current()
