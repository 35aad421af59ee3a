"""Training and export: it learns, it repeats, it resumes after a kill, it stops at a loss of NaN."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.saved_towers import SavedTowers
from pipelines.contracts.errors import ConfigError, SchemaError
from pipelines.contracts.kinds import CountFeature
from pipelines.contracts.schema import DatasetSchema
from pipelines.sequences.event_lists import EventLists
from pipelines.sequences.held_out import HeldOut
from tests.towers.tiny import ITEMS, tiny_data
from towers.data import training_data as inputs
from towers.data.sampler import Sampler
from towers.export import write_towers
from towers.network.model import TwoTowers, tensors_of
from towers.runtime import tf
from towers.settings import SetsSettings, TowersSettings, settings_for
from towers.training.checkpoints import CheckpointDirectory
from towers.training.job import Epoch, TrainingError, _Phase, _to_tensorboard, train
from towers.training.recall import recall_at
from towers.training.validation_recall import all_vectors

SMALL = {
    "embedding_dim": 17, "epochs": 5, "batch_users": 32, "uniform_negatives": 30, "learning_rate": 0.02, "min_steps": 4,
    "select_k": (10,), "bias_start": 0.0, "content_scale": 0.3, "temperature": 0.1, "epsilon": 1e-7,
}  # fmt: skip


def settings(kind: str, **more: object) -> TowersSettings:
    """One layer of the transformer is traced in half the time of two."""
    small = SMALL | {"layers": 1} if kind == "order" else SMALL
    if kind == "set":
        small = {key: value for key, value in SMALL.items() if key != "min_steps"}
    return settings_for(tiny_data(kind).schema, **(small | more))


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_it_beats_popularity_and_its_files_say_the_same(kind: str, tmp_path: Path) -> None:
    data, chosen = tiny_data(kind), settings(kind)
    trained = train(data, chosen, seed=3)
    truth = HeldOut.of(data.events, 2)
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
    truth = HeldOut.of(data.events, 1)
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
    """Simulates the end of the process."""


@pytest.mark.parametrize("kind", ["time", "order"])
def test_a_killed_run_goes_on_with_the_same_loss_curve(kind: str, tmp_path: Path) -> None:
    data, chosen = tiny_data(kind), settings(kind, epochs=4, refit=False)
    whole = train(data, chosen, seed=5)

    def kill(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "checkpoint", "a", 0.0), report=kill)
    resumed = train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "checkpoint", "a", 0.0))
    np.testing.assert_allclose(losses(resumed.curves), losses(whole.curves), rtol=1e-5)


def test_a_run_killed_in_its_refit_does_not_search_again(tmp_path: Path) -> None:
    data, chosen = tiny_data("order"), settings("order", epochs=4)
    whole = train(data, chosen, seed=5)
    assert whole.best_epoch >= 2
    seen: list[tuple[str, int]] = []

    def watch(epoch: Epoch) -> None:
        seen.append((epoch.phase, epoch.epoch))
        if len(seen) == 6:
            raise KilledError

    with pytest.raises(KilledError):
        train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "checkpoint", "a", 0.0), report=watch)
    assert seen[-1] == ("refit", 2)
    resumed = train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "checkpoint", "a", 0.0), report=watch)
    assert seen[6:] == [("refit", number) for number in range(2, whole.best_epoch + 1)]
    assert resumed.best_epoch == whole.best_epoch
    assert [epoch.phase for epoch in resumed.curves] == [epoch.phase for epoch in whole.curves]
    np.testing.assert_allclose(losses(resumed.curves), losses(whole.curves), rtol=1e-5)


@pytest.mark.parametrize("kind", ["time", "order"])
def test_a_number_of_epochs_gives_the_refit_of_a_run_that_found_it(kind: str) -> None:
    data, chosen = tiny_data(kind), settings(kind, epochs=3)
    whole = train(data, chosen, seed=4)
    alone = train(data, chosen, seed=4, epochs=whole.best_epoch)
    assert [(epoch.phase, epoch.epoch) for epoch in alone.curves] == [
        ("refit", number + 1) for number in range(whole.best_epoch)
    ]
    assert alone.best_epoch == whole.best_epoch
    for left, right in zip(whole.model.get_weights(), alone.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_no_epoch_at_all_is_a_number_of_epochs() -> None:
    """The closed-form start is made of train and valid events."""
    data, chosen = tiny_data("time"), settings("time", epochs=3)
    start = train(data, chosen, seed=4, epochs=0)
    assert (start.curves, start.best_epoch) == ((), 0)
    events = dataclasses.replace(data.events, splits=np.where(data.events.splits < 2, 0, 2).astype(np.int8))
    everything = dataclasses.replace(data, events=events)
    of_train = train(everything, chosen.model_copy(update={"epochs": 0, "refit": False}), seed=4)
    for left, right in zip(start.model.get_weights(), of_train.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_run_killed_after_its_early_stop_does_not_go_on_searching(tmp_path: Path) -> None:
    """The rate is too high to learn by: a best epoch soon, then the patience runs out."""
    data, chosen = tiny_data("order"), settings("order", epochs=12, patience=2, learning_rate=0.5, refit=False)
    whole = train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "whole", "a", 0.0))
    assert len(whole.curves) == whole.best_epoch + 2 < 12
    # The checkpoint of the last epoch is still there: the process ended before the model was written.
    again = train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "whole", "a", 0.0))
    assert again.best_epoch == whole.best_epoch
    assert losses(again.curves) == losses(whole.curves)
    for left, right in zip(again.model.get_weights(), whole.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind", ["time", "order"])
def test_the_model_that_is_returned_has_the_weights_of_the_best_epoch(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights are written down after each epoch; the rate is too high to learn by, so that the last is not the best."""
    monkeypatch.setattr("towers.training.job.settle", lambda model, data: None)
    data, chosen = tiny_data(kind), settings(kind, epochs=4, patience=4, learning_rate=0.5, refit=False)
    seen: dict[int, list[np.ndarray]] = {}
    valid: dict[int, float] = {}

    def note(epoch: Epoch) -> None:
        assert epoch.valid is not None
        seen[epoch.epoch], valid[epoch.epoch] = phase.model.get_weights(), epoch.valid

    phase = _Phase(data, chosen, 5, "search", chosen.epochs, True, None, note)
    trained = phase.fit()
    assert max(seen) == 4
    assert trained.best_epoch == max(valid, key=lambda epoch: (valid[epoch], -epoch)) < 4
    for name in ("best", "last"):
        then = seen[trained.best_epoch if name == "best" else 4]
        same = [np.array_equal(now, old) for now, old in zip(trained.model.get_weights(), then, strict=True)]
        assert all(same) == (name == "best")


def test_features_of_one_name_on_both_sides_learn_each_at_its_own_rate() -> None:
    """The items' content waits for the end (content_rate 0); the users' feature of its name does not."""
    data = tiny_data("time")
    raw = data.schema.model_dump(mode="json")
    raw["features"]["user"][0]["name"] = "category"
    users = {"category": data.users["country"]}
    sizes = {**data.table_sizes, "user": {"category": data.table_sizes["user"]["country"]}}
    schema = DatasetSchema.model_validate(raw)
    data = dataclasses.replace(data, schema=schema, users=users, table_sizes=sizes)
    phase = _Phase(data, settings("time", content_rate=0.0), 1, "search", 1, False, None, None)
    model = phase.model
    tables = model.item_tower.body.tables["category"], model.user_tower.profile.tables["category"]
    before = [table.numpy() for table in tables]
    for batch in phase.sampler.epoch(np.random.default_rng(0)):
        phase.step(tensors_of(batch))
    moved = [not np.array_equal(table.numpy(), old) for table, old in zip(tables, before, strict=True)]
    assert moved == [False, True]


def test_a_temperature_that_is_learned_moves_at_the_full_rate() -> None:
    data, chosen = tiny_data("time"), settings("time", learned_temperature=True, shared_rate=0.001, epochs=1)
    phase = _Phase(data, chosen, 1, "search", 1, False, None, None)
    for batch in phase.sampler.epoch(np.random.default_rng(0)):
        phase.step(tensors_of(batch))
    # Four of Adam's steps of about the rate each.
    assert 0.1 * 0.02 < abs(float(phase.model.temperature) - chosen.temperature) < 4 * 0.02 + 1e-6


def test_held_out_events_that_weigh_nothing_choose_no_epoch() -> None:
    data = tiny_data("set")
    events = dataclasses.replace(data.events, actions=(data.events.splits == 1).astype(np.int8))
    schema = data.schema.model_copy(update={"actions": {"click": 1.0, "impression": 0.0}})
    trained = train(dataclasses.replace(data, schema=schema, events=events), settings("set", epochs=2), seed=1)
    assert [epoch.valid for epoch in trained.curves] == [None, None]
    assert trained.best_epoch == 2


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_the_start_is_made_of_what_was_taken_alone(kind: str) -> None:
    """Impressions of other items next to the same clicks: the items' own rows start as without."""
    data = tiny_data(kind)
    schema = data.schema.model_copy(update={"actions": {"click": 1.0, "impression": 0.0}})
    data = dataclasses.replace(data, schema=schema)
    rng = np.random.default_rng(0)
    shown = np.repeat(np.arange(len(data.events.rows)), 2)
    actions = np.tile(np.array([0, 1], np.int8), len(data.events.rows))
    rows = np.where(actions == 1, rng.integers(0, 9, len(shown)), data.events.rows[shown]).astype(np.int32)
    events = EventLists(
        data.events.offsets * 2, rows, data.events.times[shown] + actions, actions, data.events.splits[shown]
    )
    chosen = settings(kind, initializer="svd").model_copy(update={"negative_actions": {"impression": 1.0}})
    found = []
    for one in (data, dataclasses.replace(data, events=events)):
        model = _Phase(one, chosen, 1, "search", 1, False, None, None).model
        found.append(model.item_tower.body.tables["item"].numpy()[:, : model.item_tower.body.own_dim])
    lengths = [np.linalg.norm(each, axis=1, keepdims=True) for each in found]
    np.testing.assert_allclose(
        found[0] / np.maximum(lengths[0], 1e-9), found[1] / np.maximum(lengths[1], 1e-9), atol=1e-4
    )


def test_a_checkpoint_of_another_schema_is_not_used(tmp_path: Path) -> None:
    data, chosen = tiny_data("order"), settings("order", epochs=1, refit=False)
    train(data, chosen, seed=5, place=CheckpointDirectory(tmp_path / "checkpoint", "one", 0.0))
    seen: list[int] = []
    train(
        data,
        chosen,
        seed=5,
        place=CheckpointDirectory(tmp_path / "checkpoint", "two", 0.0),
        report=lambda e: seen.append(e.epoch),
    )
    assert seen == [1]


def test_a_loss_of_nan_stops_and_names_the_feature() -> None:
    data = tiny_data("time")
    price = data.items["price"].copy()
    price[:, 0] = 1e30
    broken = dataclasses.replace(data, items={**data.items, "price": price})
    with pytest.raises(TrainingError, match=r"epoch 1, step 0: expected a finite loss and gradient, got .*'price'"):
        train(broken, settings("time", content_scale=1e9), seed=1)


def test_a_gradient_of_nan_stops_before_it_reaches_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root of a difference that is 0: a finite loss with an infinite slope."""
    phase = _Phase(tiny_data("set"), settings("set"), 1, "search", 1, False, None, None)
    honest, before = TwoTowers.compute_loss, phase.model.get_weights()

    def steep(model: TwoTowers, inputs: dict[str, object], training: bool = False) -> object:
        loss = honest(model, inputs, training=training)
        return loss + tf.sqrt(loss - loss)

    monkeypatch.setattr(TwoTowers, "compute_loss", steep)
    with pytest.raises(TrainingError, match="expected a finite loss and gradient"):
        phase.fit()
    for left, right in zip(before, phase.model.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)


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


@pytest.mark.parametrize(
    ("kind", "given", "named"),
    [
        ("order", {"window_days": 7.0}, "window_days: only protocol = 'windows' reads it, and protocol is 'positions'"),
        ("order", {"activity_power": 0.5}, "activity_power: only protocol = 'windows' or 'sets' reads it"),
        ("set", {"lookahead": 0.5}, "lookahead: only protocol = 'positions' reads it, and protocol is 'sets' here"),
        ("set", {"min_steps": 40}, "min_steps: only protocol = 'windows' or 'positions' reads it"),
        ("time", {"layers": 3}, "layers: only history_encoder = 'transformer' reads it"),
        ("time", {"content_share": 0.0, "tastes": 7}, "tastes: only content_share above 0 reads it"),
        ("time", {"windov_days": 7.0}, r"windov_days: unknown key: .*; did you mean window_days\?"),
        ("set", {"windov_days": 7.0}, r"windov_days: unknown key: .*; did you mean window_days\?"),
        ("order", {"history_encoder": "mean"}, r"'transformer' with protocol = 'positions' \(got 'mean'\)"),
    ],
)
def test_a_key_that_nothing_reads_is_refused(kind: str, given: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        settings(kind, **given)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_settings_written_and_read_again_are_the_same(kind: str) -> None:
    """What was not given is written out as well: read again it is as if given, and no error."""
    schema = tiny_data(kind).schema
    resolved = settings_for(schema)
    assert settings_for(schema, **resolved.model_dump()) == resolved
    assert settings_for(schema, **json.loads(resolved.model_dump_json())) == resolved
    assert settings_for(schema, **resolved.model_dump(exclude_unset=True)) == resolved


@pytest.mark.parametrize(("kind", "protocol"), [("time", "windows"), ("order", "positions"), ("set", "sets")])
def test_the_data_decide_the_protocol_unless_it_is_given(kind: str, protocol: str) -> None:
    schema = tiny_data(kind).schema
    assert settings_for(schema).protocol == protocol
    # Counts need examples with a moment, which only windows have.
    plain = tuple(feature for feature in schema.features.item if feature.kind != "count")
    features = schema.features.model_copy(update={"item": plain})
    without_counts = schema.model_copy(update={"features": features})
    assert settings_for(without_counts, protocol="sets").protocol == "sets"


def test_users_with_an_id_need_no_history_encoder_where_events_have_no_order() -> None:
    """Their rows are their vectors; without an id, and in other protocols, the history says who a user is."""
    schema = tiny_data("set").schema
    features = schema.features.model_copy(update={"user": ()})
    assert settings_for(schema).history_encoder == "none"
    assert settings_for(schema, history_encoder="attention").history_encoder == "attention"
    assert settings_for(schema.model_copy(update={"features": features})).history_encoder == "mean"
    assert settings_for(schema, protocol="windows").history_encoder == "recency"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"heads": 3}, "heads: expected a divisor of the unit vector's 128 dimensions"),
        ({"item_bias": False}, "heads: expected a divisor of the unit vector's 129 dimensions"),
        ({"embedding_dim": 128}, "heads: expected a divisor of the unit vector's 127 dimensions"),
    ],
)
def test_heads_that_do_not_divide_what_the_recipe_makes_of_the_vector_are_refused(
    given: dict[str, object], named: str
) -> None:
    schema = tiny_data("order").schema
    assert settings_for(schema, history_encoder="transformer") == settings_for(schema)
    with pytest.raises(ConfigError, match=named):
        settings_for(schema, **({"history_encoder": "transformer", **given}))


def test_counts_alone_without_a_bias_are_refused() -> None:
    schema = tiny_data("time").schema
    alone = schema.model_copy(
        update={"features": schema.features.model_copy(update={"item": (CountFeature(name="asked", kind="count"),)})}
    )
    settings_for(alone)
    with pytest.raises(SchemaError, match="expected an item feature besides counts"):
        settings_for(alone, item_bias=False)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"uniform_negatives": 0, "in_batch_negatives": 0}, "expected uniform_negatives or in_batch_negatives above 0"),
        ({"decay_days": ()}, "decay_days"),
        ({"decay_days": (-1.0,)}, "decay_days"),
        ({"negative_actions": {"impression": 0.0}}, r"negative_actions.impression: .*greater than 0"),
    ],
)
def test_settings_without_sense_are_refused(given: dict[str, object], named: str) -> None:
    given |= {"history_encoder": "recency"}
    with pytest.raises(ConfigError, match=named):
        settings_for(tiny_data("set").schema, **given)


def test_a_recipe_fills_only_what_was_not_given() -> None:
    resolved = settings_for(tiny_data("order").schema, learning_rate=0.5)
    assert (resolved.protocol, resolved.history_encoder, resolved.learning_rate) == ("positions", "transformer", 0.5)
    assert resolved.embedding_dim == 129


def test_a_range_is_of_a_known_key_and_of_one_form() -> None:
    with pytest.raises(ValueError, match="give either low and high, or choices"):
        SetsSettings.model_validate({"tune": {"learning_rate": {"low": 0.1}}})
    with pytest.raises(ValueError, match=r"expected keys of \[towers\], got lerning_rate"):
        SetsSettings.model_validate({"tune": {"lerning_rate": {"choices": [1]}}})


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
    report(Epoch("search", 0, 0.0, 0.0, 0.0, 0.125, {"novel.10": 0.125}))
    report(Epoch("search", 1, 2.5, 1.0, 100.0, 0.25, {"novel.10": 0.25}))
    report(Epoch("search", 2, 2.0, 1.0, 110.0, 0.5, {"novel.10": 0.5}))
    files = list((tmp_path / "search").iterdir())
    assert len(files) == 1
    found: dict[str, dict[int, float]] = {}
    for event in tf.compat.v1.train.summary_iterator(str(files[0])):
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    # The start has neither loss nor speed: it is measured, not trained.
    assert found == {
        "loss": {1: 2.5, 2: 2.0},
        "examples_per_second": {1: 100.0, 2: 110.0},
        "novel.10": {0: 0.125, 1: 0.25, 2: 0.5},
    }
