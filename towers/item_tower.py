"""The item tower: encoded features to ``[vector, bias]``.

The last dimension, where the settings ask for it, is the item's learned bias; the user's is 1, so that a score stays
one dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.schema import CountFeature
from towers.encoders import EPSILON, FeatureSum, unit
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings

# What counts add to an item's bias is at most so many logits: more is no forecast.
MAX_LIFT = 10.0
# Where the effect of a count may change its slope, in log1p: about 2, 11 and 54 events.
KNOTS = (1.0, 2.5, 4.0)


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
        demand = bool(counts) and settings.item_bias
        self.demand: Any = self.add_weight("demand", shape, initializer="zeros") if demand else None
        ids = [feature.name for feature in body.features if feature.kind == "id"]
        self.free = settings.item_norm == "free"
        # The usual length of a vector's columns that the id has a part in, measured after training; 0: not known.
        self.item_id = ids[0] if ids and self.free else None
        self.usual_length: Any = None
        if self.item_id is not None:
            self.usual_length = self.add_weight("usual_length", (), initializer="zeros", trainable=False)
        self.temperature = temperature
        self.dim = settings.vector_dim
        self.item_bias = settings.item_bias
        self.normalise = tf.identity if self.free else unit

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The vectors."""
        raw = self.body(inputs, training=training)
        # Split, not sliced: the gradient of a slice is a whole tensor of zeros to be filled in.
        own, bias = tf.split(raw, [self.dim, int(self.item_bias)], axis=1)
        vectors = self.normalise(own)
        if self.item_id is not None:
            with_id, content = tf.split(vectors, [self.body.own_dim, self.dim - self.body.own_dim], axis=1)
            with_id *= tf.where(inputs[self.item_id] > 1, 1.0, self.evened(with_id))[:, None]
            vectors = tf.concat([with_id, content], 1)
        if self.demand is not None:
            bias += self.lift(tf.concat([inputs[name] for name in self.counts], 1))
        return tf.concat([vectors, bias * self.temperature], 1) if self.item_bias else vectors

    def evened(self, vectors: Any) -> Any:
        """``[batch, own_dim]`` to ``[batch]``: what makes each length the geometric mean of its own and the usual one.

        For ads without an id of their own. How long a known ad's vector is says how often it is wanted; how long the
        one made of content alone is says which of its columns happen to be filled.
        """
        length = tf.sqrt(tf.maximum(tf.reduce_sum(tf.square(vectors), 1), EPSILON))
        return tf.where(self.usual_length > 0, tf.sqrt(self.usual_length / length), 1.0)

    def lift(self, counts: Any) -> Any:
        """``[batch, windows]`` encoded counts to ``[batch, 1]``: what they add to an item's bias, in logits."""
        return tf.clip_by_value(tf.matmul(hinges(counts), self.demand), -MAX_LIFT, MAX_LIFT)
