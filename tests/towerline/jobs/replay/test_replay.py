"""A replay: nights see the days before them, figures equal those of loops over raw events, stops lose nothing."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from index.registry.registry import Registry
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from tests.recorded import Recorded
from tests.towerline.jobs.replay import oracle, world
from tests.towerline.jobs.replay.world import EMPTY, FAILED, FIRST, NIGHTS, REFUSED, Nights, Stopped, config, date
from towerline.commands import cli
from towerline.jobs.replay import job, night
from towerline.jobs.replay.page import headline, replay_page
from towerline.jobs.replay.plan import Plan
from towerline.jobs.replay.rows import NightRow
from towerline.jobs.replay.summary import Replay
from towerline.project import Project

EVENTS = world.events()


def plan_of(folder: Path, nights: int = NIGHTS, **sections: Any) -> Plan:
    return Plan(config(folder, **sections), FIRST, nights)


def replayed(plan: Plan, nights: Nights, **options: Any) -> Replay:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night.refresh, "run", nights.run)
        return Replay.model_validate_json(job.run(plan, **options).read_bytes())


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, stored: Path) -> tuple[Replay, Nights, Path]:
    """All nights in one run: one refused, one failed, one day without events."""
    folder = tmp_path_factory.mktemp("whole")
    world.write_tables(folder, EVENTS)
    nights = Nights(stored)
    return replayed(plan_of(folder), nights, keep_going=True), nights, folder


def live_after(upto: int) -> int:
    """The night whose bundle is live after a night."""
    return max(one for one in range(upto + 1) if one not in (REFUSED, FAILED))


def test_each_night_sees_the_days_before_it_and_no_later_event(whole: tuple[Replay, Nights, Path]) -> None:
    _, nights, _ = whole
    for one, last in nights.seen.items():
        before = [event.time for event in EVENTS if event.time < world.midnight(one)]
        assert last == max(before)


@pytest.mark.parametrize("arm", ["fresh", "frozen", "weekly", "backtest"])
def test_recall_is_that_of_loops_over_the_raw_events(whole: tuple[Replay, Nights, Path], arm: str) -> None:
    replay, nights, folder = whole
    user_days: list[dict[str, float | None]] = []
    for row in replay.nights:
        if row.night == EMPTY:
            continue
        fresh = live_after(row.night)
        built = {"frozen": 0, "weekly": live_after(row.night // 7 * 7)}.get(arm, fresh)
        bundle = nights.bundles[built] / "backtest" if arm == "backtest" else nights.bundles[built]
        expected = oracle.recalls(EVENTS, row.night, bundle)
        table = pq.read_table(folder / "run" / "replay" / "users" / f"{row.date}.parquet")
        assert table["user_id"].to_pylist() == list(expected)
        for part in ("all", "novel", "new"):
            wanted = [np.nan if one[part] is None else one[part] for one in expected.values()]
            np.testing.assert_allclose(np.asarray(table[f"{arm}_{part}"]), wanted, err_msg=f"{row.date} {part}")
            mean = row.measured[arm][part].recall
            assert mean == pytest.approx(np.nanmean(wanted)) if not np.isnan(wanted).all() else mean is None
        user_days += expected.values()
    overall = replay.recall[arm]["all"].recall
    assert overall == pytest.approx(np.mean([one["all"] for one in user_days]))


def test_churn_is_the_share_that_the_version_before_does_not_show(whole: tuple[Replay, Nights, Path]) -> None:
    replay, nights, _ = whole
    row = replay.nights[2]
    old, new = (oracle.answers(EVENTS, 2, nights.bundles[one]) for one in (1, 2))
    shares = [len(set(new[user]) - set(old[user])) / len(new[user]) for user in new]
    assert row.churn == pytest.approx(np.mean(shares))
    assert replay.nights[0].churn is None
    assert replay.nights[FAILED].churn == 0.0


def test_a_refused_night_keeps_the_version_and_goes_on(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, folder = whole
    row, before = replay.nights[REFUSED], replay.nights[REFUSED - 1]
    assert (row.outcome, row.version) == ("refused", before.version)
    assert "at fault: train" in (row.error or "")
    assert [verdict["outcome"] for verdict in row.verdicts] == ["passed", "failed"]
    expected = oracle.recalls(EVENTS, REFUSED, folder / "run" / "replay" / "run" / "night" / "bundle")
    refused = row.recall("refused")
    assert refused == pytest.approx(np.mean([one["all"] for one in expected.values()]))
    assert row.false_alarm is not None
    assert [one.false_alarm for one in replay.nights if one.night != REFUSED] == [None] * (NIGHTS - 1)
    assert replay.refused == 1
    gates = {record.gate: record for record in replay.gates}
    assert (gates["churn"].failed, gates["items"].passed) == (1, NIGHTS - 1)


def test_a_failed_night_is_a_row_where_the_replay_keeps_going(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, _ = whole
    row = replay.nights[FAILED]
    assert (row.outcome, row.version) == ("failed", replay.nights[FAILED - 1].version)
    assert row.error == "SchemaError: expected a disk with room, got a full one"
    assert row.stale_records
    assert row.recall("fresh") is not None
    assert replay.failed == 1


def test_a_day_without_events_has_no_users_and_the_next_night_goes_on(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, _ = whole
    row = replay.nights[EMPTY]
    assert (row.outcome, row.users, row.pairs, row.recall("fresh")) == ("published", 0, 0, None)
    assert replay.nights[EMPTY + 2].users > 0


def test_on_the_first_night_all_versions_are_the_same(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, _ = whole
    measured = replay.nights[0].measured
    assert measured["fresh"] == measured["frozen"] == measured["weekly"]
    weekly = replay.nights[7].measured
    assert weekly["weekly"] == weekly["fresh"] != weekly["frozen"]


def test_only_the_versions_that_are_compared_are_kept(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, folder = whole
    kept = {path.name for path in (folder / "run" / "replay" / "kept").iterdir()}
    assert kept == {replay.nights[one].version for one in (0, 7, NIGHTS - 1)}
    assert not (folder / "run" / "registry").exists()


def comparable(replay: Replay) -> list[dict[str, Any]]:
    """The rows without what depends on the clock."""
    rows = [row.model_dump() for row in replay.nights]
    for row in rows:
        for name in ("seconds", "asking_seconds", "stages", "version", "resumed"):
            del row[name]
    return rows


@pytest.mark.parametrize(
    "stops",
    [
        [(0, "begin"), (2, "publish"), (3, "features")],
        [(1, "features"), (1, "publish"), (2, "begin")],
        [(2, "asking"), (3, "asking")],
    ],
)
def test_a_replay_that_is_stopped_goes_on_with_the_same_result(
    whole: tuple[Replay, Nights, Path], stored: Path, tmp_path: Path, stops: list[tuple[int, str]]
) -> None:
    replay, _, _ = whole
    world.write_tables(tmp_path, EVENTS)
    nights, plan = Nights(stored), plan_of(tmp_path, 4)
    for stop in stops:
        with pytest.raises(Stopped), pytest.MonkeyPatch.context() as patch:
            if stop[1] == "asking":
                patch.setattr(job, "ask", _stopping(stop[0], plan))
            else:
                nights.stop_at = stop
            replayed(plan, nights)
    done = replayed(plan, nights)
    assert comparable(done) == comparable(replay)[:4]
    assert [row.night for row in done.nights if row.resumed] == sorted({one for one, _ in stops})
    assert len(Registry(plan.registry).version_names()) == 2
    again = len(nights.ran)
    assert comparable(replayed(plan, nights)) == comparable(done)
    assert len(nights.ran) == again


def _stopping(at: int, plan: Plan) -> Any:
    ask = job.ask

    def stopping(*arguments: Any, **named: Any) -> Any:
        state = json.loads((plan.folder / "state.json").read_text())
        if state["begun"] == at:
            raise Stopped
        return ask(*arguments, **named)

    return stopping


def test_a_failed_night_ends_the_replay_and_is_the_first_of_the_next_run(stored: Path, tmp_path: Path) -> None:
    world.write_tables(tmp_path, EVENTS)
    nights, plan = Nights(stored), plan_of(tmp_path, FAILED + 1)
    with pytest.raises(SchemaError, match="a full one"):
        replayed(plan, nights)
    nights.healthy = True
    nights.ran.clear()
    done = replayed(plan, nights)
    assert nights.ran == [FAILED]
    assert [row.outcome for row in done.nights] == ["published"] * 3 + ["refused"] + ["published"] * 2


def test_more_nights_go_on_and_other_settings_are_refused(stored: Path, tmp_path: Path) -> None:
    world.write_tables(tmp_path, EVENTS)
    nights = Nights(stored, healthy=True)
    replayed(plan_of(tmp_path, 1), nights)
    nights.ran.clear()
    assert len(replayed(plan_of(tmp_path, 2), nights).nights) == 2
    assert nights.ran == [1]
    state = (tmp_path / "run" / "replay" / "state.json").read_bytes()
    others = [
        (plan_of(tmp_path, 2, seed=5), "seed: 17 there, 5 now"),
        (Plan(config(tmp_path), FIRST + datetime.timedelta(days=1), 2), "from: '2025-03-10' there, '2025-03-11' now"),
        (plan_of(tmp_path, 2, refresh={"warm_nights": 3}), "refresh.warm_nights: 0 there, 3 now"),
    ]
    for plan, said in others:
        with pytest.raises(ConfigError, match=f"2 nights of another replay: {re.escape(said)}.*another --work"):
            replayed(plan, nights)
    assert nights.ran == [1]
    assert (tmp_path / "run" / "replay" / "state.json").read_bytes() == state
    world.write_tables(tmp_path, EVENTS[:-1])
    with pytest.raises(ConfigError, match=r"another replay: tables.events"):
        replayed(plan_of(tmp_path, 2), nights)


def test_a_damaged_state_is_named(stored: Path, tmp_path: Path) -> None:
    world.write_tables(tmp_path, EVENTS)
    nights = Nights(stored, healthy=True)
    replayed(plan_of(tmp_path, 1), nights)
    file = tmp_path / "run" / "replay" / "state.json"
    file.write_text(file.read_text()[:100])
    with pytest.raises(ArtifactError, match=r"state.json: damaged"):
        replayed(plan_of(tmp_path, 1), nights)


@pytest.mark.parametrize(
    ("first", "nights", "said"),
    [
        (date(-30), 3, "--from 2025-02-08: expected a day after the first event, which is of 2025-02-08"),
        (date(-40), 3, "--from 2025-01-29: expected a day after the first event"),
        (FIRST, NIGHTS + 1, "--nights 10: expected at most 9 from 2025-03-10 on"),
        (date(50), 1, "--nights 1: expected at most 0 from"),
        (FIRST, 0, "--nights: expected 1 or more, got 0"),
    ],
)
def test_dates_without_events_are_refused_before_a_night(
    stored: Path, tmp_path: Path, first: datetime.date, nights: int, said: str
) -> None:
    world.write_tables(tmp_path, EVENTS)
    made = Nights(stored)
    with pytest.raises(ConfigError, match=re.escape(said)):
        replayed(Plan(config(tmp_path), first, nights), made)
    assert made.ran == []


@pytest.mark.parametrize("split", [{"leave_last_out": True}, {"valid_from": "2025-03-01", "test_from": "2025-03-04"}])
def test_windows_that_do_not_roll_are_refused_with_the_setting(
    stored: Path, tmp_path: Path, split: dict[str, Any]
) -> None:
    world.write_tables(tmp_path, EVENTS)
    with pytest.raises(ConfigError, match=r"split: expected windows that roll.*--set 'split=\{valid_days = 7"):
        replayed(plan_of(tmp_path, 1, split=split), Nights(stored))


def test_users_asked_are_a_stable_sample(stored: Path, tmp_path: Path) -> None:
    world.write_tables(tmp_path, EVENTS)
    done = replayed(plan_of(tmp_path, 2, replay={"max_users": 5}), Nights(stored, healthy=True))
    assert [row.users for row in done.nights] == [5, 5]


def test_alerts_of_the_real_nights_are_not_sent(stored: Path, tmp_path: Path) -> None:
    sections = {"alerts": {"command": f"touch {tmp_path / 'sent'}"}}
    made = plan_of(tmp_path, **sections).config_of(tmp_path)
    assert made.alerts.command is None
    assert made.registry == str(tmp_path / "run" / "replay" / "registry")


def test_the_page_says_what_was_found_and_what_is_not_of_the_day(whole: tuple[Replay, Nights, Path]) -> None:
    replay, _, folder = whole
    page = (folder / "run" / "replay" / "replay.html").read_text()
    assert page == replay_page(replay)
    worth = replay.worth_of("frozen")
    assert worth is not None
    assert f"{worth.difference:+.4f}" in headline(replay)
    for text in (
        "The gates refused 1 of 9 nights",
        "1 failed",
        "items and users tables have no history",
        "a full one",
        "described by older features",
    ):
        assert text in page
    assert page.count("data:image/png;base64,") == 4


def test_a_replay_of_failures_has_a_page_too() -> None:
    row = NightRow(night=0, date="2025-03-10", outcome="failed", error="<b>no</b> room", seconds=3.0)
    fields: dict[str, Any] = {"worth": (), "by_day": (), "gates": (), "recall": {}, "max_users": None}
    counts = {"refused": 0, "failed": 1, "false_alarms": 0, "rows_left_out": 2, "warm_nights": 0, "seconds": 3.0}
    replay = Replay(
        dataset="d", first="2025-03-10", nights=(row,), has_items=False, has_users=False, **fields, **counts
    )
    page = replay_page(replay)
    assert "No day could be measured" in page
    assert "&lt;b&gt;no&lt;/b&gt; room" in page
    assert "2 rows of the events are on no day" in page


def test_the_verb_shows_recall_and_the_page(
    whole: tuple[Replay, Nights, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    replay, _, folder = whole
    asked: list[tuple[datetime.date, int, bool]] = []

    def replay_nights(self: Project, first: datetime.date, nights: int, *, keep_going: bool) -> Replay:
        asked.append((first, nights, keep_going))
        return replay

    monkeypatch.setattr(Project, "replay_nights", replay_nights)
    toml = folder / "shop.toml"
    toml.write_text((Path(__file__).parents[4] / "configs" / "online_retail_ii.toml").read_text())
    words = ["replay-nights", "--config", str(toml), "--from", "2025-03-10", "--nights", "9", "--keep-going"]
    assert cli.main(words) == 0
    shown = capsys.readouterr().out
    assert "recall@100" in shown
    assert headline(replay) in shown
    assert shown.rstrip().endswith("replay.html")
    assert asked == [(FIRST, 9, True)]
    assert cli.main([*words, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["nights"]) == NIGHTS
    assert cli.main(["replay-nights", "--config", str(toml), "--from", "last week"]) == 2


def test_one_line_per_night_with_the_time_left(stored: Path, tmp_path: Path) -> None:
    world.write_tables(tmp_path, EVENTS)
    progress = Recorded()
    replayed(plan_of(tmp_path, 2), Nights(stored, healthy=True), progress=progress)
    assert [line.split(" in ")[0] for line in progress.lines] == [
        "night 1 of 2, 2025-03-10: published",
        "night 2 of 2, 2025-03-11: published",
    ]
