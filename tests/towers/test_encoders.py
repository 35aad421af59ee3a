"""Encoders of single features against sums written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.schema import EmbeddingFeature, ListFeature, TextFeature
from towers.encoders import Chance, FeatureSum, token_weights
from towers.runtime import tf
from towers.settings import TowersSettings

CODES = np.array([[2, 3, 3, 0], [0, 0, 0, 0], [4, 1, 0, 0]], np.int32)
COUNTS = np.array([8, 1, 3], np.int64)


def encoder(feature: Any, **given: Any) -> FeatureSum:
    settings = TowersSettings(embedding_dim=7, item_bias=True, **given)
    sizes = {feature.name: 5}
    frequencies = {feature.name: COUNTS}
    return FeatureSum(
        [feature], sizes, frequencies, settings, Chance(), width=7, content_dim=0, seed=3, name="item_features"
    )


@pytest.mark.parametrize("training", [False, True])
def test_a_list_is_the_mean_of_its_codes_rows(training: bool) -> None:
    feature = ListFeature(name="tags", kind="list")
    body = encoder(feature)
    table = body.tables["tags"].numpy()
    expected = np.stack([(table[2] + 2 * table[3]) / 3, np.zeros(7), (table[4] + table[1]) / 2])
    np.testing.assert_allclose(body({"tags": CODES}, training=training).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_a_text_weighs_tokens_by_rarity_and_by_what_it_learned(training: bool) -> None:
    feature = TextFeature(name="title", kind="text")
    body = encoder(feature, text_pool="attention")
    logits = np.array([0.0, 0.1, -0.5, 1.0, 2.0], np.float32)
    body.token_logits["title"].assign(logits)
    table, weights = body.tables["title"].numpy(), token_weights(5, COUNTS) * np.exp(logits)
    first = (weights[2] * table[2] + 2 * weights[3] * table[3]) / (weights[2] + 2 * weights[3])
    last = (weights[4] * table[4] + weights[1] * table[1]) / (weights[4] + weights[1])
    found = body({"title": CODES}, training=training).numpy()
    np.testing.assert_allclose(found, np.stack([first, np.zeros(7), last]), atol=1e-6)


def test_training_and_serving_have_the_same_gradients() -> None:
    """In training a padded list is added up another way."""
    body = encoder(TextFeature(name="title", kind="text"), text_pool="attention")
    target = tf.constant(np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32))
    found = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(body({"title": CODES}, training=training) * target)
        variables = [body.tables["title"], body.token_logits["title"]]
        found.append([tf.convert_to_tensor(g).numpy() for g in tape.gradient(loss, variables)])
    for served, trained in zip(*found, strict=True):
        np.testing.assert_allclose(trained, served, atol=1e-6)
        assert np.abs(served).max() > 0


def test_an_outside_vector_goes_through_its_gate_and_a_missing_one_adds_nothing() -> None:
    body = encoder(EmbeddingFeature(name="image", kind="embedding", dim=2))
    gate = np.random.default_rng(1).normal(size=(2, 7)).astype(np.float32)
    body.gates["image"].assign(gate)
    vectors = np.array([[0.5, -1.0], [0.0, 0.0]], np.float32)
    mapped = vectors @ body.maps["image"].numpy()
    expected = mapped / (1 + np.exp(-vectors @ gate))
    np.testing.assert_allclose(body({"image": vectors}).numpy(), expected, atol=1e-6)
    assert np.all(expected[1] == 0)
