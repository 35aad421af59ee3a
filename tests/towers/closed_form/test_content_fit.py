"""After training, content predicts the known ads' vectors: these stay, and new ads are near similar ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.contracts.schema import DatasetSchema
from tests.towers.tiny import ITEMS, tiny_data
from towers.closed_form.content_fit import settle
from towers.data.sampler import Sampler
from towers.data.training_data import TrainingData
from towers.network.model import TwoTowers, tensors_of
from towers.runtime import tf
from towers.settings import settings_for
from towers.training import job as training
from towers.training.job import optimizer_of

NEW = 12  # the first 12 ads have no id of their own


def with_looks(kind: str = "time", *, new: int = 0) -> TrainingData:
    """The tiny market, its items with a vector made elsewhere and the first ``new`` of them without an id."""
    data = tiny_data(kind)
    raw = data.schema.model_dump(mode="json")
    raw["features"]["item"].append({"name": "look", "kind": "embedding", "dim": 3})
    look = np.random.default_rng(1).normal(size=(data.num_items, 3)).astype(np.float32)
    ids = np.where(np.arange(data.num_items) < new, 1, data.items["item"]).astype(np.int32)
    items = {**data.items, "item": ids, "look": look}
    return dataclasses.replace(data, schema=DatasetSchema.model_validate(raw), items=items)


def towers_of(data: TrainingData, **given: Any) -> TwoTowers:
    """Built, with weights at random; rows of unknown ids and of content alone as large as all others."""
    settings = settings_for(data.schema, **({"embedding_dim": 17, "content_scale": 1.0} | given))
    model = TwoTowers(data, settings, 1)
    vectors_of(model, data)
    rng = np.random.default_rng(5)
    for table in model.item_tower.body.tables.values():
        table.assign(rng.normal(size=tuple(table.shape)))
    for weights in (*model.item_tower.body.maps.values(), *model.item_tower.body.gates.values()):
        weights.assign(rng.normal(size=tuple(weights.shape)))
    return model


def vectors_of(model: TwoTowers, data: TrainingData) -> npt.NDArray[np.float32]:
    rows = np.arange(data.num_items, dtype=np.int32)
    windows = sum(len(f.window_days) for f in data.schema.features.item if f.kind == "count")
    vectors: npt.NDArray[np.float32] = model.item_vectors(rows, np.zeros((len(rows), windows), np.float32)).numpy()
    return vectors


@pytest.mark.parametrize("kind", ["time", "order", "set"])
@pytest.mark.parametrize(
    "given", [{}, {"content_share": 0.25}, {"text_pool": "attention"}, {"item_bias": False, "embedding_dim": 16}]
)
def test_known_ads_keep_their_vectors(kind: str, given: dict[str, Any]) -> None:
    """Whatever the kinds of data and of towers; those of new ads change."""
    data = with_looks(kind, new=NEW)
    model = towers_of(data, **given)
    before = vectors_of(model, data)
    settle(model, data)
    after = vectors_of(model, data)
    np.testing.assert_allclose(after[NEW:], before[NEW:], atol=1e-5)
    assert np.abs(after[:NEW] - before[:NEW]).max() > 0.1


def test_content_becomes_the_shrunken_mean_of_directions() -> None:
    """Category alone next to the id, against loops: round one fits it, round two what shrinkage left."""
    data = tiny_data("order")
    kept = [feature for feature in data.schema.features.item if feature.name in ("item", "category")]
    features = data.schema.features.model_copy(update={"item": tuple(kept)})
    ids = np.where(np.arange(ITEMS) < NEW, 1, data.items["item"]).astype(np.int32)
    data = dataclasses.replace(
        data, schema=data.schema.model_copy(update={"features": features}), items={**data.items, "item": ids}
    )
    model = towers_of(data, embedding_dim=81)
    raw = model.item_tower.body({name: data.items[name] for name in ("item", "category")}).numpy()
    lengths = np.linalg.norm(raw[:, :80], axis=1)
    directions = raw[:, :80] / lengths[:, None] * np.sqrt(np.mean(lengths[NEW:] ** 2))
    settle(model, data)
    tables = {name: table.numpy() for name, table in model.item_tower.body.tables.items()}
    for code in range(2, 7):
        members = [item for item in range(NEW, ITEMS) if data.items["category"][item] == code]
        mean = sum(directions[item] for item in members) / (len(members) + 1)
        left = sum(directions[item] - mean for item in members) / (len(members) + 1)
        np.testing.assert_allclose(tables["category"][code, :80], mean + left, atol=1e-5)
    np.testing.assert_allclose(tables["category"][:, 80], 0.0)
    np.testing.assert_allclose(tables["item"][1, :80], 0.0)
    assert tables["item"][1, 80] == pytest.approx(raw[NEW:, 80].mean(), abs=1e-5)


def test_a_new_ad_lies_among_its_like() -> None:
    """Where rows of their own carry all that known ads of a category have in common, as after much training."""
    data = with_looks("order", new=NEW)
    model = towers_of(data)
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(7, 17)) * 4
    rows = rng.normal(size=(ITEMS + 2, 17))
    rows[data.items["item"]] += centres[data.items["category"]]
    model.item_tower.body.tables["item"].assign(rows)

    def likeness() -> float:
        """Mean cosine of the new ads and the known ads' mean of their category."""
        vectors = vectors_of(model, data)[:, :16]
        known = data.items["category"][NEW:]
        means = np.stack([vectors[NEW:][known == category].mean(0) for category in range(2, 7)])
        own = means[data.items["category"][:NEW] - 2]
        cosines = (vectors[:NEW] * own).sum(1) / np.linalg.norm(own, axis=1) / np.linalg.norm(vectors[:NEW], axis=1)
        return float(cosines.mean())

    before = likeness()
    settle(model, data)
    assert before < 0.5
    assert likeness() > 0.8


@pytest.mark.parametrize("case", ["hashed", "no id", "two ids", "shared id"])
def test_where_ads_have_no_rows_of_their_own_nothing_is_fitted(case: str) -> None:
    """A hashed id has no row of unknown ones; without an id content has learned all; a shared row can take no rest."""
    data = with_looks()
    raw = data.schema.model_dump(mode="json")
    features = raw["features"]["item"]
    if case == "hashed":
        features[0]["hash_buckets"] = 200
    elif case == "no id":
        features[0]["kind"] = "categorical"
    elif case == "two ids":
        features[1] = {"name": "category", "kind": "id"}
    data = dataclasses.replace(data, schema=DatasetSchema.model_validate(raw))
    if case == "shared id":
        data.items["item"][1] = data.items["item"][0]
    model = towers_of(data)
    before = [weights.numpy() for weights in model.item_tower.variables]
    settle(model, data)
    for old, new in zip(before, model.item_tower.variables, strict=True):
        np.testing.assert_array_equal(old, new.numpy())


def test_outside_vectors_are_fitted() -> None:
    """Ads that differ by where their outside vectors point, and by nothing else that content tells."""
    data = with_looks("order", new=NEW)
    kept = [feature for feature in data.schema.features.item if feature.name in ("item", "look")]
    features = data.schema.features.model_copy(update={"item": tuple(kept)})
    data = dataclasses.replace(data, schema=data.schema.model_copy(update={"features": features}))
    model = towers_of(data)
    rng = np.random.default_rng(3)
    directions = data.items["look"] @ rng.normal(size=(3, 17))
    rows = rng.normal(size=(ITEMS + 2, 17)) * 0.1
    rows[data.items["item"]] += 5 * directions
    model.item_tower.body.tables["item"].assign(rows)
    settle(model, data)
    new = vectors_of(model, data)[:NEW, :16]
    own = directions[:NEW, :16] / np.linalg.norm(directions[:NEW, :16], axis=1)[:, None]
    assert (new * own).sum(1).min() > 0.8


def test_what_is_trained_is_settled() -> None:
    """The model that training returns cannot be settled further."""
    data = with_looks(new=NEW)
    settings = settings_for(data.schema, embedding_dim=17, epochs=1, refit=False)
    model = training.train(data, settings, seed=1).model
    before = vectors_of(model, data)
    assert float(model.item_tower.usual_length) > 0
    settle(model, data)
    np.testing.assert_allclose(vectors_of(model, data), before, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "hashed", "moves"), [({}, False, False), ({"content_rate": 1.0}, False, True), ({}, True, True)]
)
def test_content_that_is_fitted_in_the_end_keeps_still(given: dict[str, object], *, hashed: bool, moves: bool) -> None:
    """By the recipe for times; where nothing will be fitted, content has to be learned."""
    data = with_looks()
    if hashed:
        raw = data.schema.model_dump(mode="json")
        raw["features"]["item"][0]["hash_buckets"] = 200
        data = dataclasses.replace(data, schema=DatasetSchema.model_validate(raw))
    settings = settings_for(data.schema, **({"embedding_dim": 17, **given}))
    model = TwoTowers(data, settings, 1)
    batch = tensors_of(next(Sampler(data, data.events.before(1), settings).epoch(np.random.default_rng(0))))
    model.compute_loss(batch)
    body = model.item_tower.body
    before = {name: weights.numpy() for name, weights in {**body.tables, **body.maps}.items()}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    variables = model.trainable_variables
    optimizer_of(model, data, settings, 1).apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    for name, weights in {**body.tables, **body.maps}.items():
        same = np.array_equal(weights.numpy(), before[name])
        assert same == (name != "item" and not moves), name


def test_an_ad_without_an_id_of_its_own_is_not_longer_for_its_content() -> None:
    """In the columns that an id has a part in, its length is the geometric mean of what content gives it and the known
    ads' usual one; its direction stays, and so do the columns that content fills alone.
    """
    data = with_looks(new=NEW)
    model = towers_of(data)
    settle(model, data)
    tower = model.item_tower
    inputs = {**data.items, "sold": np.zeros((data.num_items, 2), np.float32)}
    vectors, body = tower(inputs).numpy(), tower.body(data.items).numpy()[:NEW]
    np.testing.assert_allclose(vectors[:NEW, 8:16], body[:, 8:16], atol=1e-5)
    new, known, body = vectors[:NEW, :8], vectors[NEW:, :8], body[:, :8]
    length = np.linalg.norm(body, axis=1)
    usual = np.sqrt(np.mean(np.square(known).sum(1)))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), np.sqrt(length * usual), rtol=1e-3)
    np.testing.assert_allclose(new / np.linalg.norm(new, axis=1)[:, None], body / length[:, None], atol=1e-5)


def test_an_ad_without_an_id_has_the_known_ads_mean_bias_and_lift() -> None:
    """Nobody could have taken it: that its counts are 0 says nothing, where for a known ad it says much."""
    data = with_looks(new=NEW)
    sold = np.random.default_rng(2).uniform(0, 3, (data.num_items, 2)).astype(np.float32)
    sold[:NEW] = 0.0
    data = dataclasses.replace(data, items={**data.items, "sold": sold})
    model = towers_of(data)
    demand = model.item_tower.demand
    demand.assign(np.linspace(-0.2, 0.5, demand.shape[0])[:, None])
    settle(model, data)
    biases = model.item_tower(data.items).numpy()[:, 16]
    np.testing.assert_allclose(biases[:NEW], biases[NEW:].mean(), atol=1e-4)
