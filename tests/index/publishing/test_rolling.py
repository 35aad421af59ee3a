"""Rolling windows: held-out events are measured on the backtests, everything else on what is published."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.inference.user_records import UserRecords
from index.publishing import publish as publishing
from index.publishing.gates import judge
from index.publishing.panel import Panel
from index.publishing.verdict import Verdict
from index.registry.bundle import Bundle
from index.registry.registry import Registry
from index.retrieval.retriever import Retriever
from index.settings import GatesSettings
from pipelines.contracts.manifest import read_manifest, write_artifact
from pipelines.sequences.grouping import Grouped
from pipelines.sequences.reader import Sequences, part_name, write_part
from tests.index.serving_bundles import nest, write_bundle
from tests.index.stage_artifacts import DAY_US, TEST_FROM_US, schema, write_features

ITEMS, DIM, K = 400, 16, 100
END_US = TEST_FROM_US + 7 * DAY_US
WINDOW = {"history_from": None, "valid_from": TEST_FROM_US - 7 * DAY_US, "test_from": TEST_FROM_US, "end": END_US}
WHOLE = {"history_from": None, "valid_from": END_US, "test_from": END_US, "end": END_US}
# The night after: all windows a day later.
LATER = {name: None if moment is None else moment + DAY_US for name, moment in WINDOW.items()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rolling")


def of_all_events(features: Path, out: Path) -> Path:
    """The features of the night: all events are of the train part."""
    manifest = read_manifest(features)
    sequences = Sequences.open(features)
    with write_artifact(out, kind="features", inputs=manifest.inputs) as draft:
        shutil.copytree(features, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        file = draft.dir / "sequences" / part_name(0, 1)
        file.unlink()
        events = sequences.events
        assert events.values is not None
        train = np.zeros(len(events.rows), np.int8)
        parts = (events.offsets, events.rows, events.times, events.actions, events.values, train)
        write_part(Grouped(sequences.user_ids, *parts), file)
        draft.facts.update(manifest.facts, window=WHOLE)
    return out


@pytest.fixture(scope="module")
def features(root: Path) -> Path:
    write_features(root / "features", items=ITEMS, users=120, dim=DIM, seed=0, cold=20)
    return root / "features"


@pytest.fixture(scope="module")
def night(root: Path, features: Path) -> Path:
    return of_all_events(features, root / "night")


@pytest.fixture(scope="module")
def towers(root: Path) -> list[Path]:
    """Bundles of three different models."""
    return [write_bundle(root / f"towers-{seed}", items=ITEMS, dim=DIM, seed=seed, users=False) for seed in range(3)]


def two(root: Path, published: Path, backtest: Path, window: dict[str, Any] = WINDOW) -> Bundle:
    """A night's bundle of published towers, with the backtest's inside."""
    name = f"{published.name}-{backtest.name}-{window['test_from']}"
    if not (root / name).exists():
        inner = nest(backtest, None, root / f"{name}-inner", window=window)
        end = window["end"]
        whole = {"history_from": None, "valid_from": end, "test_from": end, "end": end}
        nest(published, inner, root / name, window=whole)
    return Bundle.open(root / name)


def judged(bundle: Bundle, live: Bundle | None, features: Path, night: Path | None, **gates: Any) -> dict[str, Verdict]:
    settings = GatesSettings(**gates)
    return {verdict.gate: verdict for verdict in judge(bundle, live, features, settings, night=night)}


def answers(bundle: Path, features: Path, panel: Panel) -> list[set[int]]:
    """Each panel user's answer from one of the features, by single calls."""
    records = UserRecords.open(features).records(panel.users, schema(), Bundle.open(bundle).vocabulary.item_ids)
    retriever = Retriever.open(bundle)
    return [set(retriever.retrieve(record, K).item_ids.tolist()) for record in records]


def test_held_out_events_are_measured_on_the_backtests(
    root: Path, features: Path, night: Path, towers: list[Path]
) -> None:
    """The two backtests are of one model, so nothing is lost, though the published towers differ."""
    before, after = two(root, towers[1], towers[0]), two(root, towers[2], towers[0])
    verdicts = judged(after, before, features, night)
    assert verdicts["recall against live"].measured == 0.0
    assert verdicts["churn"].measured is not None
    assert verdicts["churn"].measured > 0.3
    swapped = judged(two(root, towers[1], towers[2]), before, features, night)
    assert swapped["churn"].measured == 0.0
    assert swapped["recall against live"].measured != 0.0


def test_churn_is_of_what_users_would_see_now(root: Path, features: Path, night: Path, towers: list[Path]) -> None:
    panel = Panel.of(features, 1000)
    old, new = (answers(towers[seed], night, panel) for seed in (1, 2))
    expected = np.mean([1 - len(a & b) / len(b) for a, b in zip(old, new, strict=True)])
    verdicts = judged(two(root, towers[2], towers[0]), two(root, towers[1], towers[0]), features, night)
    assert verdicts["churn"].measured == pytest.approx(expected)
    old, new = (answers(towers[seed], features, panel) for seed in (1, 2))
    assert np.mean([1 - len(a & b) / len(b) for a, b in zip(old, new, strict=True)]) != pytest.approx(expected)


def test_reach_and_probes_are_of_what_is_published(root: Path, features: Path, night: Path, towers: list[Path]) -> None:
    bundle = two(root, towers[1], towers[0])
    verdicts = judged(bundle, None, features, night)
    shown = set.union(*answers(towers[1], night, Panel.of(features, 1000)))
    assert verdicts["reachable items"].detail.startswith(f"{len(shown)} of {ITEMS} items")
    # All users have events by now: the cold ones of the backtest are known.
    assert "by popularity" not in verdicts["reachable items"].detail
    broken = root / "broken-probes"
    other = write_bundle(root / "other-probes", items=ITEMS, dim=DIM, seed=7, users=False)
    shutil.copytree(towers[1], broken)
    shutil.rmtree(broken / "probes")
    shutil.copytree(other / "probes", broken / "probes")
    (broken / "manifest.json").unlink()
    with write_artifact(root / "sealed", kind="bundle") as draft:
        shutil.copytree(broken, draft.dir, dirs_exist_ok=True)
        draft.facts.update(read_manifest(towers[1]).facts)
    inside = judged(two(root, towers[1], root / "sealed"), None, features, night)
    outside = judged(two(root, root / "sealed", towers[1]), None, features, night)
    assert (inside["golden probes"].outcome, outside["golden probes"].outcome) == ("passed", "failed")


def test_the_night_before_is_compared_though_its_published_towers_have_seen_the_window(
    root: Path, features: Path, night: Path, towers: list[Path]
) -> None:
    before = two(root, towers[1], towers[0])
    assert judged(before, before, features, night)["recall against live"].outcome == "passed"
    earlier = {name: None if moment is None else moment - DAY_US for name, moment in WINDOW.items()}
    verdicts = judged(before, two(root, towers[1], towers[0], earlier), features, night)
    assert verdicts["recall against live"].outcome == "passed"


@pytest.mark.parametrize("window", [WHOLE, LATER])
def test_towers_that_have_seen_the_held_out_events_are_not_compared(
    root: Path, features: Path, night: Path, towers: list[Path], window: dict[str, Any]
) -> None:
    """A version without a backtest that was trained on everything; one of a night that lies after this one."""
    if window is WHOLE:
        live = Bundle.open(nest(towers[0], None, root / "whole", window=WHOLE))
    else:
        live = two(root, towers[1], towers[0], LATER)
    verdict = judged(two(root, towers[1], towers[0]), live, features, night)["recall against live"]
    until = "2025-03-02" if window is WHOLE else "2025-02-24"
    assert (verdict.outcome, verdict.measured) == ("skipped", None)
    assert verdict.detail == (
        f"the live version has learned from events until {until}, and tonight's held-out events begin at 2025-02-23"
    )


def test_a_version_of_absolute_dates_is_compared_if_it_learned_from_earlier_events(
    root: Path, features: Path, night: Path, towers: list[Path]
) -> None:
    """Its schema's date is that of the window: the first rolling night has something to be compared with."""
    live = Bundle.open(towers[0])
    verdicts = judged(two(root, towers[1], towers[0]), live, features, night)
    assert verdicts["recall against live"].measured == 0.0


def test_agreement_is_the_share_of_best_items_of_both_towers(
    root: Path, features: Path, night: Path, towers: list[Path]
) -> None:
    """A tenth of the catalogue, 40 items, by vectors times items."""
    bundle = two(root, towers[1], towers[0])
    records = UserRecords.open(night).records(Panel.of(features, 1000).users, schema(), bundle.vocabulary.item_ids)
    best = []
    for path in (towers[1], towers[0]):
        retriever, items = Retriever.open(path), np.load(path / "vectors.npy")
        vectors = np.stack([retriever.embed(record) for record in records])
        best.append(np.argsort(-(vectors @ items.T), axis=1, kind="stable")[:, :40])
    pairs = list(zip(*best, strict=True))
    same = np.mean([len(set(a.tolist()) & set(b.tolist())) / 40 for a, b in pairs])
    other = np.mean([len(set(pairs[i - 1][0].tolist()) & set(pairs[i][1].tolist())) / 40 for i in range(len(pairs))])
    expected = (same - other) / (1 - other)
    failed = judged(bundle, None, features, night, agreement=expected + 0.01)["agreement"]
    assert failed.measured == pytest.approx(expected)
    assert (failed.outcome, failed.stage) == ("failed", "train")
    assert judged(two(root, towers[0], towers[0]), None, features, night)["agreement"].measured == 1.0
    assert "agreement" not in judged(bundle, None, features, night, agreement=None)
    assert "agreement" not in judged(Bundle.open(towers[0]), None, features, None)


def test_a_night_is_published_with_both(root: Path, features: Path, night: Path, towers: list[Path]) -> None:
    registry = Registry(root / "registry")
    gates = GatesSettings(agreement=None)
    for published in (towers[1], towers[2]):
        publishing.run(two(root, published, towers[0]).dir, features, registry.url, gates, night=night)
    live = registry.open().bundle
    assert live.backtest is not None
    outcomes = {fact["gate"]: fact["outcome"] for fact in live.manifest.facts["gates"]}
    assert outcomes["recall against live"] == "passed"


@pytest.mark.parametrize("failure", ["untrained", "collapsed", "items mixed up"])
def test_a_training_on_all_events_that_failed_fails_the_gate(
    root: Path, features: Path, night: Path, towers: list[Path], failure: str
) -> None:
    """The backtest's towers were measured and are good; only agreement tells that the published ones are not."""
    vectors = np.load(towers[0] / "vectors.npy")
    rng = np.random.default_rng(0)
    broken = {
        "untrained": rng.normal(scale=0.1, size=vectors.shape),
        # A long common part: everybody gets the same items, here those that many users like.
        "collapsed": 0.01 * vectors + np.outer(vectors @ vectors.mean(axis=0), np.ones(DIM)),
        "items mixed up": vectors[rng.permutation(ITEMS)],
    }[failure]
    path = root / failure
    with write_artifact(path, kind="bundle") as draft:
        shutil.copytree(towers[0], draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        np.save(draft.dir / "vectors.npy", broken.astype(np.float32))
    bundle = two(root, path, towers[0])
    verdicts = judged(bundle, None, features, night)
    assert verdicts["agreement"].outcome == "failed"
    assert verdicts["agreement"].measured is not None
    assert abs(verdicts["agreement"].measured) < 0.1


def test_a_training_that_went_well_passes_though_its_vectors_differ(
    root: Path, features: Path, night: Path, towers: list[Path]
) -> None:
    vectors = np.load(towers[0] / "vectors.npy")
    with write_artifact(root / "healthy", kind="bundle") as draft:
        shutil.copytree(towers[0], draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        noise = np.random.default_rng(0).normal(scale=0.1, size=vectors.shape)
        np.save(draft.dir / "vectors.npy", (vectors + noise).astype(np.float32))
    verdict = judged(two(root, root / "healthy", towers[0]), None, features, night)["agreement"]
    assert verdict.outcome == "passed"
    assert verdict.measured is not None
    assert 0.4 < verdict.measured < 0.9


def test_without_held_out_events_everything_else_is_judged(root: Path, night: Path, towers: list[Path]) -> None:
    """The night's own features hold nothing out."""
    live, bundle = (Bundle.open(towers[seed]) for seed in (0, 1))
    verdicts = judged(bundle, live, night, None)
    for gate in ("recall against live", "recall by category"):
        assert (verdicts[gate].outcome, verdicts[gate].measured) == ("skipped", None)
    assert verdicts["churn"].measured is not None
