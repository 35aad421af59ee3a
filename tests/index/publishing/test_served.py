"""Laws of the gates: each figure is what a loop over ``Retriever.retrieve`` gives for the same users."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.inference.user_records import UserRecords
from index.publishing.gates import judge
from index.publishing.panel import Panel
from index.publishing.verdict import Verdict
from index.registry.bundle import Bundle
from index.retrieval.retriever import Retriever
from index.settings import GatesSettings, RetrieverSettings
from pipelines.contracts.manifest import write_artifact
from pipelines.contracts.schema import SPLITS, parse_schema
from tests.index.serving_bundles import CATEGORIES, SCHEMA, write_bundle
from tests.index.stage_artifacts import schema, write_features

ITEMS, USERS, COLD, DIM, K = 400, 150, 30, 16, 100
# How requests are answered: without blending, with one source, with two. Histories have up to 12 items.
BLENDS = {
    "towers": RetrieverSettings(),
    "own .02": RetrieverSettings(own_items_share=0.02),
    "own .12": RetrieverSettings(own_items_share=0.12),
    "new .3": RetrieverSettings(new_items_share=0.3),
    "both": RetrieverSettings(own_items_share=0.3, new_items_share=0.2),
}
ON = GatesSettings(ann_recall_at_100=0.01)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def features(root: Path) -> Path:
    write_features(root / "features", items=ITEMS, users=USERS, dim=DIM, seed=0, cold=COLD)
    return root / "features"


@pytest.fixture(scope="module")
def bundles(root: Path) -> dict[tuple[str, bool], Bundle]:
    """By blend, searched by a poor tree or exactly."""
    found = {}
    for (name, settings), tree in itertools.product(BLENDS.items(), (False, True)):
        path = root / f"{name}-{tree}"
        write_bundle(path, items=ITEMS, dim=DIM, leaves=12 if tree else None, retriever=settings, new=60, users=False)
        found[name, tree] = Bundle.open(path)
    return found


def asked(bundle: Bundle, features: Path) -> tuple[list[dict[str, Any]], list[Any]]:
    """Records of the panel's users, and the answers to each."""
    panel = Panel.of(features, ON.panel)
    records = UserRecords.open(features).records(panel.users, schema(), bundle.vocabulary.item_ids)
    retriever = Retriever.open(bundle.dir)
    return records, [retriever.retrieve(record, K) for record in records]


def judged(bundle: Bundle, live: Bundle | None, features: Path, settings: GatesSettings = ON) -> dict[str, Verdict]:
    return {verdict.gate: verdict for verdict in judge(bundle, live, features, settings)}


def truth_of(features: Path) -> list[set[int]]:
    """Ids of each panel user's held-out items, from the events one by one."""
    events = UserRecords.open(features).events
    owners, splits = np.asarray(events.owners), np.asarray(events.splits)
    bought: dict[int, set[int]] = {}
    for owner, row, split in zip(owners, events.rows, splits, strict=True):
        if split == SPLITS.index("test"):
            bought.setdefault(int(owner), set()).add(1000 + 3 * int(row))
    return [bought.get(int(user), set()) for user in Panel.of(features, ON.panel).users]


def test_the_panel_has_cold_users_as_often_as_the_held_out_users(features: Path) -> None:
    panel = Panel.of(features, 1000)
    assert len(panel.users) == len(set(panel.users.tolist())) == USERS
    assert set(range(COLD)) <= set(panel.users.tolist())
    few = Panel.of(features, 50)
    held_out = {user for user, bought in zip(panel.users.tolist(), truth_of(features), strict=True) if bought}
    assert len(few.users) == 50
    assert set(few.users.tolist()) <= held_out
    assert few.users.tolist() == panel.users.tolist()[:50]
    assert 0 < sum(user < COLD for user in few.users) < 50


def test_at_least_half_of_the_panel_has_a_history(root: Path) -> None:
    """All users with held-out events are new: others show what the search finds."""
    path = root / "all-new"
    write_features(path, items=ITEMS, users=40, dim=DIM, seed=1, cold=40)
    write_features(root / "some-new", items=ITEMS, users=60, dim=DIM, seed=1, cold=57)
    panel = Panel.of(root / "some-new", 10)
    assert set(panel.users.tolist()) >= {57, 58, 59}
    assert len(Panel.of(path, 10).users) == 10


@pytest.mark.parametrize("tree", [False, True])
@pytest.mark.parametrize("blend", BLENDS)
def test_reach_is_that_of_the_answers_against_those_by_exact_search(
    bundles: dict[tuple[str, bool], Bundle], features: Path, blend: str, tree: bool
) -> None:
    verdicts = judged(bundles[blend, tree], None, features)
    _, answers = asked(bundles[blend, tree], features)
    _, exact = asked(bundles[blend, False], features)
    served, best = ({int(row) for answer in one for row in answer.rows} for one in (answers, exact))
    assert verdicts["reachable items"].measured == pytest.approx(len(served) / len(best))
    shops = bundles[blend, tree].items["advertiser_id"].to_pylist()
    reached, could = ({shops[row] for row in one} for one in (served, best))
    assert verdicts["reachable advertisers"].measured == pytest.approx(len(reached) / len(could))
    by_popularity = sum(answer.cold_start == "popularity" for answer in answers)
    by_profile = sum(answer.cold_start == "profile" for answer in answers)
    assert by_popularity == COLD // 2
    words = f"150 users ({by_profile} by profile, {by_popularity} by popularity)"
    assert words in verdicts["reachable items"].detail


@pytest.mark.parametrize("blend", BLENDS)
def test_ann_recall_is_of_the_search_for_those_whom_a_search_answers(
    bundles: dict[tuple[str, bool], Bundle], features: Path, blend: str
) -> None:
    bundle = bundles[blend, True]
    records, answers = asked(bundle, features)
    retriever = Retriever.open(bundle.dir)
    shares = []
    for record, answer in zip(records, answers, strict=True):
        if answer.cold_start == "popularity":
            continue
        vector = retriever.embed(record)
        best = np.argsort(-(np.asarray(bundle.vectors) @ vector), kind="stable")[:K]
        shares.append(np.isin(best, bundle.searcher.search(vector, K).rows).mean())
    verdict = judged(bundle, None, features)["ann recall"]
    assert verdict.measured == pytest.approx(np.mean(shares))
    assert 0.5 < np.mean(shares) < 1.0
    assert f"{len(shares)} users whom a search answers" in verdict.detail


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(["towers", "own .02", "own .12", "both"], 2)))
def test_churn_and_recall_are_those_of_the_answers(
    bundles: dict[tuple[str, bool], Bundle], features: Path, before: str, after: str
) -> None:
    live, new = bundles[before, False], bundles[after, True]
    verdicts = judged(new, live, features, GatesSettings(recall_drop=0.5))
    (_, old), (_, fresh) = asked(live, features), asked(new, features)
    pairs = [(set(a.item_ids.tolist()), set(b.item_ids.tolist())) for a, b in zip(old, fresh, strict=True)]
    assert verdicts["churn"].measured == pytest.approx(np.mean([1 - len(a & b) / len(b) for a, b in pairs]))
    assert verdicts["churn"].measured > 0.0
    recalls = [
        (len(a & bought) / min(K, len(bought)), len(b & bought) / min(K, len(bought)))
        for (a, b), bought in zip(pairs, truth_of(features), strict=True)
        if bought
    ]
    first, second = np.mean(recalls, axis=0)
    assert verdicts["recall against live"].recall == pytest.approx(second)
    assert verdicts["recall against live"].measured == pytest.approx(second / first - 1)
    assert f"recall@100 on held-out events {second:.4f} against {first:.4f}" in verdicts["recall against live"].detail
    assert f"{len(recalls)} users" in verdicts["recall against live"].detail


def test_a_share_of_own_items_that_grows_is_seen(bundles: dict[tuple[str, bool], Bundle], features: Path) -> None:
    """The towers and their search are the same; only [retriever] changed."""
    same = judged(bundles["own .02", True], bundles["own .02", True], features)
    assert (same["churn"].measured, same["recall against live"].measured) == (0.0, 0.0)
    grown = judged(bundles["own .12", True], bundles["own .02", True], features)
    assert grown["churn"].measured is not None
    assert grown["churn"].measured > 0.0


def test_the_latency_is_of_the_whole_call_with_the_search_of_the_manifest_next_to_it(
    bundles: dict[tuple[str, bool], Bundle], features: Path, root: Path
) -> None:
    verdict = judged(bundles["both", True], None, features)["latency"]
    assert verdict.detail.startswith("µs, p99 of one call; p50 ")
    assert "150 users timed; not judged" in verdict.detail
    # What build measured is in the bundle, and is not measured again another way.
    figures = {"tree": None, "ann_recall_at_100": 1.0, "p50_us": 41.0, "p99_us": 77.0, "build_seconds": 0, "queries": 9}
    spec = {"engine": "exact", "target": 0.99, "chosen": figures, "check": figures, "frontier": [figures], "points": 3}
    with write_artifact(root / "measured", kind="bundle", inputs={"spec": "measured"}) as draft:
        shutil.copytree(
            bundles["both", True].dir, draft.dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json")
        )
        (draft.dir / "searcher.json").write_text(json.dumps(spec))
    found = judged(Bundle.open(root / "measured"), None, features)["latency"]
    assert "150 users timed; the search alone, as build measured it: p50 41, p99 77; exact search is s" in found.detail
    assert found.measured is not None
    assert found.measured > 41.0


def test_versions_of_other_id_types_are_compared_item_by_item(
    bundles: dict[tuple[str, bool], Bundle], features: Path, root: Path
) -> None:
    """The live version's ids are texts that are no numbers: nothing is in both catalogues, and it says so."""
    path = write_bundle(root / "texts", items=ITEMS, dim=DIM, text_ids=True, users=False)
    verdicts = judged(bundles["towers", True], Bundle.open(path), features)
    assert verdicts["churn"].outcome == "skipped"
    assert verdicts["churn"].detail == "the two versions have no item in common"
    assert verdicts["recall against live"].outcome == "skipped"


def with_schema(bundle: Path, out: Path, **changes: Any) -> Bundle:
    """The bundle with another schema, under which its towers still work."""
    with write_artifact(out, kind="bundle") as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        changed = parse_schema({**SCHEMA, **changes}, "test")
        (draft.dir / "schema.json").write_text(changed.model_dump_json())
    return Bundle.open(out)


def user_features(**renamed: str) -> dict[str, Any]:
    user = [{**one, "column": renamed.get(one["name"], one["name"])} for one in SCHEMA["features"]["user"]]
    return {**SCHEMA["features"], "user": user}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"features": user_features(country="land")}, "it reads land, which the users of the features do not have"),
        ({"actions": {"click": 1.0}}, "history_action: expected one of click for each event, got 'purchase'"),
    ],
    ids=["a column that is gone", "an action it does not know"],
)
def test_a_live_version_that_cannot_read_the_users_is_not_compared(
    bundles: dict[tuple[str, bool], Bundle], features: Path, tmp_path: Path, changes: dict[str, Any], why: str
) -> None:
    live = with_schema(bundles["towers", False].dir, tmp_path / "live", **changes)
    verdicts = judged(bundles["towers", False], live, features)
    for gate in ("churn", "recall against live"):
        assert verdicts[gate].outcome == "skipped"
        assert verdicts[gate].detail.startswith("the live version cannot read these users: ")
        assert why in verdicts[gate].detail
    assert [one.gate for one in verdicts.values() if one.outcome == "failed"] == []


def test_a_live_version_is_asked_with_the_columns_and_the_history_that_it_reads(
    bundles: dict[tuple[str, bool], Bundle], features: Path, tmp_path: Path
) -> None:
    """Tonight's users have a column that it does not know, and its histories are shorter."""
    short = with_schema(bundles["towers", False].dir, tmp_path / "short", history={"max_length": 3})
    renamed = with_schema(bundles["towers", False].dir, tmp_path / "new", features=user_features(country="land"))
    panel = Panel.of(features, 1000)
    richer = dataclasses.replace(panel, schema=renamed.schema)
    richer.known.__dict__["profiles"] = richer.known.profiles.append_column("land", richer.known.profiles["country"])
    assert {"land"} == {key for one in richer.records(renamed) for key in one} - {
        key for one in richer.records(short) for key in one
    }
    assert max(len(one["history"]) for one in richer.records(short)) == 3
    assert max(len(one["history"]) for one in richer.records(renamed)) == 12


def without_a_category(bundle: Path, out: Path, category: str) -> Bundle:
    """The bundle with the items of a category moved to the end of every ranking."""
    items = pq.read_table(bundle / "items.parquet")
    with write_artifact(out, kind="bundle") as draft:
        shutil.copytree(bundle, draft.dir, dirs_exist_ok=True)
        (draft.dir / "manifest.json").unlink()
        vectors = np.load(bundle / "vectors.npy")
        vectors[np.array(items["category"].to_pylist()) == category] = 0.0
        np.save(draft.dir / "vectors.npy", vectors)
    return Bundle.open(out)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_that_is_no_longer_found_fails_though_the_total_may_not(
    bundles: dict[tuple[str, bool], Bundle], features: Path, tmp_path: Path, category: str
) -> None:
    """The figure is that of the answers, category by category, over the users who bought in it."""
    live = bundles["towers", False]
    lost = without_a_category(live.dir, tmp_path / "lost", category)
    verdict = judged(lost, live, features, GatesSettings(recall_drop=0.5))["recall by category"]
    (_, old), (_, new) = asked(live, features), asked(lost, features)
    of_item = dict(zip(live.items["item_id"].to_pylist(), live.items["category"].to_pylist(), strict=True))
    recalls = []
    for before, after, bought in zip(old, new, truth_of(features), strict=True):
        wanted = {item for item in bought if of_item[item] == category}
        if wanted:
            recalls.append([len(wanted & set(one.item_ids.tolist())) / len(wanted) for one in (before, after)])
    first, second = np.mean(recalls, axis=0)
    assert (verdict.outcome, verdict.stage) == ("failed", "train")
    assert verdict.measured == pytest.approx(second / first - 1)
    assert f"category {category}: {second:.4f} against {first:.4f}, {len(recalls)} users" in verdict.detail


def test_no_category_has_lost_anything_against_itself(bundles: dict[tuple[str, bool], Bundle], features: Path) -> None:
    verdict = judged(bundles["both", True], bundles["both", True], features)["recall by category"]
    assert (verdict.outcome, verdict.measured) == ("passed", 0.0)
    assert "no category has certainly lost recall, 5 values tested together" in verdict.detail
