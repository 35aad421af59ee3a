"""The user tower: history and profile to a unit vector and, with an item bias, a 1."""

from __future__ import annotations

from typing import Any

from towers.network.encoders import FeatureSum, RandomStream, unit
from towers.network.history_encoders import AttentionPool, CausalTransformer, PooledHistory
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings


class UserTower(tf_keras.Model):
    """Item vectors of the history and user features to ``[batch, embedding_dim]``: a unit vector and, with an item
    bias, a 1.
    """

    def __init__(
        self, profile: FeatureSum | None, settings: TowersSettings, chance: RandomStream, *, history: int, actions: int
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
        elif self.encoder in ("mean", "recency") and settings.protocol != "positions":
            decay_days = (0.0,) if self.encoder == "mean" else settings.decay_days
            self.pool = PooledHistory(dim, settings.content_dim, settings.tastes, decay_days, actions)

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
