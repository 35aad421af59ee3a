"""History encoders against loops in NumPy; attention in blocks against attention at once, in values and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.special import erf

from tests.towers.tiny import tiny_data
from towers.network import history_encoders
from towers.network.encoders import RandomStream, unit
from towers.network.history_encoders import AttentionPool, CausalTransformer, Dropout, PooledHistory, attend_in_blocks
from towers.runtime import tf
from towers.settings import PositionsSettings, settings_for
from towers.training.job import train

Array = npt.NDArray[Any]


def histories(users: int, length: int, dim: int, seed: int = 0) -> tuple[Array, Array, Array]:
    """Item vectors, a mask of real events (the first user has all, the last none), ages in days, oldest first."""
    rng = np.random.default_rng(seed)
    lengths = np.linspace(length, 0, users).astype(int)
    mask = (np.arange(length) < lengths[:, None]).astype(np.float32)
    ages = -np.sort(-rng.uniform(0, 40, (users, length)), axis=1)
    return rng.normal(size=(users, length, dim)).astype(np.float32), mask, ages.astype(np.float32)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


def transformer(length: int, dropout: float = 0.0, layers: int = 1) -> CausalTransformer:
    """Of width 8 with two heads, all weights redrawn: at the start two of its matrices are zeros."""
    settings = PositionsSettings(embedding_dim=8, item_bias=False, heads=2, layers=layers, dropout=dropout)
    layer = CausalTransformer(8, length, settings, RandomStream())
    layer(tf.zeros([1, length, 8]), tf.ones([1, length]))
    rng = np.random.default_rng(6)
    for weights in layer.trainable_variables:
        weights.assign(weights + rng.normal(0, 0.3, weights.shape).astype(np.float32))
    return layer


def at_once(layer: CausalTransformer, length: int) -> CausalTransformer:
    """The same, its attention made of all queries at once."""
    layer.causal = tf.constant(np.tril(np.ones((1, 1, length, length), np.float32)))
    return layer


def learned(layer: CausalTransformer, vectors: Array, mask: Array) -> tuple[Array, list[Array]]:
    """The states at real events, and the gradients of a sum of these by the vectors and all weights."""
    target = np.random.default_rng(1).normal(size=vectors.shape).astype(np.float32)
    given = tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch(given)
        states = layer(given, tf.constant(mask), training=True) * mask[:, :, None]
        loss = tf.reduce_sum(states * target)
    return states.numpy(), [part.numpy() for part in tape.gradient(loss, [given, *layer.trainable_variables])]


def test_attention_pools_are_softmax_means_of_real_events() -> None:
    """Each head's logit of an event: vector times query, less ``log(1 + exp(raw rate))`` a day."""
    vectors, mask, ages = histories(4, 6, 5)
    pool = AttentionPool(5, 2)
    rng = np.random.default_rng(3)
    for weights in pool.trainable_variables:
        weights.assign(rng.normal(size=weights.shape).astype(np.float32))
    queries, mix = pool.queries.numpy(), pool.mix.numpy()
    rates = np.log1p(np.exp(pool.rate.numpy()))
    found = pool(vectors, mask, ages).numpy()
    for user in range(3):
        real, heads = int(mask[user].sum()), []
        for head in range(2):
            weights = softmax(
                np.array([vectors[user, e] @ queries[:, head] - rates[head] * ages[user, e] for e in range(real)])
            )
            assert weights.sum() == pytest.approx(1.0)
            mean = sum((weights[e] * vectors[user, e] for e in range(real)), np.zeros(5))
            heads.append(mean / np.linalg.norm(mean))
        np.testing.assert_allclose(found[user], np.concatenate(heads) @ mix, atol=1e-5)
    np.testing.assert_array_equal(found[3], np.zeros(5))


def test_a_pool_of_equal_events_is_that_event() -> None:
    """The mixing matrix starts as an even share of the identity for each head, so that the means' mean comes out."""
    _, mask, ages = histories(3, 6, 5)
    event = np.array([3.0, 0.0, 4.0, 0.0, 0.0], np.float32)
    found = AttentionPool(5, 2)(np.tile(event, (3, 6, 1)), mask, ages).numpy()
    np.testing.assert_allclose(found[:2], np.tile([0.6, 0.0, 0.8, 0.0, 0.0], (2, 1)), atol=1e-6)


def test_recency_weighted_means_are_those_of_a_loop() -> None:
    """Heads of no decay and of ten days, and actions that were learned to count differently."""
    vectors, mask, ages = histories(4, 6, 5)
    actions = np.random.default_rng(4).integers(0, 3, (4, 6)).astype(np.int32)
    pool = PooledHistory(5, 0, 1, (0.0, 10.0), 3)
    of_actions = np.array([[0.0, 0.5], [-1.0, 0.2], [0.7, -3.0]], np.float32)
    pool.action_weights.assign(of_actions)
    mix = np.random.default_rng(5).normal(size=(10, 5)).astype(np.float32)
    pool.mix.assign(mix)
    found = pool(vectors, mask, ages, actions).numpy()
    for user in range(3):
        heads = []
        for head, rate in enumerate((0.0, 0.1)):
            mean = np.zeros(5)
            for event in range(int(mask[user].sum())):
                weight = np.exp(of_actions[actions[user, event], head] - rate * ages[user, event])
                mean += weight * vectors[user, event]
            heads.append(mean / np.linalg.norm(mean))
        np.testing.assert_allclose(found[user], np.concatenate(heads) @ mix, atol=1e-4)
    np.testing.assert_array_equal(found[3], np.zeros(5))


def normed(states: Array, layer: Any) -> Array:
    """Layer normalisation with epsilon 1e-6."""
    centred = states - states.mean(1, keepdims=True)
    gamma, beta = (weights.numpy() for weights in layer.weights)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6) * gamma + beta


@pytest.mark.parametrize("length", [7, 150])
def test_a_transformer_layer_is_that_of_a_loop(length: int) -> None:
    """7 events at once, 150 in blocks: each reads itself and what is before, with two heads of 4 columns."""
    vectors, mask, _ = histories(3, length, 8)
    layer = transformer(length)
    assert (layer.causal is None) == (length == 150)
    found, (block,) = layer(vectors, mask).numpy(), layer.blocks
    for user in range(2):
        real = int(mask[user].sum())
        states = (vectors[user, :real] + layer.positions.numpy()[:real]) * np.sqrt(8)
        projected = normed(states, block.norms[0]) @ block.project.kernel.numpy()
        attended = np.zeros((real, 8))
        for head in (slice(0, 4), slice(4, 8)):
            queries, keys, values = projected[:, :8][:, head], projected[:, 8:16][:, head], projected[:, 16:][:, head]
            for event in range(real):
                weights = softmax(keys[: event + 1] @ queries[event] / 2)
                attended[event, head] = weights @ values[: event + 1]
        states = states + attended @ block.merge.kernel.numpy() + block.merge.bias.numpy()
        wide = normed(states, block.norms[1]) @ block.wide.kernel.numpy() + block.wide.bias.numpy()
        gelu = wide * (1 + erf(wide / np.sqrt(2))) / 2
        states = states + gelu @ block.narrow.kernel.numpy() + block.narrow.bias.numpy()
        np.testing.assert_allclose(found[user, :real], normed(states, layer.norm), atol=2e-5)


@pytest.mark.parametrize("length", [129, 200, 256, 300])
def test_blocks_give_the_values_and_gradients_of_attention_at_once(length: int) -> None:
    """Equal up to float32's rounding: a thousandth of a percent of the largest entry, over two layers."""
    vectors, mask, _ = histories(3, length, 8)
    layer = transformer(length, layers=2)
    in_blocks = learned(layer, vectors, mask)
    whole = learned(at_once(layer, length), vectors, mask)
    np.testing.assert_allclose(in_blocks[0], whole[0], atol=1e-5)
    for found, expected in zip(in_blocks[1], whole[1], strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
        assert np.abs(expected).max() > 0


@pytest.mark.parametrize("length", [1, 3, 4, 5, 11])
def test_any_length_is_attended_to_in_blocks_of_four(length: int) -> None:
    rng = np.random.default_rng(length)
    queries, keys, values = (rng.normal(size=(2, 3, length, 4)).astype(np.float32) for _ in range(3))
    mask = np.ones((2, length), np.float32)
    mask[1, (length + 1) // 2 :] = 0
    found = attend_in_blocks(*map(tf.constant, (queries, keys, values, mask)), Dropout(0.0), 4).numpy()
    for user, head, event in np.ndindex(2, 3, length):
        seen = np.arange(min(event + 1, int(mask[user].sum())))
        weights = softmax(keys[user, head, seen] @ queries[user, head, event] / 2)
        np.testing.assert_allclose(found[user, head, event], weights @ values[user, head, seen], atol=1e-5)


def test_training_in_blocks_has_the_losses_of_training_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole step of the model, with histories of up to 10 events in blocks of 4."""
    data = tiny_data("order")
    settings = settings_for(
        data.schema,
        embedding_dim=17,
        epochs=2,
        batch_users=32,
        uniform_negatives=30,
        dropout=0.0,
        min_steps=4,
        refit=False,
    )
    losses = {}
    for block in (128, 4):
        monkeypatch.setattr(history_encoders, "BLOCK", block)
        trained = train(data, settings, seed=5)
        assert (trained.model.user_tower.pool.causal is None) == (block == 4)
        losses[block] = [epoch.loss for epoch in trained.curves if epoch.epoch]
    assert len(losses[4]) == 2
    np.testing.assert_allclose(losses[4], losses[128], rtol=1e-5)


@pytest.mark.parametrize("length", [40, 300])
def test_a_later_event_changes_no_earlier_state(length: int) -> None:
    vectors, _, _ = histories(2, length, 8)
    mask, layer = np.ones((2, length), np.float32), transformer(length, layers=2)
    before = layer(vectors, mask).numpy()
    for changed in (length - 1, length // 2, 1):
        other = vectors.copy()
        other[:, changed] *= -1.0
        after = layer(other, mask).numpy()
        np.testing.assert_array_equal(after[:, :changed], before[:, :changed])
        assert np.abs(after[:, changed:] - before[:, changed:]).max(axis=2).min() > 1e-5


@pytest.mark.parametrize("length", [40, 300])
def test_padding_has_no_influence(length: int) -> None:
    vectors, mask, ages = histories(4, length, 8)
    other = np.where(mask[:, :, None] > 0, vectors, np.float32(50.0))
    aged = np.where(mask > 0, ages, np.float32(999.0))
    pool, layer = AttentionPool(8, 2), transformer(length)
    np.testing.assert_array_equal(pool(other, mask, aged).numpy(), pool(vectors, mask, ages).numpy())
    real = mask > 0
    np.testing.assert_array_equal(layer(other, mask).numpy()[real], layer(vectors, mask).numpy()[real])


@pytest.mark.parametrize("length", [40, 300])
@pytest.mark.parametrize("kind", ["recency", "attention", "transformer"])
def test_an_empty_history_has_finite_values_and_gradients(kind: str, length: int) -> None:
    nothing, mask = tf.zeros([2, length, 8]), tf.zeros([2, length])
    layer: Any = {
        "recency": lambda: PooledHistory(8, 4, 3, (0.0, 60.0), 1),
        "attention": lambda: AttentionPool(8, 2),
        "transformer": lambda: transformer(length),
    }[kind]()
    more = {"ages": mask, "actions": tf.zeros([2, length], tf.int32)} if kind == "recency" else {}
    more = {"ages": mask} if kind == "attention" else more
    with tf.GradientTape() as tape:
        tape.watch(nothing)
        found = layer(nothing, mask, **more)
        loss = tf.reduce_sum(unit(found))
    assert np.isfinite(found.numpy()).all()
    for gradient in tape.gradient(loss, [nothing, *layer.trainable_variables]):
        assert gradient is None or np.isfinite(tf.convert_to_tensor(gradient).numpy()).all()


def test_blocks_drop_the_asked_share_of_weights_and_the_same_ones_backward() -> None:
    """All logits are 0, so that query q has q + 1 equal weights: q + 1 times the mean of ones, less the dropped ones.

    The mean is linear in the values: their gradients times them, added up, are the loss, if the same were dropped. Of
    the 45,150 weights a share of .25 +- .002 is dropped for two thirds of all seeds; five times that is allowed.
    """
    queries, keys = tf.zeros([1, 1, 300, 4]), tf.zeros([1, 1, 300, 4])
    values, mask = tf.ones([1, 1, 300, 4]), tf.ones([1, 300])
    chance = RandomStream()
    chance.reset(3)
    seeds = [chance.seed() for _ in range(2)]
    with tf.GradientTape() as tape:
        tape.watch(values)
        found = attend_in_blocks(queries, keys, values, mask, Dropout(0.25, seeds[0]), 128)
        loss = tf.reduce_sum(found * np.arange(1200, dtype=np.float32).reshape(1, 1, 300, 4))
    backward = float(tf.reduce_sum(tape.gradient(loss, values) * values))
    assert backward == pytest.approx(float(loss), rel=1e-5)
    kept = found.numpy()[0, 0, :, 0] * 0.75 * np.arange(1, 301)
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-3)
    assert 1 - kept.sum() / 45_150 == pytest.approx(0.25, abs=0.01)
    # The same seed gives the same, another one another.
    again = [attend_in_blocks(queries, keys, values, mask, Dropout(0.25, seed), 128).numpy() for seed in seeds]
    np.testing.assert_array_equal(again[0], found.numpy())
    assert np.abs(again[1] - again[0]).max() > 0.01


# One head of 2 histories of 4,096 events has 2 * 4096^2 * 4 bytes of logits, 134 MB. A first step on short histories
# pays for what every step needs.
MEMORY = """
import numpy as np
from towers.network.encoders import RandomStream
from towers.network.history_encoders import CausalTransformer
from towers.runtime import tf
from towers.settings import PositionsSettings

settings = PositionsSettings(embedding_dim=8, item_bias=False, heads=1, layers=1)
layer = CausalTransformer(8, 4096, settings, RandomStream())
layer(tf.zeros([1, 2, 8]), tf.ones([1, 2]))

def step_function():
    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, None, 8]), tf.TensorSpec([None, None])])
    def step(vectors, mask):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.square(layer(vectors, mask, training=True)))
        return tape.gradient(loss, layer.trainable_variables)[0]
    return step

def peak():
    # Not ru_maxrss: that begins with the peak of the process that started this one.
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024 // 1_000_000

step = step_function()
step(tf.ones([2, 300, 8]), tf.ones([2, 300])).numpy()
peaks = [peak()]
step(tf.ones([2, 4096, 8]), tf.ones([2, 4096])).numpy()
peaks.append(peak())
layer.causal = tf.constant(np.tril(np.ones((1, 1, 4096, 4096), np.float32)))
step_function()(tf.ones([2, 4096, 8]), tf.ones([2, 4096])).numpy()
print("megabytes", *peaks, peak())
"""


def test_a_training_step_on_long_histories_holds_no_square_of_their_length() -> None:
    environment = {**os.environ, "TF_USE_LEGACY_KERAS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", MEMORY], env=environment, capture_output=True, text=True, check=True)
    start, in_blocks, whole = map(int, run.stdout.split("megabytes")[1].split())
    assert in_blocks - start < 134
    # The bound tells: at once, the same step holds several squares.
    assert whole - start > 2 * 134
