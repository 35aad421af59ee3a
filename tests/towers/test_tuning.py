"""The search: it finds the better value, goes on where it stood, and survives values with which nothing is learned."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import optuna
import pytest

from pipelines.errors import ConfigError
from tests.towers.tiny import tiny_data
from towers import tuning
from towers.settings import TowersSettings

SMALL: dict[str, Any] = {
    "embedding_dim": 9, "epochs": 3, "batch_users": 32, "uniform_negatives": 30, "select_k": (10,),
    "initializer": "random", "history_encoder": "mean", "protocol": "sets",
}  # fmt: skip


@pytest.fixture
def features(monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tuning, "load", lambda _: tiny_data("set"))
    return Path("features")


def trials(out: Path) -> list[Any]:
    storage = optuna.storages.JournalStorage(
        optuna.storages.journal.JournalFileBackend(str(out.with_suffix(".journal")))
    )
    return list(optuna.load_study(study_name="towers", storage=storage).trials)


def test_it_finds_the_rate_that_learns_and_goes_on_where_it_stood(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    rates = {"learning_rate": {"choices": [1e-7, 0.03]}}
    settings = TowersSettings.model_validate(SMALL | {"tune": rates})
    tuning.run(features, settings, out, trials=2, seed=1, progress=False)
    assert len(trials(out)) == 2
    tuning.run(features, settings, out, trials=5, seed=1, progress=False)
    tuning.run(features, settings, out, trials=5, seed=1, progress=False)
    assert len(trials(out)) == 5
    found = tomllib.loads(out.read_text())["towers"]
    assert found == {"learning_rate": 0.03}
    TowersSettings.model_validate(SMALL | found)


def test_values_with_which_the_loss_is_no_number_are_passed_over(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "best.toml"
    rates = {"learning_rate": {"choices": [1e37, 0.03]}}
    settings = TowersSettings.model_validate(SMALL | {"tune": rates, "item_norm": "free"})
    tuning.run(features, settings, out, trials=6, seed=1, progress=False)
    states = {trial.params["learning_rate"]: trial.state.name for trial in trials(out)}
    assert states == {1e37: "FAIL", 0.03: "COMPLETE"}
    assert tomllib.loads(out.read_text())["towers"] == {"learning_rate": 0.03}


def test_without_a_range_it_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"towers\.tune"):
        tuning.run(tmp_path, TowersSettings(), tmp_path / "best.toml")
