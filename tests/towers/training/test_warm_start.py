"""Warm starts: weights keep their values, and the new model records the earlier one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.saved_towers import SavedTowers
from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import open_artifact, read_manifest
from pipelines.contracts.vocabulary import FittedCodes
from tests.index.stage_artifacts import write_features
from towers.data.training_data import load
from towers.network.model import TwoTowers
from towers.settings import TowersSettings, WindowsSettings
from towers.training import job as training
from towers.training.validation_recall import all_vectors
from towers.training.warm_start import WarmStart, _moved, epochs_found, nights_of

SMALL = {
    "embedding_dim": 17,
    "epochs": 2,
    "batch_users": 16,
    "uniform_negatives": 30,
    "min_steps": 2,
    "id_dropout": 0.0,
}
SMALL |= {"window_days": 7.0, "min_history_days": 1.0, "content_share": 0.0, "select_k": (10,)}
ITEMS = 60


def settings(**more: object) -> TowersSettings:
    return WindowsSettings.model_validate(SMALL | more)


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Last night's features and model, and tonight's features with four more items."""
    root = tmp_path_factory.mktemp("warm")
    write_features(root / "old", items=ITEMS, users=40, dim=16, seed=0)
    write_features(root / "new", items=ITEMS + 4, users=40, dim=16, seed=0)
    training.run(root / "old", settings(), root / "model")
    return root


def codes(*values: str) -> FittedCodes:
    return FittedCodes(pa.array(values), np.ones(len(values), np.int64))


def test_a_value_keeps_its_row_under_another_code_and_a_new_one_gets_that_of_the_unknown() -> None:
    kept = np.arange(10.0).reshape(5, 2)  # missing, unknown, a, b, c
    moved = _moved(kept, codes("a", "b", "c"), codes("c", "new", "a"))
    np.testing.assert_array_equal(moved, kept[[0, 1, 4, 1, 2]])


def test_known_items_begin_where_they_were(nights: Path) -> None:
    chosen = settings()
    vectors, categories = {}, {}
    for name in ("old", "new"):
        data = load(nights / name)
        model = TwoTowers(data, chosen, seed=99)
        all_vectors(model, data, np.zeros(1, np.int32), 2)  # makes all weights
        WarmStart(nights / "model", 1).fill(model, nights / name)
        vectors[name] = all_vectors(model, data, np.zeros(1, np.int32), 2).items
        categories[name] = data.items["category"]
    same = categories["new"][:ITEMS] == categories["old"]
    assert same.sum() > ITEMS / 2
    np.testing.assert_allclose(vectors["new"][:ITEMS][same], vectors["old"][same], atol=1e-6)
    assert not np.allclose(vectors["old"][0], vectors["old"][1])
    # Of new items nothing is known but the category.
    new, kinds = vectors["new"][ITEMS:], categories["new"][ITEMS:]
    for kind in set(kinds):
        assert np.ptp(new[kinds == kind], axis=0).max() < 1e-6


def test_a_warm_night_trains_one_short_phase_and_says_so(nights: Path, tmp_path: Path) -> None:
    out = training.run(nights / "new", settings(), tmp_path / "model", warm=WarmStart(nights / "model", 1))
    curves = json.loads((out / "training.json").read_text())["epochs"]
    assert [(epoch["phase"], epoch["epoch"], epoch["valid"]) for epoch in curves] == [("warm", 1, None)]
    assert nights_of(read_manifest(out)) == 1
    assert WarmStart(out, 1).nights() == 2
    assert nights_of(read_manifest(nights / "model")) == 0
    assert open_artifact(out, kind="model").manifest.config == read_manifest(nights / "model").config


def test_training_begins_with_the_weights(nights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate of almost nothing a warm night leaves the vectors where they were; without the weights it does not."""
    still, start = settings(learning_rate=1e-9), WarmStart(nights / "model", 1)
    warm = training.run(nights / "old", still, tmp_path / "warm", warm=start)
    monkeypatch.setattr(WarmStart, "fill", lambda *_: None)
    repeated = training.run(nights / "old", still, tmp_path / "repeated", warm=start)
    data, user = load(nights / "old"), np.zeros(1, np.int32)
    before, after, other = (SavedTowers(model).vectors(data, user, 2) for model in (nights / "model", warm, repeated))
    np.testing.assert_allclose(after.items, before.items, atol=1e-5)
    np.testing.assert_allclose(after.users, before.users, atol=1e-5)
    assert np.abs(other.items - before.items).max() > 1e-2


def test_other_towers_are_refused_by_what_differs(nights: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"expected .*shape .* Train in full"):
        training.run(
            nights / "new", settings(embedding_dim=9), tmp_path / "model",
            warm=WarmStart(nights / "model", 1),
        )  # fmt: skip
    assert not (tmp_path / "model").exists()


def test_the_epochs_that_the_last_full_training_found_are_known_to_every_night_after_it(
    nights: Path, tmp_path: Path
) -> None:
    found = read_manifest(nights / "model").facts["best_epoch"]
    # A warm night has an epoch number of its own.
    first = training.run(nights / "new", settings(), tmp_path / "first", warm=WarmStart(nights / "model", 3))
    second = training.run(nights / "new", settings(), tmp_path / "second", warm=WarmStart(first, 3))
    assert [read_manifest(night).facts["best_epoch"] for night in (first, second)] == [3, 3]
    assert [epochs_found(read_manifest(night)) for night in (nights / "model", first, second)] == [found] * 3
