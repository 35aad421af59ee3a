"""The item tower: encoded features to ``[vector, bias]``.

If the settings ask for it, the last dimension is the item's learned bias; the user's is 1, so that a score stays one
dot product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contracts.kinds import CountFeature
from towers.network.encoders import EPSILON, FeatureSum
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings

# Maximum that counts add to an item's bias, in logits: more is not a plausible forecast.
MAX_LIFT = 10.0
# Knots at which the slope of a count's effect may change, in log1p: about 2, 11 and 54 events.
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
        # Recent demand for an item changes its rank for everyone.
        shape = (windows * (1 + len(KNOTS)), 1)
        demand = bool(counts) and settings.item_bias
        self.demand: Any = self.add_weight("demand", shape, initializer="zeros") if demand else None
        ids = [feature.name for feature in body.features if feature.kind == "id"]
        self.free = settings.item_norm == "free"
        # The usual length of the columns that include the id, measured after training; 0: not known.
        self.item_id = ids[0] if ids and self.free else None
        self.usual_length: Any = None
        if self.item_id is not None:
            self.usual_length = self.add_weight("usual_length", (), initializer="zeros", trainable=False)
        self.temperature = temperature
        self.item_bias = settings.item_bias
        # Columns that include the id, columns of content alone, and the bias: each group has one scale per row.
        content = settings.vector_dim - body.own_dim
        groups = np.repeat(range(3), [body.own_dim, content, settings.embedding_dim - settings.vector_dim])
        self.groups = np.eye(3, dtype=np.float32)[:, groups]

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The vectors."""
        raw = self.body(inputs, training=training)
        # Scaled as a whole: splitting vector and bias and joining them again costs as much as the rest of the tower.
        vectors = raw * tf.matmul(self._scales(raw, inputs), self.groups)
        if self.demand is not None:
            counts = tf.concat([inputs[name] for name in self.counts], 1)
            vectors += tf.matmul(self.lift(counts) * self.temperature, self.groups[2:])
        return vectors

    def _scales(self, raw: Any, inputs: dict[str, Any]) -> Any:
        """``[batch, 3]``: factors for the columns that include the id, those of content alone, and the bias."""
        ones = tf.ones([tf.shape(raw)[0], 1])
        own, content = ones, ones
        if not self.free:
            own = content = tf.math.rsqrt(_squared_length(raw, self.groups[0] + self.groups[1]))
        elif self.item_id is not None:
            own = tf.where(inputs[self.item_id][:, None] > 1, ones, self._evened(_squared_length(raw, self.groups[0])))
        return tf.concat([own, content, ones * self.temperature], 1)

    def _evened(self, squared_length: Any) -> Any:
        """``[batch, 1]``: the factor that makes each length the geometric mean of its own and the usual one.

        For ads without an id of their own. The length of a known ad's vector reflects its demand; the length of a
        vector made of content alone reflects which of its columns happen to be filled.
        """
        return tf.where(self.usual_length > 0, tf.sqrt(self.usual_length / tf.sqrt(squared_length)), 1.0)

    def lift(self, counts: Any) -> Any:
        """``[batch, windows]`` encoded counts to ``[batch, 1]``: what they add to an item's bias, in logits."""
        return tf.clip_by_value(tf.matmul(hinges(counts), self.demand), -MAX_LIFT, MAX_LIFT)


def _squared_length(raw: Any, columns: npt.NDArray[np.float32]) -> Any:
    """``[batch, 1]`` of the columns where ``columns [width]`` is 1; never 0."""
    return tf.maximum(tf.matmul(tf.square(raw), columns[:, None]), EPSILON)
