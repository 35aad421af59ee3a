"""The closed-form start: what content explains lies in its tables, where a new ad finds it, and stays there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from pipelines.schema import DatasetSchema
from tests.towers.tiny import tiny_data
from towers.inputs import TrainingData
from towers.model import TwoTowers, tensors_of
from towers.runtime import tf
from towers.sampling import Sampler
from towers.settings import TowersSettings
from towers.starting import start_from_svd
from towers.training import optimizer_of


def with_looks() -> TrainingData:
    """The tiny market by time, its items with a vector made elsewhere."""
    data = tiny_data("time")
    raw = data.schema.model_dump(mode="json")
    raw["features"]["item"].append({"name": "look", "kind": "embedding", "dim": 3})
    look = np.random.default_rng(1).normal(size=(data.num_items, 3)).astype(np.float32)
    return dataclasses.replace(data, schema=DatasetSchema.model_validate(raw), items={**data.items, "look": look})


def test_the_start_is_the_factors_whatever_content_explains() -> None:
    """With content to explain them by and without, the vectors of known items are the same."""
    data = with_looks()
    alone = [feature for feature in data.schema.features.item if feature.kind in ("id", "count")]
    features = data.schema.features.model_copy(update={"item": tuple(alone)})
    own = dataclasses.replace(data, schema=data.schema.model_copy(update={"features": features}))
    vectors = []
    for each in (data, own):
        settings = TowersSettings(embedding_dim=17, content_share=0.0, content_scale=0.0).resolved(each.schema)
        model = TwoTowers(each, settings, 1)
        start_from_svd(model, each, each.events.before(1))
        rows = np.arange(each.num_items, dtype=np.int32)
        counts = np.zeros((each.num_items, 2), np.float32)
        vectors.append(model.item_vectors(rows, counts).numpy()[:, :16])
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-4)


@pytest.mark.parametrize(
    ("given", "moves"), [({}, False), ({"content_rate": 1.0}, True), ({"initializer": "random"}, True)]
)
def test_fitted_content_keeps_still(given: dict[str, object], moves: bool) -> None:
    """By the recipe for times; where nothing was fitted, content has to be learned, and outside vectors always."""
    data = with_looks()
    settings = TowersSettings.model_validate({"embedding_dim": 17, **given}).resolved(data.schema)
    events = data.events.before(1)
    model = TwoTowers(data, settings, 1)
    batch = tensors_of(next(Sampler(data, events, settings).epoch(np.random.default_rng(0))))
    model.compute_loss(batch)
    if settings.initializer == "svd":
        start_from_svd(model, data, events)
    body = model.item_tower.body
    before = {name: weights.numpy() for name, weights in {**body.tables, **body.maps}.items()}
    with tf.GradientTape() as tape:
        loss = model.compute_loss(batch, training=True)
    variables = model.trainable_variables
    optimizer_of(model, settings, 1).apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
    for name, weights in {**body.tables, **body.maps}.items():
        same = np.array_equal(weights.numpy(), before[name])
        assert same == (name not in ("item", "look") and not moves), name


def test_an_ad_without_an_id_of_its_own_is_not_longer_for_its_content() -> None:
    """Its length is the geometric mean of what content gives it and the known ads' median; its direction stays."""
    data = with_looks()
    settings = TowersSettings(embedding_dim=17).resolved(data.schema)
    model = TwoTowers(data, settings, 1)
    start_from_svd(model, data, data.events.before(1))
    tower, counts = model.item_tower, {"sold": np.zeros((data.num_items, 2), np.float32)}
    tower.demand.assign(np.zeros(tower.demand.shape, np.float32))
    known = tower({**data.items, **counts}).numpy()[:, :16]
    codes = np.asarray(data.items["item"]) * 0 + 1
    body = tower.body({**data.items, "item": codes}).numpy()[:, :16]
    new = tower({**data.items, **counts, "item": codes}).numpy()[:, :16]
    length = np.linalg.norm(body, axis=1)
    usual = np.median(np.linalg.norm(known, axis=1))
    np.testing.assert_allclose(np.linalg.norm(new, axis=1), np.sqrt(length * usual), rtol=0.05)
    np.testing.assert_allclose(new / np.linalg.norm(new, axis=1)[:, None], body / length[:, None], atol=1e-5)
