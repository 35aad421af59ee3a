"""Nights that roll: a backtest that is measured, and towers of all events that are published."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from index.registry.bundle import Bundle
from index.registry.registry import Registry
from pipelines.contracts.errors import ConfigError
from pipelines.contracts.manifest import read_manifest
from pipelines.contracts.vocabulary import Vocabulary
from pipelines.sequences.reader import Sequences
from tests.recorded import Recorded
from tests.towerline.jobs.rolling_world import TEST_DAYS, VALID_DAYS, Shop, microseconds
from towerline.jobs import refresh
from towerline.project import Project
from towers.training.warm_start import epochs_found, nights_of

FIRST = datetime.date(2025, 2, 20)
DAY = datetime.timedelta(days=1)
STAGES = ["features", "model", "embeddings", "bundle"]
BOTH = [*STAGES, *(f"night/{name}" for name in STAGES)]


def outcomes(done: refresh.Refreshed) -> dict[str, str]:
    return {stage.name: stage.outcome for stage in done.stages}


def frequency(features: Path) -> dict[int, int]:
    vocabulary = Vocabulary.load(features / "vocabulary")
    counts = dict(zip(vocabulary.item_ids.to_pylist(), vocabulary.item_frequency.tolist(), strict=True))
    return {item: count for item, count in counts.items() if count}


def counted(shop: Shop, day: datetime.date) -> dict[int, int]:
    """Events of each item before a day, from the table."""
    return dict(Counter(shop.before(day)["item_id"].to_pylist()))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    made = Shop.write(tmp_path_factory.mktemp("shop"))
    made.reach(FIRST)
    return made


@pytest.fixture(scope="module")
def first(shop: Shop) -> refresh.Refreshed:
    """The first night."""
    return shop.project(shop.root / "run").refresh()


def live(shop: Shop) -> Bundle:
    return Registry(shop.root / "run" / "registry").open().bundle


def test_both_chains_run_and_the_second_time_neither(shop: Shop, first: refresh.Refreshed) -> None:
    assert outcomes(first) == dict.fromkeys(BOTH, "ran")
    assert first.published
    again = shop.project(shop.root / "run").refresh()
    assert outcomes(again) == dict.fromkeys(BOTH, "reused")
    assert (again.published, again.version) == (False, first.version)


def test_the_backtest_ends_before_the_held_out_days_and_the_night_has_all(shop: Shop, first: refresh.Refreshed) -> None:
    """Counts by hand, from the table of events."""
    work = shop.root / "run"
    valid_from = FIRST - (VALID_DAYS + TEST_DAYS) * DAY
    assert frequency(work / "features") == counted(shop, valid_from)
    assert frequency(work / "night" / "features") == counted(shop, FIRST)
    splits = {name: Sequences.open(work / name).events.splits for name in ("features", "night/features")}
    assert set(splits["night/features"].tolist()) == {0}
    assert len(splits["night/features"]) == len(splits["features"]) == len(shop.before(FIRST))
    held_out = len(shop.before(FIRST)) - len(shop.before(FIRST - TEST_DAYS * DAY))
    assert int((splits["features"] == 2).sum()) == held_out


def test_what_is_published_holds_both_and_says_which_figure_is_of_which(shop: Shop, first: refresh.Refreshed) -> None:
    bundle, work = live(shop), shop.root / "run"
    assert bundle.backtest is not None
    models = {name: read_manifest(work / name).fingerprint for name in ("model", "night/model")}
    assert bundle.manifest.inputs["model"] == models["night/model"]
    assert bundle.measured.manifest.inputs["model"] == models["model"]
    by = bundle.manifest.facts["measured_by"]
    assert by["held-out events"]["model"] == models["model"]
    assert by["held-out events"]["window"]["test_from"] == microseconds(FIRST - TEST_DAYS * DAY)
    assert by["everything else"]["model"] == models["night/model"]
    assert by["everything else"]["window"]["test_from"] == microseconds(FIRST)
    assert json.loads((work / "refresh.json").read_text())["measured_by"] == by == first.measured_by
    # A backtest is asked for figures only: exact search, and no time spent on a tree.
    assert bundle.measured.spec.engine == "exact"
    assert bundle.measured.spec.points == 1


def test_the_night_learns_for_as_many_epochs_as_the_backtest_found(shop: Shop, first: refresh.Refreshed) -> None:
    work = shop.root / "run"
    found = epochs_found(read_manifest(work / "model"))
    assert read_manifest(work / "night" / "model").facts["best_epoch"] == found
    curves = json.loads((work / "night" / "model" / "training.json").read_text())["epochs"]
    assert [(epoch["phase"], epoch["valid"]) for epoch in curves] == [("refit", None)] * found


@pytest.mark.slow
def test_the_verbs_one_after_the_other_make_what_a_refresh_makes(
    shop: Shop, first: refresh.Refreshed, tmp_path: Path
) -> None:
    project = shop.project(tmp_path / "run")
    for verb in (project.features, project.train, project.embed, project.build):
        manifest = verb()
        assert manifest.parent.parent.name == "night"
    assert project.publish().version is not None
    after = project.refresh()
    assert outcomes(after) == dict.fromkeys(BOTH, "reused")
    assert not after.published
    mine, theirs = Registry(project.config.registry).open().bundle, live(shop)
    np.testing.assert_array_equal(mine.vectors, theirs.vectors)
    np.testing.assert_array_equal(mine.measured.vectors, theirs.measured.vectors)


def test_the_day_of_the_end_reproduces_a_past_night(shop: Shop, first: refresh.Refreshed, tmp_path: Path) -> None:
    """More days are in the table, and are not used; without the day the windows end after the newest event."""
    later = Shop(tmp_path, shop.all_events)
    for file in ("items.parquet", "users.parquet", "marketplace.toml"):
        (tmp_path / file).write_bytes((shop.root / file).read_bytes())
    (tmp_path / "events").mkdir()
    later.reach(FIRST)
    later.reach(FIRST + 3 * DAY)
    project = later.project(tmp_path / "run")
    moment = datetime.datetime.combine(FIRST, datetime.time(), datetime.UTC)
    past = project.refresh(as_of=moment)
    assert past.published
    bundle = Registry(project.config.registry).open().bundle
    np.testing.assert_array_equal(bundle.vectors, live(shop).vectors)
    np.testing.assert_array_equal(bundle.measured.vectors, live(shop).measured.vectors)
    assert outcomes(project.refresh(as_of=moment)) == dict.fromkeys(BOTH, "reused")
    now = project.refresh()
    assert outcomes(now) == dict.fromkeys(BOTH, "ran")
    assert frequency(tmp_path / "run" / "night" / "features") == counted(shop, FIRST + 3 * DAY)


def test_a_day_of_the_end_without_rolling_windows_is_refused(shop: Shop, tmp_path: Path) -> None:
    toml = (shop.root / "marketplace.toml").read_text()
    fixed = toml.replace(
        f"valid_days = {VALID_DAYS}\ntest_days = {TEST_DAYS}", "valid_from = 2025-02-05\ntest_from = 2025-02-12"
    )
    (shop.root / "fixed.toml").write_text(fixed)
    from towerline.project import open_project

    with pytest.raises(ConfigError, match=r"as-of.*\[split\]"):
        open_project(shop.root / "fixed.toml", work=tmp_path / "run").refresh(as_of=datetime.datetime(2025, 2, 20))


def test_a_stopped_night_goes_on_from_the_last_good_stage(
    shop: Shop, first: refresh.Refreshed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from towerline.jobs.stages.night import _ROLLING_STAGES
    from towerline.jobs.stages.stage import Stage, StageCall

    work = tmp_path / "run"
    ran: list[str] = []
    stopped: list[str] = []

    def once(stage: Stage, run: Any) -> Any:
        def wrapped(self: Stage, call: StageCall) -> None:
            if self.folder not in stopped:
                stopped.append(self.folder)
                raise KeyboardInterrupt
            ran.append(self.folder)
            run(self, call)

        return wrapped

    for kind in {type(stage) for stage in _ROLLING_STAGES}:
        monkeypatch.setattr(kind, "run", once(_ROLLING_STAGES[0], kind.run))
    for _ in BOTH:
        with pytest.raises(KeyboardInterrupt):
            shop.project(work).refresh()
    assert shop.project(work).refresh().published
    assert stopped == BOTH
    assert ran == BOTH


def test_warm_nights_go_on_each_from_its_own(tmp_path: Path) -> None:
    shop = Shop.write(tmp_path)
    said = Recorded()
    warm = ("refresh.warm_nights=2", "refresh.warm_epochs=1")
    models: list[dict[str, str]] = []
    verdicts: list[str] = []
    for number in range(4):
        shop.reach(FIRST + number * DAY)
        done = shop.project(tmp_path / "run", *warm, progress=said).refresh()
        assert done.published
        places = {name: tmp_path / "run" / name for name in ("model", "night/model")}
        manifests = {name: read_manifest(path) for name, path in places.items()}
        assert {nights_of(manifest) for manifest in manifests.values()} == {(0, 1, 2, 0)[number]}
        assert len({epochs_found(manifest) for manifest in manifests.values()}) == 1
        models.append({name: manifest.fingerprint for name, manifest in manifests.items()})
        verdicts += [f"{one.gate}: {one.outcome}" for one in done.verdicts if one.gate == "recall against live"]
    lines = [line for line in said.lines if line.startswith("train:")]
    assert [line.split(",")[0] for line in lines] == [
        "train: in full",
        "train: all events",
        *["train: goes on from the live model"] * 4,
        "train: in full",
        "train: all events",
    ]
    # A night is compared with the last night's backtest, whose towers end before tonight's held-out days begin.
    assert verdicts == ["recall against live: skipped", *["recall against live: passed"] * 3]


@pytest.mark.slow
def test_a_night_whose_own_towers_are_damaged_trains_in_full_with_its_backtest(tmp_path: Path) -> None:
    shop = Shop.write(tmp_path)
    said = Recorded()
    shop.reach(FIRST)
    shop.project(tmp_path / "run", "refresh.warm_nights=5").refresh()
    (tmp_path / "run" / "night" / "model" / "towers.json").write_text("{}")
    shop.reach(FIRST + DAY)
    shop.project(tmp_path / "run", "refresh.warm_nights=5", progress=said).refresh()
    lines = [line for line in said.lines if line.startswith("train:")]
    assert len(lines) == 2
    assert lines[0].startswith("train: in full, because")
    assert "night/model/towers.json" in lines[0]
    assert nights_of(read_manifest(tmp_path / "run" / "model")) == 0


def test_changes_rollbacks_values_and_forgetting_go_together_with_two_warm_chains(tmp_path: Path) -> None:
    """An ad that is paused stays so through nights and a rollback; a forgotten user is in neither model's features."""
    shop = Shop.write(tmp_path)
    said = Recorded()
    settings = ("refresh.warm_nights=3", 'index.value="price"')

    def project() -> Project:
        return shop.project(tmp_path / "run", *settings, progress=said)

    def found() -> set[int]:
        with project().retriever() as retriever:
            return set(retriever.retrieve_by_id("u1", 200).item_ids.tolist())

    shop.reach(FIRST)
    first = project().refresh()
    paused, removed = sorted(found())[:2]
    project().apply_delta(pa.table({"item_id": [paused], "change": ["pause"]}))
    project().apply_delta(pa.table({"item_id": [removed], "change": ["remove"]}))
    assert not {paused, removed} & found()

    # The tables were read after both changes and have the removed ad, so it is back; a pause is not theirs to end.
    shop.reach(FIRST + DAY)
    second = project().refresh()
    assert second.published
    bundle = live_of(tmp_path)
    assert (bundle.manifest.facts["delta_sequence"], bundle.measured.manifest.facts["delta_sequence"]) == (2, 2)
    assert {paused, removed} & found() == {removed}
    assert [line for line in said.lines if line.startswith("train: goes on")] != []

    assert project().rollback() == first.version
    assert not {paused, removed} & found()

    (tmp_path / "forget.txt").write_text("u3\n")
    shop.reach(FIRST + 2 * DAY)
    said.lines.clear()
    third = project().refresh(forget=tmp_path / "forget.txt")
    assert third.published
    assert next(line for line in said.lines if line.startswith("train:")).startswith("train: in full, because")
    for features in ("features", "night/features"):
        assert "u3" not in Sequences.open(tmp_path / "run" / features).user_ids.to_pylist()
    bundle = live_of(tmp_path)
    for one in (bundle, bundle.measured):
        assert one.users is not None
        assert "u3" not in one.users["user_id"].to_pylist()
    assert {paused, removed} & found() == {removed}
    with project().retriever() as retriever:
        prices = [
            np.log([retriever.bundle.items["price"].to_pylist()[row] for row in rows]).mean()
            for rows in (
                bundle.vocabulary.item_rows(pa.array(retriever.retrieve_by_id("u1", 20, value_weight=weight).item_ids))
                for weight in (0.0, 1.0)
            )
        ]
    assert prices[0] < prices[1]


def live_of(root: Path) -> Bundle:
    return Registry(root / "run" / "registry").open().bundle
