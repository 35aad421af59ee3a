"""From encoded features and histories to vectors: the layers of the two towers.

Every layer maps a batch to ``[batch, dim]``; a missing value (code 0, present 0, an embedding of zeros) adds
nothing. An item vector is ``[unit vector, bias]``: the last dimension, where the settings ask for it, is the item's
learned bias; the user's is 1, so that a score stays one dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.schema import CountFeature, Feature
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings

_EPSILON = 1e-12
# Counts make a vector at most so many times (e to this power) longer or shorter.
MAX_LIFT = 3.0
# Where the effect of a count may change its slope, in log1p: about 2, 11 and 54 events.
KNOTS = (1.0, 2.5, 4.0)


def unit(vectors: Any) -> Any:
    """``[..., dim]`` to rows of length 1; a zero row stays zero."""
    return vectors * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(vectors), -1, keepdims=True), _EPSILON))


class RowNorm(tf_keras.initializers.Initializer):
    """Rows of about the norm ``scale`` in the first ``dim`` columns, ``rest`` (``[rows]``, or 0) in the others.

    The first ``empty`` rows start at 0: an unknown id says nothing until it has learned to.
    """

    def __init__(
        self, scale: float, dim: int, seed: int, rest: npt.NDArray[np.float32] | None = None, empty: int = 0
    ) -> None:
        self.scale, self.dim, self.seed, self.rest = scale, dim, seed, rest
        self.empty = empty

    def __call__(self, shape: Any, dtype: Any = None, **_: Any) -> Any:
        """The initial table of ``shape``."""
        generator = np.random.default_rng(self.seed)
        table = np.zeros(tuple(shape), np.float32)
        table[:, : self.dim] = generator.normal(0.0, self.scale / np.sqrt(self.dim), (shape[0], self.dim))
        table[: self.empty] = 0.0
        if self.rest is not None:
            table[:, self.dim :] = self.rest[:, None]
        return tf.constant(table, dtype=dtype)


class Chance:
    """Random numbers that can be set back: the same seed gives the same dropout, also after a resumed run."""

    def __init__(self) -> None:
        self.generator = tf.random.Generator.from_seed(0)

    def reset(self, seed: int) -> None:
        """Starts the stream of ``seed``."""
        self.generator.reset_from_seed(seed)

    def below(self, shape: Any, share: float) -> Any:
        """A tensor of ``shape``, true with probability ``share``."""
        return self.generator.uniform(shape) < share

    def drop(self, values: Any, share: float, training: bool) -> Any:
        """Dropout: in training a share of the values is 0, the others grow by as much."""
        if not training or share == 0:
            return values
        kept = ~self.below(tf.shape(values), share)
        return tf.where(kept, values / (1.0 - share), tf.zeros_like(values))


class FeatureSum(tf_keras.layers.Layer):
    """``{name: encoded feature}`` to ``[batch, width]``: each feature's learned contribution, added up.

    Coded features have a table row for each code (lists and texts the weighted mean of their rows); numbers and
    outside vectors have a linear map. ``id_dropout`` replaces that share of the ids by the out-of-vocabulary row in
    training, so that the other features learn to stand alone.

    Args:
        features: the schema's features of one side, each with an input of its name.
        table_sizes: codes of each coded feature.
        frequencies: train counts of each coded feature's values. Rarer tokens of a text weigh more (IDF); an id's
            bias starts at the log of its count. May be empty.
        width: columns in all; those after ``vector_dim`` are the bias.
        content_dim: the last of the ``vector_dim`` columns that the id has no part in.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        table_sizes: dict[str, int],
        frequencies: dict[str, npt.NDArray[np.int64]],
        settings: TowersSettings,
        chance: Chance,
        *,
        width: int,
        content_dim: int,
        seed: int,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.chance = chance
        self.features = tuple(features)
        self.id_dropout = settings.id_dropout
        self.tables: dict[str, Any] = {}
        self.maps: dict[str, Any] = {}
        self.token_weights: dict[str, Any] = {}
        dim, self.own_dim = settings.vector_dim, settings.vector_dim - content_dim
        self.bias_dim = width - dim
        for place, feature in enumerate(self.features):
            scale = 1.0 if feature.kind == "id" else settings.content_scale
            rest = None
            if feature.kind == "id" and width > dim and feature.name in frequencies:
                rest = log_counts(table_sizes[feature.name], frequencies[feature.name]) * settings.bias_start
            columns = self.own_dim if feature.kind == "id" else dim
            initializer = RowNorm(scale, columns, seed * 1009 + place, rest, 2 * (feature.kind == "id"))
            if feature.kind in ("id", "categorical", "list", "text"):
                shape = (table_sizes[feature.name], columns + self.bias_dim)
                self.tables[feature.name] = self.add_weight(f"{feature.name}_table", shape, initializer=initializer)
            else:
                shape = (_columns(feature), width)
                self.maps[feature.name] = self.add_weight(f"{feature.name}_map", shape, initializer=initializer)
            if feature.kind == "text":
                weights = token_weights(table_sizes[feature.name], frequencies.get(feature.name))
                self.token_weights[feature.name] = tf.constant(weights)
        self.width = width

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The sum of all contributions, ``[batch, width]``."""
        parts = [self._contribution(feature, inputs[feature.name], training) for feature in self.features]
        return tf.add_n(parts)

    def _contribution(self, feature: Feature, values: Any, training: bool) -> Any:
        if feature.kind in ("numeric", "time_since", "count", "embedding"):
            return tf.matmul(values, self.maps[feature.name])
        table = self.tables[feature.name]
        if feature.kind == "id" and training and self.id_dropout > 0:
            hidden = self.chance.below(tf.shape(values), self.id_dropout)
            values = tf.where(hidden & (values > 1), tf.ones_like(values), values)
        present = tf.cast(values > 0, table.dtype)
        if feature.kind == "id":
            rows = tf.gather(table, values) * present[:, None]
            parts = tf.split(rows, [self.own_dim, self.bias_dim], axis=1)
            return tf.concat([parts[0], tf.zeros([tf.shape(rows)[0], self.width - table.shape[1]]), parts[1]], 1)
        if feature.kind == "categorical":
            return tf.gather(table, values) * present[:, None]
        if feature.kind == "text":
            present *= tf.gather(self.token_weights[feature.name], values)
        total = tf.maximum(tf.reduce_sum(present, 1, keepdims=True), _EPSILON)
        return tf.squeeze(tf.matmul((present / total)[:, None, :], tf.gather(table, values)), 1)


def _columns(feature: Feature) -> int:
    if feature.kind == "count":
        return len(feature.window_days)
    return feature.dim if feature.kind == "embedding" else 2


def log_counts(size: int, frequencies: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """``[size] float32`` where an id's bias starts, in logits: log(1 + count), centred; the reserved codes as count 0.

    A softmax over the catalogue learns the log of an item's share first; starting there leaves it the rest to learn.
    """
    logs = np.zeros(size, np.float32)
    logs[2 : 2 + len(frequencies)] = np.log1p(frequencies)
    centred: npt.NDArray[np.float32] = logs - logs.mean(dtype=np.float32)
    return centred


def token_weights(size: int, frequencies: npt.NDArray[np.int64] | None) -> npt.NDArray[np.float32]:
    """``[size] float32`` weight of each code: log(1 + total / count), 1 for the reserved codes and without counts."""
    weights = np.ones(size, np.float32)
    if frequencies is not None and len(frequencies):
        counts = np.maximum(frequencies, 1)
        weights[2 : 2 + len(counts)] = np.log1p(counts.sum() / counts) / np.log1p(counts.sum() / counts).mean()
    return weights


def hinges(counts: Any) -> Any:
    """``[batch, windows]`` to ``[batch, windows * (1 + knots)]``: a basis of piecewise linear functions of each."""
    return tf.concat([counts, *(tf.nn.relu(counts - knot) for knot in KNOTS)], 1)


class ItemTower(tf_keras.Model):
    """Encoded item features to ``[batch, embedding_dim]``: the vector (of length 1, or free: ``item_norm``) and,
    with an item bias, its last dimension.

    The bias is learned in logits and exported in units of the score: times the temperature.
    """

    def __init__(
        self, body: FeatureSum, counts: Sequence[CountFeature], temperature: Any, settings: TowersSettings
    ) -> None:
        super().__init__(name="item_tower")
        self.body = body
        self.counts = tuple(feature.name for feature in counts)
        windows = sum(len(feature.window_days) for feature in counts)
        # How much an item was asked for lately changes its rank for everyone.
        shape = (windows * (1 + len(KNOTS)), 1)
        self.demand: Any = self.add_weight("demand", shape, initializer="zeros") if counts else None
        self.temperature = temperature
        self.dim = settings.vector_dim
        self.item_bias = settings.item_bias
        self.free = settings.item_norm == "free"
        self.normalise = tf.identity if self.free else unit

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The vectors."""
        raw = self.body(inputs, training=training)
        vectors, bias = self.normalise(raw[:, : self.dim]), raw[:, self.dim :]
        if self.demand is not None:
            lift = self.lift(tf.concat([inputs[name] for name in self.counts], 1))
            if self.free:
                vectors *= tf.exp(lift)
            else:
                bias += lift
        return tf.concat([vectors, bias * self.temperature], 1) if self.item_bias else vectors

    def lift(self, counts: Any) -> Any:
        """``[batch, windows]`` encoded counts to ``[batch, 1]``: what they add to the log of an item's rate."""
        return tf.clip_by_value(tf.matmul(hinges(counts), self.demand), -MAX_LIFT, MAX_LIFT)


class PooledHistory(tf_keras.layers.Layer):
    """``[batch, history, dim]`` item vectors to ``[batch, dim]``: several weighted means, mixed.

    A head's weight for an event is ``exp(action - rate * age_days)``; rates and the actions' weights are learned. Each
    mean is made a unit vector, what content alone says apart from the rest, then goes through its own matrix, which
    starts at the identity (an even share of it): at the start a user is the recency-weighted mean of the history.
    """

    def __init__(
        self, dim: int, content_dim: int, decay_days: Sequence[float], actions: int, name: str = "history"
    ) -> None:
        super().__init__(name=name)
        self.parts = [dim - content_dim, content_dim]
        self.heads = len(decay_days)
        rates = np.array([0.0 if days == 0 else 1.0 / days for days in decay_days], np.float32)
        # softplus keeps a rate positive; 1e-6 a day stands for none.
        raw = np.log(np.expm1(np.maximum(rates, 1e-6).astype(np.float64))).astype(np.float32)
        self.raw_rates = self.add_weight("raw_rates", (self.heads,), initializer=tf.constant_initializer(raw))
        self.action_weights = self.add_weight("action_weights", (actions, self.heads), initializer="zeros")
        start = np.tile(np.eye(dim, dtype=np.float32) / self.heads, (self.heads, 1))
        self.mix = self.add_weight("mix", (self.heads * dim, dim), initializer=tf.constant_initializer(start))

    def call(self, vectors: Any, mask: Any, ages: Any, actions: Any) -> Any:
        """The mixed means; a user without history gets zeros."""
        rates = tf.nn.softplus(self.raw_rates)
        logits = tf.gather(self.action_weights, actions) - ages[:, :, None] * rates
        weights = tf.exp(logits) * mask[:, :, None]
        own, content = tf.split(tf.matmul(weights, vectors, transpose_a=True), self.parts, axis=2)
        pooled = tf.concat([unit(own), unit(content)], 2)
        return tf.matmul(tf.reshape(pooled, [-1, self.heads * pooled.shape[-1]]), self.mix)


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


class Block(tf_keras.layers.Layer):
    """One pre-norm transformer layer: causal self-attention, then a feed-forward of four times the width."""

    def __init__(self, dim: int, heads: int, dropout: float, chance: Chance, name: str) -> None:
        super().__init__(name=name)
        self.heads, self.dim, self.dropout, self.chance = heads, dim, dropout, chance
        self.norms = [tf_keras.layers.LayerNormalization(epsilon=1e-6) for _ in range(2)]
        self.project = tf_keras.layers.Dense(3 * dim, use_bias=False)
        self.merge = tf_keras.layers.Dense(dim, kernel_initializer="zeros")
        self.wide = tf_keras.layers.Dense(4 * dim, activation="gelu")
        self.narrow = tf_keras.layers.Dense(dim, kernel_initializer="zeros")

    def call(self, states: Any, allowed: Any, training: bool = False) -> Any:
        """``[batch, history, dim]`` to the same; ``allowed [batch, 1, history, history]`` is 1 where a may see b."""
        attended = self.merge(self._attend(self.norms[0](states), allowed, training))
        states += self.chance.drop(attended, self.dropout, training)
        return states + self.chance.drop(self.narrow(self.wide(self.norms[1](states))), self.dropout, training)

    def _attend(self, states: Any, allowed: Any, training: bool) -> Any:
        length, size = tf.shape(states)[1], self.dim // self.heads
        parts = tf.reshape(self.project(states), [-1, length, 3 * self.heads, size])
        queries, keys, values = tf.split(tf.transpose(parts, [0, 2, 1, 3]), 3, axis=1)
        logits = tf.matmul(queries, keys, transpose_b=True) * (size**-0.5) + (allowed - 1.0) * 1e9
        weights = self.chance.drop(tf.nn.softmax(logits), self.dropout, training)
        mixed = tf.transpose(tf.matmul(weights, values), [0, 2, 1, 3])
        return tf.reshape(mixed, [-1, length, self.dim])


class CausalTransformer(tf_keras.layers.Layer):
    """``[batch, history, dim]`` item vectors to ``[batch, history, dim]`` states: each sees itself and what is before.

    After SASRec (Kang & McAuley 2018), pre-norm. Positions are learned and counted from the oldest event.
    """

    def __init__(self, dim: int, history: int, settings: TowersSettings, chance: Chance, name: str = "history") -> None:
        super().__init__(name=name)
        self.dropout, self.chance = settings.dropout, chance
        self.positions = self.add_weight("positions", (history, dim), initializer=RowNorm(0.2, dim, 7))
        self.blocks = [
            Block(dim, settings.heads, settings.dropout, chance, f"block_{place}") for place in range(settings.layers)
        ]
        self.norm = tf_keras.layers.LayerNormalization(epsilon=1e-6)
        self.causal = tf.constant(np.tril(np.ones((1, 1, history, history), np.float32)))
        # Unit vectors have entries of about dim ** -0.5; the layers want about 1.
        self.scale = float(dim) ** 0.5

    def call(self, vectors: Any, mask: Any, training: bool = False) -> Any:
        """The states; those at padding mean nothing."""
        length = vectors.shape[1] if vectors.shape[1] is not None else tf.shape(vectors)[1]
        placed = vectors + self.positions[None, :length]
        states = self.chance.drop(placed * self.scale, self.dropout, training)
        allowed = self.causal[:, :, :length, :length] * mask[:, None, None, :]
        for block in self.blocks:
            states = block(states, allowed, training=training)
        return self.norm(states)


class UserTower(tf_keras.Model):
    """Item vectors of the history and user features to ``[batch, embedding_dim]``: a unit vector and, with an item
    bias, a 1.
    """

    def __init__(
        self, profile: FeatureSum | None, settings: TowersSettings, chance: Chance, *, history: int, actions: int
    ) -> None:
        super().__init__(name="user_tower")
        dim = settings.vector_dim
        self.profile = profile
        self.dim, self.item_bias, self.encoder = dim, settings.item_bias, settings.history_encoder
        self.history_length = history
        self.pool: Any = None
        if self.encoder == "transformer":
            self.pool = CausalTransformer(dim, history, settings, chance)
        elif self.encoder == "attention":
            self.pool = AttentionPool(dim, settings.heads)
        elif self.encoder in ("mean", "recency"):
            self.pool = PooledHistory(
                dim, settings.content_dim, (0.0,) if self.encoder == "mean" else settings.decay_days, actions
            )

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The users' vectors."""
        if self.encoder == "transformer":
            states = self.pool(self._unit_part(inputs), inputs["history_mask"], training=training)
            mask = inputs["history_mask"]
            newest = mask - tf.concat([mask[:, 1:], tf.zeros_like(mask[:, :1])], 1)
            return self._finish(tf.squeeze(tf.matmul(newest[:, None, :], states), 1), inputs, training)
        if self.encoder == "none":
            return self._finish(None, inputs, training)
        return self._finish(self._pooled(inputs), inputs, training)

    def at_positions(self, inputs: dict[str, Any], users: Any, positions: Any, training: bool = False) -> Any:
        """``[queries, embedding_dim]``: the vector of user ``users[q]`` right after event ``positions[q]``."""
        states = self.pool(self._unit_part(inputs), inputs["history_mask"], training=training)
        chosen = tf.gather_nd(states, tf.stack([users, positions], 1))
        return self._finish(chosen, inputs, training, users)

    def _unit_part(self, inputs: dict[str, Any]) -> Any:
        return inputs["history"][:, :, : self.dim]

    def _pooled(self, inputs: dict[str, Any]) -> Any:
        vectors, mask, ages = self._unit_part(inputs), inputs["history_mask"], inputs["history_age_days"]
        if self.encoder == "attention":
            return self.pool(vectors, mask, ages)
        return self.pool(vectors, mask, ages, inputs["history_action"])

    def _finish(self, states: Any, inputs: dict[str, Any], training: bool, users: Any = None) -> Any:
        if self.profile is not None:
            profile = self.profile({f.name: inputs[f.name] for f in self.profile.features}, training=training)
            if users is not None:
                profile = tf.gather(profile, users)
            states = profile if states is None else states + profile
        vectors = unit(states)
        return tf.concat([vectors, tf.ones_like(vectors[:, :1])], 1) if self.item_bias else vectors

    def needed_inputs(self) -> tuple[str, ...]:
        """The inputs the tower reads."""
        pooled: dict[str, tuple[str, ...]] = {
            "none": (),
            "mean": ("history", "history_mask", "history_age_days", "history_action"),
            "recency": ("history", "history_mask", "history_age_days", "history_action"),
            "attention": ("history", "history_mask", "history_age_days"),
            "transformer": ("history", "history_mask"),
        }
        names = () if self.profile is None else tuple(feature.name for feature in self.profile.features)
        return pooled[self.encoder] + names
