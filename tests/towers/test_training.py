"""Training and export: it learns, it repeats, it goes on after a kill, it stops at a loss that is no number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from pipelines.errors import ConfigError, SchemaError
from tests.towers.tiny import ITEMS, tiny_data
from towers import inputs
from towers.checkpoints import Place
from towers.export import write_towers
from towers.model import TwoTowers, tensors_of
from towers.recall import recall_at
from towers.runtime import tf
from towers.sampling import Sampler
from towers.serving import SavedTowers
from towers.settings import TowersSettings
from towers.training import Epoch, TrainingError, _to_tensorboard, train
from towers.tuning import to_toml
from towers.validation import all_vectors, truth_of

SMALL = {
    "embedding_dim": 17, "epochs": 5, "batch_users": 32, "uniform_negatives": 30, "learning_rate": 0.02, "min_steps": 4,
    "select_k": (10,), "bias_start": 0.0, "content_scale": 0.3, "temperature": 0.1, "epsilon": 1e-7,
}  # fmt: skip


def settings(kind: str, **more: object) -> TowersSettings:
    return TowersSettings.model_validate(SMALL | more).resolved(tiny_data(kind).schema)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_it_beats_popularity_and_its_files_say_the_same(kind: str, tmp_path: Path) -> None:
    data, chosen = tiny_data(kind), settings(kind)
    trained = train(data, chosen, seed=3)
    truth = truth_of(data.events, 2)
    vectors = all_vectors(trained.model, data, truth.users, 2)
    popular = recall_at(
        np.ones((len(truth.users), 1), np.float32),
        np.bincount(data.events.before(2).rows, minlength=ITEMS).astype(np.float32)[:, None],
        truth,
        (10,),
        remove_seen=False,
    )
    found = recall_at(vectors.users, vectors.items, truth, (10,), remove_seen=False)
    assert found.recall[10] > 1.5 * popular.recall[10]

    facts = write_towers(trained.model, data.schema, chosen, tmp_path, seed=1)
    assert max(facts["difference"].values()) <= 1e-5
    assert facts["dim"] == vectors.items.shape[1] == 17
    again = SavedTowers(tmp_path).vectors(data, truth.users, 2)
    np.testing.assert_allclose(again.users, vectors.users, atol=1e-5)
    np.testing.assert_allclose(again.items, vectors.items, atol=1e-5)
    # The bias is the last dimension; the user's is 1: a score stays one dot product.
    assert np.all(again.users[:, -1] == 1.0)


def test_the_closed_form_start_alone_beats_popularity_and_places_a_new_ad_by_its_content() -> None:
    """No epoch at all; the category is what tells an item without an id from the others."""
    data, chosen = tiny_data("time"), settings("time", epochs=0, content_scale=0.001, refit=False)
    trained = train(data, chosen, seed=3)
    assert trained.best_epoch == 0
    truth = truth_of(data.events, 1)
    vectors = all_vectors(trained.model, data, truth.users, 1)
    found = recall_at(vectors.users, vectors.items, truth, (10,), remove_seen=False)
    # At random 10 of 90 items hold a ninth of the truth.
    assert found.recall[10] > 1.5 * 10 / ITEMS

    codes = data.items["item"].copy()
    codes[:30] = 1
    new = all_vectors(trained.model, dataclasses.replace(data, items={**data.items, "item": codes}), truth.users, 1)
    category = data.items["category"]
    known = np.arange(ITEMS) >= 30
    unit = new.items[:, :-1] / np.linalg.norm(new.items[:, :-1], axis=1, keepdims=True)
    closeness = unit[:30] @ unit[known].T
    same = category[:30, None] == category[None, known]
    assert closeness[same].mean() > closeness[~same].mean() + 0.1


def losses(curves: tuple[Epoch, ...]) -> list[float]:
    return [epoch.loss for epoch in curves]


def test_the_same_seed_gives_the_same_weights() -> None:
    data, chosen = tiny_data("order"), settings("order", epochs=2, refit=False)
    one, two = (train(data, chosen, seed=5) for _ in range(2))
    assert losses(one.curves) == losses(two.curves)
    for left, right in zip(one.model.get_weights(), two.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("kind", ["time", "order"])
def test_a_killed_run_goes_on_with_the_same_loss_curve(kind: str, tmp_path: Path) -> None:
    data, chosen = tiny_data(kind), settings(kind, epochs=4, refit=False)
    whole = train(data, chosen, seed=5)

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(data, chosen, seed=5, place=Place(tmp_path / "checkpoint", "a", 0.0), report=kill)
    resumed = train(data, chosen, seed=5, place=Place(tmp_path / "checkpoint", "a", 0.0))
    np.testing.assert_allclose(losses(resumed.curves), losses(whole.curves), rtol=1e-5)


def test_a_checkpoint_of_another_schema_is_not_used(tmp_path: Path) -> None:
    data, chosen = tiny_data("order"), settings("order", epochs=1, refit=False)
    train(data, chosen, seed=5, place=Place(tmp_path / "checkpoint", "one", 0.0))
    seen: list[int] = []
    train(data, chosen, seed=5, place=Place(tmp_path / "checkpoint", "two", 0.0), report=lambda e: seen.append(e.epoch))
    assert seen == [1]


def test_a_loss_that_is_no_number_stops_and_names_the_feature() -> None:
    data = tiny_data("time")
    price = data.items["price"].copy()
    price[:, 0] = 1e30
    broken = dataclasses.replace(data, items={**data.items, "price": price})
    with pytest.raises(TrainingError, match=r"epoch \d+, step \d+: expected a finite loss, got .*feature"):
        train(broken, settings("time", content_scale=1e9), seed=1)


def test_nan_in_a_feature_is_refused_with_its_row() -> None:
    data = tiny_data("time")
    price = data.items["price"].copy()
    price[7, 0] = np.nan
    with pytest.raises(SchemaError, match="item feature 'price' has a NaN or infinity at row 7"):
        inputs.check(dataclasses.replace(data, items={**data.items, "price": price}), "features")


def test_no_train_events_are_refused() -> None:
    data = tiny_data("time")
    held = dataclasses.replace(data.events, splits=np.full_like(data.events.splits, 2))
    with pytest.raises(SchemaError, match="expected events in the train split, got none of 1920"):
        inputs.check(dataclasses.replace(data, events=held), "features")


def test_a_constant_or_missing_feature_and_a_batch_larger_than_the_data_do_no_harm() -> None:
    data = tiny_data("order")
    items = {**data.items, "price": np.zeros((ITEMS, 2), np.float32), "title": np.zeros((ITEMS, 4), np.int32)}
    trained = train(
        dataclasses.replace(data, items=items), settings("order", epochs=1, batch_users=10_000, refit=False), seed=1
    )
    assert np.isfinite(losses(trained.curves)).all()


def test_a_user_without_history_gets_a_vector() -> None:
    data, chosen = tiny_data("time"), settings("time", epochs=1, refit=False)
    trained = train(data, chosen, seed=1)
    nobody = dataclasses.replace(data, events=data.events.where(np.zeros(len(data.events.rows), bool)))
    vectors = all_vectors(trained.model, nobody, np.arange(3, dtype=np.int32), 2)
    assert np.isfinite(vectors.users).all()


def test_heads_must_divide_the_vector() -> None:
    with pytest.raises(ValueError, match="heads: expected a divisor of the unit vector's 16 dimensions"):
        settings("order", heads=3)


def test_a_recipe_fills_only_what_was_not_given() -> None:
    resolved = TowersSettings(learning_rate=0.5).resolved(tiny_data("order").schema)
    assert (resolved.protocol, resolved.history_encoder, resolved.learning_rate) == ("positions", "transformer", 0.5)
    assert resolved.embedding_dim == 129


def test_tuning_writes_a_section_of_the_toml() -> None:
    assert to_toml({"learning_rate": 0.01, "batch_users": 64}, 0.25).splitlines() == [
        "# validation recall 0.25000", "[towers]", "batch_users = 64", "learning_rate = 0.01",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="give either low and high, or choices"):
        TowersSettings.model_validate({"tune": {"learning_rate": {"low": 0.1}}})
    with pytest.raises(ValueError, match=r"expected keys of \[towers\], got lerning_rate"):
        TowersSettings.model_validate({"tune": {"lerning_rate": {"choices": [1]}}})


def test_another_keras_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from towers.runtime import require_legacy_keras

    monkeypatch.setenv("TF_USE_LEGACY_KERAS", "0")
    with pytest.raises(ConfigError, match="expected '1', got '0'"):
        require_legacy_keras()


def test_bfloat16_scores_give_almost_the_same_loss() -> None:
    data = tiny_data("set")
    found = {}
    for mixed in (False, True):
        chosen = settings("set", mixed_precision=mixed)
        batch = next(Sampler(data, data.events.before(1), chosen).epoch(np.random.default_rng(0)))
        found[mixed] = float(TwoTowers(data, chosen, 1).compute_loss(tensors_of(batch)))
    # bfloat16 has 8 bits: a score is off by at most 1 / 256 of itself, here at most 10.
    assert found[True] == pytest.approx(found[False], abs=10 / 256)
    assert found[True] != found[False]


def test_the_curves_are_there_for_tensorboard(tmp_path: Path) -> None:
    report = _to_tensorboard(tmp_path)
    report(Epoch("search", 1, 2.5, 1.0, 100.0, 0.25, {"novel.10": 0.25}))
    report(Epoch("search", 2, 2.5, 1.0, 100.0, 0.25, {"novel.10": 0.25}))
    files = list((tmp_path / "search").iterdir())
    assert len(files) == 1
    found = {
        value.tag: float(tf.make_ndarray(value.tensor))
        for event in tf.compat.v1.train.summary_iterator(str(files[0]))
        for value in event.summary.value
    }
    assert found == {"loss": 2.5, "examples_per_second": 100.0, "novel.10": 0.25}
