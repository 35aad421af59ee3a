"""A user's history to one vector: weighted means, attention pools, a causal transformer.

Each reads item vectors ``[batch, history, dim]`` with ``mask [batch, history]``, 1 where there is an event. Memory
grows with the length of a history, not with its square (``attend_in_blocks``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from towers.network.encoders import RandomStream, RowNorm, drop_by, unit
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings

# Number of queries that attend at a time in longer histories; up to this length, the square of it needs little memory.
BLOCK = 128


class PooledHistory(tf_keras.layers.Layer):
    """``[batch, history, dim]`` item vectors to ``[batch, dim]``: several weighted means, mixed, and tastes.

    A head's weight for an event is ``exp(action - rate * age_days)``; rates and the actions' weights are learned. Each
    mean of the first ``dim - content_dim`` columns is made a unit vector, then goes through its own matrix, which
    starts at the identity (an even share of it): at the start a user is the recency-weighted mean of the history.

    The content columns are summed instead, with the first head's weights, and go through a hidden layer of ``tastes``
    units ``log(1 + max(0, .))``: each can represent a value of a content feature and count how often a user had it.
    With the log, a value chosen once still counts next to one chosen a hundred times.
    """

    def __init__(
        self,
        dim: int,
        content_dim: int,
        tastes: int,
        decay_days: Sequence[float],
        actions: int,
        name: str = "history",
    ) -> None:
        super().__init__(name=name)
        own = dim - content_dim
        self.parts = [own, content_dim]
        self.decay_days = tuple(decay_days)
        self.heads = len(decay_days)
        rates = np.array([0.0 if days == 0 else 1.0 / days for days in decay_days], np.float32)
        # softplus keeps a rate positive; 1e-6 per day means none.
        raw = np.log(np.expm1(np.maximum(rates, 1e-6).astype(np.float64))).astype(np.float32)
        self.raw_rates = self.add_weight("raw_rates", (self.heads,), initializer=tf.constant_initializer(raw))
        self.action_weights = self.add_weight("action_weights", (actions, self.heads), initializer="zeros")
        start = np.tile(np.eye(own, dtype=np.float32) / self.heads, (self.heads, 1))
        self.mix = self.add_weight("mix", (self.heads * own, own), initializer=tf.constant_initializer(start))
        self.to_tastes: Any = None
        if content_dim:
            self.to_tastes = self.add_weight("to_tastes", (content_dim, tastes), initializer=RowNorm(1.0, tastes, 11))
            self.of_tastes = self.add_weight(
                "of_tastes", (tastes, content_dim), initializer=RowNorm(0.1, content_dim, 13)
            )

    def call(self, vectors: Any, mask: Any, ages: Any, actions: Any) -> Any:
        """The mixed means and the tastes; a user without history gets zeros."""
        rates = tf.nn.softplus(self.raw_rates)
        logits = tf.gather(self.action_weights, actions) - ages[:, :, None] * rates
        weights = tf.exp(logits) * mask[:, :, None]
        own, content = tf.split(tf.matmul(weights, vectors, transpose_a=True), self.parts, axis=2)
        mixed = tf.matmul(tf.reshape(unit(own), [-1, self.heads * own.shape[-1]]), self.mix)
        if self.to_tastes is None:
            return mixed
        tastes = tf.math.log(1.0 + tf.nn.relu(tf.matmul(content[:, 0], self.to_tastes)))
        return tf.concat([mixed, tf.matmul(tastes, self.of_tastes)], 1)


class AttentionPool(tf_keras.layers.Layer):
    """``[batch, history, dim]`` item vectors to ``[batch, dim]``: a softmax over the history for learned queries."""

    def __init__(self, dim: int, heads: int, name: str = "history") -> None:
        super().__init__(name=name)
        self.heads = heads
        self.queries = self.add_weight("queries", (dim, heads), initializer=RowNorm(1.0, heads, 5))
        self.rate = self.add_weight("raw_rates", (heads,), initializer=tf.constant_initializer(-4.0))
        start = np.tile(np.eye(dim, dtype=np.float32) / heads, (heads, 1))
        self.mix = self.add_weight("mix", (heads * dim, dim), initializer=tf.constant_initializer(start))

    def call(self, vectors: Any, mask: Any, ages: Any) -> Any:
        """The mixed pools; a user without history gets zeros."""
        logits = tf.matmul(vectors, tf.tile(self.queries[None], [tf.shape(vectors)[0], 1, 1]))
        logits -= ages[:, :, None] * tf.nn.softplus(self.rate)
        weights = tf.nn.softmax(logits + (mask[:, :, None] - 1.0) * 1e9, axis=1) * mask[:, :, None]
        pooled = unit(tf.matmul(weights, vectors, transpose_a=True))
        return tf.matmul(tf.reshape(pooled, [-1, self.heads * pooled.shape[-1]]), self.mix)


@dataclass(frozen=True)
class Dropout:
    """Dropout of attention weights: a ``share``, drawn from ``seed [2] int32``; None for no dropout."""

    share: float
    seed: Any = None

    def of(self, weights: Any, block: Any) -> Any:
        """``[batch, heads, block, keys]`` weights of the ``block``-th queries after dropout, always the same."""
        if self.seed is None:
            return weights
        return drop_by(self.seed + tf.stack([0, block]), weights, self.share)


def attend_in_blocks(queries: Any, keys: Any, values: Any, mask: Any, dropout: Dropout, block: int) -> Any:
    """Causal attention that holds the weights of ``block`` queries at a time, forward and backward.

    Rabe & Staats 2021, "Self-attention does not need O(n^2) memory": exact, over chunks of queries, whose weights the
    backward pass recomputes. Unlike there, keys are not chunked: a chunk reads all keys up to its last query, so that
    no softmax has to be combined from parts. There is no second derivative.

    Args:
        queries, keys, values: ``[batch, heads, history, size] float32``.
        mask: ``[batch, history] float32``, 1 where there is a key.
        dropout: of the weights.
        block: queries at a time, 1 or more; the history may have any length.

    Returns:
        ``[batch, heads, history, size] float32``: each query's weighted mean of the values it sees. The result
        of a query that sees no event is finite but meaningless.
    """
    length = mask.shape[1] if mask.shape[1] is not None else tf.shape(mask)[1]
    blocks = (length + block - 1) // block

    def of_block(place: Any, some: Any, keys: Any, values: Any) -> Any:
        stop = tf.minimum((place + 1) * block, length)
        earlier = place * block + tf.range(block)[:, None] >= tf.range(stop)
        allowed = tf.cast(earlier, some.dtype) * mask[:, None, None, :stop]
        logits = tf.matmul(some, keys[:, :, :stop], transpose_b=True) * (some.shape[-1] ** -0.5)
        weights = dropout.of(tf.nn.softmax(logits + (allowed - 1.0) * 1e9), place)
        return tf.matmul(weights, values[:, :, :stop])

    @tf.custom_gradient
    def attend(queries: Any, keys: Any, values: Any) -> Any:
        split = _Blocks(queries, blocks, block)

        def step(place: Any, found: Any) -> Any:
            return place + 1, found.write(place, of_block(place, split.at(place), keys, values))

        _, found = tf.while_loop(lambda place, _: place < blocks, step, (0, split.array()), parallel_iterations=1)

        def gradient(upstream: Any) -> Any:
            given = _Blocks(upstream, blocks, block)

            def back(place: Any, of_queries: Any, of_keys: Any, of_values: Any) -> Any:
                parts = [split.at(place), keys, values]
                with tf.GradientTape() as tape:
                    tape.watch(parts)
                    mixed = of_block(place, *parts)
                learned = tape.gradient(mixed, parts, given.at(place))
                return place + 1, of_queries.write(place, learned[0]), of_keys + learned[1], of_values + learned[2]

            start = (0, split.array(), tf.zeros_like(keys), tf.zeros_like(values))
            done = tf.while_loop(lambda place, *_: place < blocks, back, start, parallel_iterations=1)
            return split.joined(done[1]), done[2], done[3]

        return split.joined(found), gradient

    return attend(queries, keys, values)


class _Blocks:
    """``[batch, heads, history, size]`` in ``blocks`` of equal length, the last one padded with zeros."""

    def __init__(self, whole: Any, blocks: Any, block: int) -> None:
        self.blocks, self.block = blocks, block
        self.length = tf.shape(whole)[2]
        self.padded = tf.pad(whole, [[0, 0], [0, 0], [0, blocks * block - self.length], [0, 0]])
        self.shape = [whole.shape[0], whole.shape[1], block, whole.shape[3]]

    def at(self, place: Any) -> Any:
        """``[batch, heads, block, size]``."""
        some = self.padded[:, :, place * self.block : (place + 1) * self.block]
        some.set_shape(self.shape)
        return some

    def array(self) -> Any:
        """An empty place for each block."""
        return tf.TensorArray(self.padded.dtype, self.blocks, element_shape=self.shape)

    def joined(self, array: Any) -> Any:
        """The blocks of an ``array`` concatenated, without the padding."""
        stacked = tf.transpose(array.stack(), [1, 2, 0, 3, 4])
        whole = tf.reshape(stacked, [-1, self.shape[1], self.blocks * self.block, self.shape[3]])
        return whole[:, :, : self.length]


class Block(tf_keras.layers.Layer):
    """One pre-norm transformer layer: causal self-attention, then a feed-forward of four times the width."""

    def __init__(self, dim: int, heads: int, dropout: float, chance: RandomStream, name: str) -> None:
        super().__init__(name=name)
        self.heads, self.dim, self.dropout, self.chance = heads, dim, dropout, chance
        self.norms = [tf_keras.layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.project = tf_keras.layers.Dense(3 * dim, use_bias=False)
        self.merge = tf_keras.layers.Dense(dim, kernel_initializer="zeros")
        self.wide = tf_keras.layers.Dense(4 * dim, activation="gelu")
        self.narrow = tf_keras.layers.Dense(dim, kernel_initializer="zeros")

    def call(self, states: Any, mask: Any, allowed: Any = None, training: bool = False) -> Any:
        """``[batch, history, dim]`` to the same; ``allowed [batch, 1, history, history]`` is 1 where a may see b.

        Without ``allowed``, attention is computed in blocks, from ``mask`` alone.
        """
        attended = self.merge(self._attend(self.norms[0](states), mask, allowed, training))
        states += self.chance.drop(attended, self.dropout, training)
        return states + self.chance.drop(self.narrow(self.wide(self.norms[1](states))), self.dropout, training)

    def _attend(self, states: Any, mask: Any, allowed: Any, training: bool) -> Any:
        length, size = tf.shape(states)[1], self.dim // self.heads
        parts = tf.reshape(self.project(states), [-1, length, 3 * self.heads, size])
        queries, keys, values = tf.split(tf.transpose(parts, [0, 2, 1, 3]), 3, axis=1)
        if allowed is None:
            seed = self.chance.seed() if training and self.dropout > 0 else None
            mixed = attend_in_blocks(queries, keys, values, mask, Dropout(self.dropout, seed), BLOCK)
        else:
            logits = tf.matmul(queries, keys, transpose_b=True) * (size**-0.5) + (allowed - 1.0) * 1e9
            weights = self.chance.drop(tf.nn.softmax(logits), self.dropout, training)
            mixed = tf.matmul(weights, values)
        return tf.reshape(tf.transpose(mixed, [0, 2, 1, 3]), [-1, length, self.dim])


class CausalTransformer(tf_keras.layers.Layer):
    """``[batch, history, dim]`` item vectors to ``[batch, history, dim]`` states: each sees itself and those before.

    After SASRec (Kang & McAuley 2018), pre-norm. Positions are learned and counted from the oldest event. If the
    longest ``history`` has more events than ``BLOCK``, attention is computed in blocks.
    """

    def __init__(
        self, dim: int, history: int, settings: TowersSettings, chance: RandomStream, name: str = "history"
    ) -> None:
        super().__init__(name=name)
        self.dropout, self.chance = settings.dropout, chance
        self.positions = self.add_weight("positions", (history, dim), initializer=RowNorm(0.2, dim, 7))
        self.blocks = [
            Block(dim, settings.heads, settings.dropout, chance, f"block_{place}") for place in range(settings.layers)
        ]
        self.norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.causal: Any = None
        if history <= BLOCK:
            self.causal = tf.constant(np.tril(np.ones((1, 1, history, history), np.float32)))
        # Unit vectors have entries of about dim ** -0.5; the layers want about 1.
        self.scale = float(dim) ** 0.5

    def call(self, vectors: Any, mask: Any, training: bool = False) -> Any:
        """The states; those at padding are meaningless."""
        length = vectors.shape[1] if vectors.shape[1] is not None else tf.shape(vectors)[1]
        placed = vectors + self.positions[None, :length]
        states = self.chance.drop(placed * self.scale, self.dropout, training)
        allowed = None
        if self.causal is not None:
            allowed = self.causal[:, :, :length, :length] * mask[:, None, None, :]
        for block in self.blocks:
            states = block(states, mask, allowed, training=training)
        return self.norm(states)
