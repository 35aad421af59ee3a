"""The search: finds the better value, continues where it stopped, and survives values that cannot be trained."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest

import towerline
from pipelines.contracts.errors import ArtifactError, ConfigError, SchemaError
from pipelines.contracts.manifest import write_artifact
from pipelines.progress import Progress
from pipelines.sequences.event_lists import EventLists
from tests.recorded import Recorded
from tests.towers.tiny import USERS, tiny_data
from towerline.jobs import hard_negatives as mining
from towers.data.training_data import Mined, TrainingData
from towers.settings import SetsSettings, TowersSettings, settings_for
from towers.training import job as training
from towers.training import tuning
from towers.training.job import Epoch, Trained

SMALL: dict[str, Any] = {
    "embedding_dim": 9, "epochs": 3, "batch_users": 32, "uniform_negatives": 30, "select_k": (10,),
    "initializer": "random", "history_encoder": "mean", "protocol": "sets",
}  # fmt: skip
RATES: dict[str, Any] = {"learning_rate": {"low": 1e-4, "high": 1e-1, "log": True}}


def written(path: Path, content: str) -> Path:
    """A features artifact in name only: what it holds is ``tiny_data``."""
    with write_artifact(path, kind="features") as draft:
        (draft.dir / "content").write_text(content)
    return path


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tuning, "load", lambda _: tiny_data("set"))
    return written(tmp_path / "features", "one")


def settings(tune: dict[str, Any], **changes: Any) -> TowersSettings:
    """``None`` leaves a key of ``SMALL`` out."""
    given = {key: value for key, value in (SMALL | changes).items() if value is not None}
    return settings_for(tiny_data("set").schema, **given, tune=tune)


def trials(out: Path) -> list[Any]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(out.with_suffix(".journal")))
    )
    return list(optuna.load_study(study_name="towers", storage=storage).trials)


@dataclass
class Trainings:
    """In the place of training: remembers what it was asked for, and returns the given recalls."""

    recalls: Callable[[TowersSettings], list[float]] = lambda chosen: [chosen.learning_rate]
    asked: list[TowersSettings] = field(default_factory=list)
    mined: list[Any] = field(default_factory=list)

    def __call__(
        self, data: TrainingData, chosen: TowersSettings, *, seed: int, report: Callable[[Epoch], None]
    ) -> Trained:
        self.asked.append(chosen)
        self.mined.append(data.mined)
        recalls = self.recalls(chosen)
        curves = tuple(Epoch("search", epoch, 0.0, 0.0, 0.0, valid) for epoch, valid in enumerate(recalls))
        for epoch in curves:
            report(epoch)
        return Trained(SimpleNamespace(), curves, 0, ("train",))  # type: ignore[arg-type]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made = Trainings()
    monkeypatch.setattr(training, "train", made)
    return made


def test_it_finds_the_rate_that_learns_and_continues_where_it_stopped(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    asked = settings({"learning_rate": {"choices": [1e-7, 0.03]}})
    tuning.run(features, asked, out, trials=2, seed=1)
    assert len(trials(out)) == 2
    tuning.run(features, asked, out, trials=5, seed=1)
    tuning.run(features, asked, out, trials=5, seed=1)
    assert len(trials(out)) == 5
    found = tomllib.loads(out.read_text())["towers"]
    assert found == {"learning_rate": 0.03}
    settings_for(tiny_data("set").schema, **(SMALL | found))


def test_values_with_which_the_loss_is_no_number_are_passed_over(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    asked = settings({"learning_rate": {"choices": [1e37, 0.03]}}, item_norm="free")
    tuning.run(features, asked, out, trials=6, seed=1)
    states = {trial.params["learning_rate"]: trial.state.name for trial in trials(out)}
    assert states == {1e37: "FAIL", 0.03: "COMPLETE"}
    assert tomllib.loads(out.read_text())["towers"] == {"learning_rate": 0.03}


def test_a_search_that_was_stopped_goes_on_with_the_draws_it_would_have_made(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    ranges = RATES | {"in_batch_negatives": {"low": 0, "high": 1000}}
    for count in (2, 4, 12):
        tuning.run(features, settings(ranges), tmp_path / "stopped.toml", trials=count, seed=1)
    tuning.run(features, settings(ranges), tmp_path / "whole.toml", trials=12, seed=1)
    stopped, whole = ([one.params for one in trials(tmp_path / name)] for name in ("stopped.toml", "whole.toml"))
    assert stopped == whole
    assert len({one["learning_rate"] for one in stopped}) == 12
    assert len(trainings.asked) == 24


def test_a_killed_trial_is_tried_again_with_other_values(features: Path, trainings: Trainings, tmp_path: Path) -> None:
    """Perhaps it was its values that killed it."""
    out = tmp_path / "best.toml"

    def killed(chosen: TowersSettings) -> list[float]:
        raise KeyboardInterrupt

    trainings.recalls = killed
    with pytest.raises(KeyboardInterrupt):
        tuning.run(features, settings(RATES), out, trials=1, seed=1)
    trainings.recalls = Trainings().recalls
    tuning.run(features, settings(RATES), out, trials=1, seed=1)
    first, second = trials(out)
    assert (first.state.name, second.state.name) == ("RUNNING", "COMPLETE")
    assert first.params != second.params
    assert "the best of 1 (1 to the end)" in out.read_text()


def test_values_that_cannot_be_fail_with_one_line_and_the_search_goes_on(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    out, progress = tmp_path / "best.toml", Recorded()
    # Less the item bias 7, 8 or 9 dimensions, for two heads.
    asked = settings({"embedding_dim": {"choices": [8, 9, 10]}}, protocol="positions", history_encoder=None)
    tuning.run(features, asked, out, trials=12, seed=1, progress=progress)
    wrong = [one for one in trials(out) if one.params["embedding_dim"] != 9]
    assert wrong
    assert {one.state.name for one in wrong} == {"FAIL"}
    for trial, line in zip(wrong, progress.lines, strict=True):
        dim = trial.params["embedding_dim"]
        assert line.startswith(f"tune: trial {trial.number} (embedding_dim = {dim}): ")
        assert f"expected a divisor of the unit vector's {dim - 1} dimensions" in line
        assert line.endswith("got 2. Change either.")
        assert "\n" not in line
    assert {chosen.embedding_dim for chosen in trainings.asked} == {9}
    assert len(trainings.asked) + len(wrong) == 12
    assert tomllib.loads(out.read_text())["towers"] == {"embedding_dim": 9}
    assert f"the best of 12 ({12 - len(wrong)} to the end, {len(wrong)} failed)" in out.read_text()
    # They were tried: a search of 12 trials has no more to do.
    tuning.run(features, asked, out, trials=12, seed=1)
    assert len(trials(out)) == 12


def test_where_every_trial_failed_one_error_says_why(features: Path, trainings: Trainings, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    # Refused by the settings themselves, and by what the data make of them.
    for ranges, why in (
        ({"learning_rate": {"choices": [-1.0]}}, "towers.*learning_rate: Input should be greater than 0"),
        ({"heads": {"choices": [3]}}, "heads: expected a divisor"),
    ):
        asked = settings(ranges, protocol="positions", history_encoder=None)
        with pytest.raises(ConfigError, match=f"got 3 that failed.*remove the journal.*trial 2 .*{why}"):
            tuning.run(features, asked, out, trials=3)
        assert not out.exists()
        out.with_suffix(".journal").unlink()
    assert trainings.asked == []


@pytest.mark.parametrize(
    ("key", "span"), [("in_batch_negatives", {"low": 0.5, "high": 3.5}), ("tastes", {"low": 0.5, "high": 3.5})]
)
def test_a_whole_key_is_drawn_whole_and_within_its_range(key: str, span: dict[str, float]) -> None:
    drawn = [
        tuning.suggest(optuna.create_study().ask(), key, SetsSettings(tune={key: span}).tune[key]) for _ in range(20)
    ]
    assert {type(value) for value in drawn} == {int}
    assert set(drawn) <= {1, 2, 3}


def test_a_journal_of_another_search_is_refused_and_stays(features: Path, trainings: Trainings, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    tuning.run(features, settings(RATES), out, trials=3)
    before = out.read_bytes(), out.with_suffix(".journal").read_bytes()
    other = written(tmp_path / "other", "two")
    wider = {"learning_rate": RATES["learning_rate"] | {"high": 0.5}}
    more = RATES | {"temperature": {"low": 0.05, "high": 0.5}}
    for wanted, difference in (
        ((other, settings(RATES), 17), "features was "),
        ((features, settings(RATES, epochs=4), 17), "towers.epochs was 3, is 4"),
        ((features, settings(RATES, clip_norm=1.0), 17), "towers.clip_norm was not given, is 1.0"),
        ((features, settings(RATES), 18), "seed was 17, is 18"),
        ((features, settings(wider), 17), r"towers.tune.learning_rate was .*0\.1.* is .*0\.5"),
        ((features, settings({"learning_rate": {"choices": [0.1]}}), 17), r"towers.tune.learning_rate was .*choices"),
        ((features, settings(more), 17), r"towers.tune.temperature was not given, is .*0\.05"),
    ):
        path, asked, seed = wanted
        with pytest.raises(ConfigError, match=f"best.journal: expected the trials of this search, got 3.*{difference}"):
            tuning.run(path, asked, out, trials=5, seed=seed)
        assert (out.read_bytes(), out.with_suffix(".journal").read_bytes()) == before
    assert len(trainings.asked) == 3
    # What no trial depends on is no other search; and the value given for a key that is tuned is none of them.
    same = settings(RATES, learning_rate=0.5, refit=False, checkpoint_minutes=7.0)
    tuning.run(features, same, out, trials=4)
    assert len(trainings.asked) == 4


def test_a_journal_without_what_it_was_made_with_is_refused(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    journal = optuna.storages.journal.JournalFileBackend(str(tmp_path / "best.journal"))
    study = optuna.create_study(study_name="towers", storage=optuna.storages.JournalStorage(journal))
    study.tell(study.ask({"learning_rate": optuna.distributions.FloatDistribution(0.1, 0.2)}), 0.5)
    with pytest.raises(ConfigError, match=r"got 1 of another: an older version wrote it.*move the journal away"):
        tuning.run(features, settings(RATES), tmp_path / "best.toml", trials=5)
    assert trainings.asked == []


def test_missing_features_are_missed_before_the_journal_is_begun(trainings: Trainings, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="expected an artifact directory"):
        tuning.run(tmp_path / "none", settings(RATES), tmp_path / "best.toml")
    assert list(tmp_path.iterdir()) == []


def test_a_trial_is_worth_its_best_epoch_the_start_counted_in(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    out = tmp_path / "best.toml"
    trainings.recalls = lambda chosen: [0.5, 0.2, 0.4] if chosen.learning_rate == 0.01 else [0.1, 0.3, 0.45]
    asked = settings({"learning_rate": {"choices": [0.01, 0.02]}})
    tuning.run(features, asked, out, trials=8)
    expected = {0.01: (0.5, {0: 0.5, 1: 0.5, 2: 0.5}), 0.02: (0.45, {0: 0.1, 1: 0.3, 2: 0.45})}
    seen = {}
    for one in trials(out):
        value, reported = expected[one.params["learning_rate"]]
        assert one.intermediate_values == reported
        # One that fell behind was ended early, with what it had reached.
        assert one.value == value
        seen[one.params["learning_rate"]] = one.state.name
    assert seen[0.01] == "COMPLETE"
    assert len(seen) == 2
    assert tomllib.loads(out.read_text())["towers"] == {"learning_rate": 0.01}


def test_what_begins_better_than_the_others_end_is_not_pruned_for_what_it_loses(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    trainings.recalls = lambda chosen: [0.5, 0.1, 0.1] if len(trainings.asked) == 6 else [0.1, 0.2, 0.3]
    tuning.run(features, settings(RATES), tmp_path / "best.toml", trials=6)
    assert [one.state.name for one in trials(tmp_path / "best.toml")] == ["COMPLETE"] * 6
    trainings.recalls = lambda chosen: [0.1, 0.1, 0.1]
    tuning.run(features, settings(RATES), tmp_path / "best.toml", trials=7)
    assert trials(tmp_path / "best.toml")[6].state.name == "PRUNED"
    assert "trial 5, the best of 7 (6 to the end, 1 ended early)" in (tmp_path / "best.toml").read_text()


def test_a_real_training_reports_its_start_and_its_outcome(features: Path, tmp_path: Path) -> None:
    """At this rate all is lost that the start knew: the start is what the trial is worth, at each epoch."""
    spoilt = {"learning_rate": {"choices": [50.0]}}
    for epochs in (0, 2):
        asked = settings(spoilt, initializer="svd", epochs=epochs)
        tuning.run(features, asked, tmp_path / f"{epochs}.toml", trials=1)
    (start,), (spoiled,) = trials(tmp_path / "0.toml"), trials(tmp_path / "2.toml")
    # A list of 10 of 90 items by chance has a ninth.
    assert start.value > 0.2
    assert start.intermediate_values == {0: start.value}
    assert spoiled.value == pytest.approx(start.value)
    assert spoiled.intermediate_values == dict.fromkeys(range(3), spoiled.value)


def test_without_a_measured_epoch_a_trial_fails(features: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none with epochs = 0 and initializer = 'random'. Take epochs of 1 or more"):
        tuning.run(features, settings(RATES, epochs=0), tmp_path / "best.toml", trials=1)


def test_without_a_valid_split_nothing_is_searched(
    features: Path, trainings: Trainings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tiny_data("set")
    events = data.events
    learned = EventLists(events.offsets, events.rows, events.times, events.actions, np.zeros_like(events.splits))
    monkeypatch.setattr(tuning, "load", lambda _: replace(data, events=learned))
    with pytest.raises(SchemaError, match="tiny: expected held-out events in the valid split"):
        tuning.run(features, settings(RATES), tmp_path / "best.toml")
    assert trainings.asked == []


MINED = Mined("v7", np.arange(USERS * 5, dtype=np.int32).reshape(USERS, 5) % 90)


@pytest.mark.parametrize(
    ("span", "most"), [({"choices": [0, 2, 5]}, 5), ({"low": 0, "high": 3}, 3), ({"low": 0, "high": 1.5}, 1)]
)
def test_hard_negatives_are_mined_once_and_each_trial_has_its_first(
    features: Path, trainings: Trainings, tmp_path: Path, span: dict[str, Any], most: int
) -> None:
    wanted: list[int] = []

    def mine(count: int) -> Mined:
        wanted.append(count)
        return MINED

    asked = settings({"hard_negatives": span})
    tuning.run(features, asked, tmp_path / "best.toml", trials=12, mine=mine)
    assert wanted == [most]
    assert max(chosen.hard_negatives for chosen in trainings.asked) == most
    for chosen, mined in zip(trainings.asked, trainings.mined, strict=True):
        if chosen.hard_negatives:
            np.testing.assert_array_equal(mined, MINED.rows[:, : chosen.hard_negatives])
        else:
            assert mined is None
    with pytest.raises(ConfigError, match='live version of the hard negatives was "v7", is "v8"'):
        tuning.run(
            features,
            asked,
            tmp_path / "best.toml",
            trials=13,
            mine=lambda _: replace(MINED, version="v8"),
        )


def test_a_fixed_number_of_hard_negatives_is_mined_as_for_training(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    asked = settings(RATES, hard_negatives=4)
    tuning.run(features, asked, tmp_path / "mined.toml", trials=1, mine=lambda count: MINED)
    # Nothing is live: trained without, as `train` does.
    tuning.run(features, asked, tmp_path / "without.toml", trials=1, mine=lambda count: None)
    assert trainings.mined[0].shape == (USERS, 4)
    assert trainings.mined[1] is None


def test_mined_negatives_reach_a_real_training(features: Path, tmp_path: Path) -> None:
    asked = settings({"hard_negatives": {"choices": [2]}}, epochs=1)
    tuning.run(features, asked, tmp_path / "best.toml", trials=1, mine=lambda _: MINED)
    assert tomllib.loads((tmp_path / "best.toml").read_text())["towers"] == {"hard_negatives": 2}


def test_hard_negatives_cannot_be_tuned_where_nothing_is_live(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"hard_negatives: expected a live version to mine up to 5 .*Publish"):
        tuning.run(features, settings({"hard_negatives": {"choices": [0, 5]}}), tmp_path / "best.toml")
    assert trainings.asked == []


def test_the_verb_mines_for_the_trial_that_asks_for_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "tiny.toml"
    config.write_text(
        '[dataset]\nname = "tiny"\n[split]\nleave_last_out = true\n'
        '[tables.events]\npath = "e"\nuser_id = "u"\nitem_id = "i"\norder = "o"\n'
        '[tables.items]\npath = "i"\nitem_id = "i"\n[[features.item]]\nname = "i"\nkind = "id"\n'
        "[towers]\nhard_negatives = 1\n[towers.tune]\nhard_negatives = { low = 0, high = 6 }\n"
    )
    calls: list[Any] = []

    def mine(config: Any, features: Path, progress: Progress, *, stage: str) -> Mined:
        assert stage == "tune"
        calls.append((config.towers.hard_negatives, features))
        return MINED

    def search(features: Path, asked: TowersSettings, out: Path, *, trials: int, mine: Any, **rest: Any) -> Path:
        assert (asked.hard_negatives, trials) == (1, 3)
        assert mine(6) is MINED
        out.parent.mkdir()
        out.write_text("[towers]\n")
        return out

    monkeypatch.setattr(mining, "mine", mine)
    monkeypatch.setattr(tuning, "run", search)
    assert towerline.open(config, work=tmp_path / "run").tune(trials=3) == tmp_path / "run" / "tuned.toml"
    assert calls == [(6, tmp_path / "run" / "features")]


@pytest.mark.parametrize(
    ("tune", "message"),
    [
        ({"select": {"choices": ["all", "novel"]}}, "got select: it determines which recall is measured"),
        ({"select_k": {"choices": [10, 20]}}, "got select_k: it determines which recall is measured"),
        ({"max_valid_users": {"low": 10, "high": 100}}, "got max_valid_users: .*for which users"),
        ({"refit": {"choices": [True, False]}}, "got refit: it has no effect on a trial"),
        ({"checkpoint_minutes": {"low": 1.0, "high": 2.0}}, "got checkpoint_minutes: it has no effect"),
        ({"protocol": {"choices": ["sets", "windows"]}}, "got protocol: each protocol measures another recall"),
        ({"item_bias": {"low": 0, "high": 1}}, r"item_bias: expected choices, .*got low = 0.0 and high = 1.0"),
        ({"decay_days": {"low": 0, "high": 1}}, "decay_days: expected choices"),
        ({"tastes": {"low": 1.2, "high": 1.8}}, r"tastes: expected a whole number .*got low = 1.2 and high = 1.8"),
        ({"epsilon": {"low": 0.1, "high": float("inf")}}, "epsilon: expected finite bounds.*high = inf"),
    ],
)
def test_ranges_that_no_trials_could_be_compared_by_or_drawn_from_are_refused(
    tmp_path: Path, tune: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"towers\.tune.*{message}"):
        tuning.run(tmp_path, settings(RATES | tune), tmp_path / "best.toml")
    assert list(tmp_path.iterdir()) == []


def test_protocols_are_compared_by_a_recall_that_is_given(features: Path, trainings: Trainings, tmp_path: Path) -> None:
    given = {"select": "all", "max_valid_users": 50, "history_encoder": None}
    asked = settings({"protocol": {"choices": ["sets", "positions"]}}, **given)
    tuning.run(features, asked, tmp_path / "best.toml", trials=8)
    measured = {(chosen.select, chosen.select_k, chosen.max_valid_users) for chosen in trainings.asked}
    assert measured == {("all", (10,), 50)}
    assert {chosen.protocol for chosen in trainings.asked} == {"sets", "positions"}


def test_what_a_trial_does_not_read_of_its_values_is_left_out(
    features: Path, trainings: Trainings, tmp_path: Path
) -> None:
    """Heads are of an attention alone: a trial with a mean has no use for those it drew, and the result names none."""
    trainings.recalls = lambda chosen: [float(chosen.history_encoder == best)]
    ranges = {"history_encoder": {"choices": ["mean", "attention"]}, "heads": {"choices": [1, 4, 8]}}
    for best, keys in (("mean", {"history_encoder"}), ("attention", {"history_encoder", "heads"})):
        out, asked = tmp_path / f"{best}.toml", settings(ranges, history_encoder=None)
        tuning.run(features, asked, out, trials=8)
        assert {trial.state.name for trial in trials(out)} <= {"COMPLETE", "PRUNED"}
        found = tomllib.loads(out.read_text())["towers"]
        assert (found["history_encoder"], set(found)) == (best, keys)
        settings_for(tiny_data("set").schema, **(SMALL | found))
    assert {chosen.heads for chosen in trainings.asked if chosen.history_encoder == "mean"} == {2}


@pytest.mark.parametrize(
    ("tune", "key"),
    [
        ({"window_days": {"choices": [2.0, 4.0]}}, "window_days: no trial reads it: only protocol = 'windows' does"),
        ({"heads": {"low": 1, "high": 4}, "history_encoder": {"choices": ["mean", "recency"]}}, "heads: no trial"),
        ({"tastes": {"low": 8, "high": 64}, "item_norm": {"choices": ["free", "unit"]}}, "tastes: no"),
    ],
)
def test_a_range_that_no_trial_reads_is_refused(
    features: Path, trainings: Trainings, tmp_path: Path, tune: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"\[towers.tune\]: .* got {key}"):
        tuning.run(features, settings(tune), tmp_path / "best.toml")
    assert trainings.asked == []
    assert not (tmp_path / "best.journal").exists()


def test_the_result_says_at_its_head_what_it_is(features: Path, trainings: Trainings, tmp_path: Path) -> None:
    trainings.recalls = lambda chosen: [0.25]
    asked = settings(RATES, select="both", select_k=(5, 10))
    tuning.run(features, asked, tmp_path / "best.toml", trials=2)
    lines = (tmp_path / "best.toml").read_text().splitlines()
    assert lines[:4] == [
        "# trial 0, the best of 2 (2 to the end)",
        "# geometric mean of validation recall all@5, all@10, novel@5, novel@10: 0.25000",
        "# Only the keys of [towers.tune]: all others are as in the TOML that was tuned, which these go into.",
        "[towers]",
    ]


@pytest.mark.parametrize("count", [0, -1])
def test_a_search_needs_a_trial(tmp_path: Path, count: int) -> None:
    with pytest.raises(ConfigError, match=f"--trials: expected 1 or more, got {count}"):
        tuning.run(tmp_path, settings(RATES), tmp_path / "best.toml", trials=count)


def test_without_a_range_it_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"towers\.tune"):
        tuning.run(tmp_path, SetsSettings(), tmp_path / "best.toml")
