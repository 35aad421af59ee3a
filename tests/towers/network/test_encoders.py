"""Encoders of single features against sums written out in NumPy, and items about which little or nothing is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from pipelines.contracts.encoding import encode_table
from pipelines.contracts.kinds import (
    CategoricalFeature,
    CountFeature,
    EmbeddingFeature,
    IdFeature,
    ListFeature,
    NumericFeature,
    TextFeature,
)
from pipelines.contracts.vocabulary import FittedNumbers
from tests.towers.tiny import tiny_data
from towers.network.encoders import FeatureSum, RandomStream, token_weights
from towers.network.item_tower import ItemTower
from towers.network.model import TwoTowers
from towers.runtime import tf
from towers.settings import PositionsSettings, settings_for
from towers.training.validation_recall import all_vectors

CODES = np.array([[2, 3, 3, 0], [0, 0, 0, 0], [4, 1, 0, 0]], np.int32)
COUNTS = np.array([8, 1, 3], np.int64)


def encoder(feature: Any, **given: Any) -> FeatureSum:
    settings = PositionsSettings(embedding_dim=7, item_bias=True, **given)
    sizes = {feature.name: 5}
    frequencies = {feature.name: COUNTS}
    return FeatureSum(
        [feature], sizes, frequencies, settings, RandomStream(), width=7, content_dim=0, seed=3, name="item_features"
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


def quantile_place(value: float) -> float:
    """Among the quantiles 0, 2, 2, 10, which map to -1, -1/3, 1/3 and 1; the two 2s meet in the middle."""
    if value <= 0 or value >= 10:
        return -1.0 if value <= 0 else 1.0
    if value == 2:
        return 0.0
    return -1 + (2 / 3) * value / 2 if value < 2 else 1 / 3 + (2 / 3) * (value - 2) / 8


@pytest.mark.parametrize(
    ("fitted", "scaled"),
    [
        (FittedNumbers("standard", 3.0, 2.0), lambda value: (value - 3) / 2),
        (FittedNumbers("log", 0.5, 2.0), lambda value: (np.sign(value) * np.log(1 + abs(value)) - 0.5) / 2),
        (FittedNumbers("quantile", quantiles=np.array([0.0, 2.0, 2.0, 10.0])), quantile_place),
    ],
)
def test_a_number_is_scaled_and_mapped_and_a_missing_one_adds_nothing(fitted: FittedNumbers, scaled: Any) -> None:
    raw = [1.0, None, 6.0, 2.0, -4.0, 99.0, float("nan")]
    feature = NumericFeature(name="price", kind="numeric", scale=fitted.scale)
    encoded = encode_table([feature], {"price": fitted}, pa.table({"price": raw}), as_of_us=0)
    body = encoder(feature)
    slope, present = body.maps["price"].numpy()
    expected = [np.zeros(7) if value is None or np.isnan(value) else scaled(value) * slope + present for value in raw]
    np.testing.assert_allclose(body(encoded).numpy(), np.stack(expected), atol=1e-5)


def test_id_dropout_hides_the_asked_share_of_known_ids_in_training_and_none_in_serving() -> None:
    """Of 20,000 draws with a probability of .3 the share is within .3 +- .0032 for two thirds of all seeds; five times
    that is allowed, and .25 or .35 found wrong.
    """
    body = encoder(IdFeature(name="item", kind="id"), id_dropout=0.3)
    body.chance.reset(4)
    table = np.outer(np.arange(5), np.ones(7)).astype(np.float32)
    body.tables["item"].assign(table)
    codes = np.tile(np.array([2, 3, 4, 1, 0], np.int32), 8000)
    found = body({"item": codes}, training=True).numpy()
    known = codes >= 2
    hidden = np.all(found == table[1], axis=1) & known
    np.testing.assert_array_equal(found[known & ~hidden], table[codes[known & ~hidden]])
    np.testing.assert_array_equal(found[~known], table[codes[~known]])
    shares = [hidden[codes == code].mean() for code in (2, 3, 4)]
    assert np.mean(shares) == pytest.approx(0.3, abs=0.016)
    # 8,000 each: a deviation of .0051.
    assert np.ptp(shares) < 0.03
    np.testing.assert_array_equal(body({"item": codes}, training=False).numpy(), table[codes])


@pytest.mark.parametrize("missing", [[], [3, 7]])
def test_a_missing_id_adds_nothing_while_training_either(missing: list[int]) -> None:
    data = tiny_data("set")
    codes = data.items["item"].copy()
    codes[missing] = 0
    data = dataclasses.replace(data, items={**data.items, "item": codes})
    body = TwoTowers(data, settings_for(data.schema, embedding_dim=8), seed=1).item_tower.body
    table = np.random.default_rng(0).normal(size=body.tables["item"].shape).astype(np.float32)
    body.tables["item"].assign(table)
    inputs = {feature.name: data.items[feature.name] for feature in body.features}
    rest = body({**inputs, "item": np.zeros_like(codes)}).numpy()
    expected = rest + np.where(codes[:, None] > 0, table[codes], 0.0)
    np.testing.assert_allclose(body(inputs, training=True).numpy(), expected, atol=1e-5)
    assert body.complete == (set() if missing else {"item"})


def test_a_hashed_id_has_its_buckets_row() -> None:
    """Row 2 + XXH3 of the text, modulo the buckets: ids of one bucket are equal, and a missing one adds nothing."""
    feature = IdFeature(name="item", kind="id", hash_buckets=3)
    fitted = feature.fit([])
    assert fitted.size == 5
    ids = [f"ad-{number}" for number in range(40)]
    encoded = encode_table([feature], {"item": fitted}, pa.table({"item": [*ids, None]}), as_of_us=0)
    body = encoder(feature)
    table = np.random.default_rng(2).normal(size=(5, 7)).astype(np.float32)
    body.tables["item"].assign(table)
    expected = [table[2 + xxhash.xxh3_64(text).intdigest() % 3] for text in ids]
    found = body(encoded).numpy()
    np.testing.assert_allclose(found, np.stack([*expected, np.zeros(7, np.float32)]), atol=1e-7)
    assert len(np.unique(found[:-1], axis=0)) == 3


ALL_NULL: dict[str, Any] = {
    "kind": np.array([0, 2], np.int32),
    "tags": np.array([[0, 0], [2, 0]], np.int32),
    "title": np.array([[0, 0], [3, 0]], np.int32),
    "price": np.array([[0, 0], [0.5, 1]], np.float32),
    "image": np.array([[0, 0], [0.1, 0.2]], np.float32),
}


def tower(features: list[Any], norm: str, counts: tuple[CountFeature, ...] = ()) -> ItemTower:
    settings = PositionsSettings(embedding_dim=7, item_bias=True, item_norm=norm, text_pool="attention")
    sizes = {feature.name: 5 for feature in features if feature.kind in ("id", "categorical", "list", "text")}
    chance = RandomStream()
    body = FeatureSum(features, sizes, {}, settings, chance, width=7, content_dim=0, seed=3, name="item_features")
    return ItemTower(body, counts, 0.5, settings)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("norm", ["unit", "free"])
@pytest.mark.parametrize("with_id", [False, True])
def test_an_item_without_known_features_has_a_vector_of_zeros(norm: str, with_id: bool, training: bool) -> None:
    """The first one; its gradients are finite too."""
    features = [
        CategoricalFeature(name="kind", kind="categorical"),
        ListFeature(name="tags", kind="list", max_length=2),
        TextFeature(name="title", kind="text", max_length=2),
        NumericFeature(name="price", kind="numeric"),
        EmbeddingFeature(name="image", kind="embedding", dim=2),
        *([IdFeature(name="item", kind="id")] if with_id else []),
    ]
    items = tower(features, norm)
    if items.usual_length is not None:
        items.usual_length.assign(1.5)
    inputs = {**ALL_NULL, **({"item": np.array([0, 2], np.int32)} if with_id else {})}
    with tf.GradientTape() as tape:
        found = items(inputs, training=training)
        loss = tf.reduce_sum(found)
    np.testing.assert_array_equal(found.numpy()[0], np.zeros(7))
    assert np.isfinite(found.numpy()).all()
    assert np.abs(found.numpy()[1]).max() > 0
    for gradient in tape.gradient(loss, items.trainable_variables):
        assert gradient is None or np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()


@pytest.mark.parametrize("norm", ["unit", "free"])
def test_an_item_of_counts_alone_is_zeros_and_what_its_counts_say(norm: str) -> None:
    """Slopes change at 1, 2.5 and 4; the bias is exported times the temperature of 1/2."""
    items = tower([], norm, (CountFeature(name="sold", kind="count", window_days=(7, 28)),))
    slopes = np.random.default_rng(5).normal(size=8).astype(np.float32)
    items.demand.assign(slopes[:, None])
    counts = np.array([[0.0, 0.0], [2.0, 3.0], [0.5, 5.0]], np.float32)
    expected = np.zeros((3, 7))
    for row, (week, month) in enumerate(counts):
        basis = [week, month]
        for knot in (1.0, 2.5, 4.0):
            basis += [max(week - knot, 0.0), max(month - knot, 0.0)]
        expected[row, 6] = 0.5 * np.clip(np.dot(basis, slopes), -10, 10)
    np.testing.assert_allclose(items({"sold": counts}).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(items({"sold": counts}, training=True).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["time", "order", "set"])
def test_a_catalogue_of_one_item_has_finite_vectors(kind: str) -> None:
    data = tiny_data(kind)
    events = dataclasses.replace(data.events, rows=np.zeros_like(data.events.rows))
    data = dataclasses.replace(
        data,
        items={name: column[:1] for name, column in data.items.items()},
        events=events,
        item_frequency=np.array([len(events.rows)]),
        frequencies={"item": np.array([len(events.rows)])},
        table_sizes=data.table_sizes | {"item": {"item": 3, "category": 7, "title": 9}},
    )
    model = TwoTowers(data, settings_for(data.schema, embedding_dim=17), 1)
    vectors = all_vectors(model, data, np.arange(5, dtype=np.int32), 2)
    assert vectors.items.shape == (1, 17)
    assert np.isfinite(vectors.items).all()
    assert np.isfinite(vectors.users).all()
    assert np.abs(vectors.items).max() > 0
