"""The two towers and their loss as one TensorFlow Recommenders model.

Reads a batch's places (``towers.data.batches.Batch``); the encoded features are in memory and gathered in the graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contracts.kinds import Feature
from pipelines.contracts.schema import Side
from towers.data.batches import Batch
from towers.data.moments import count_features, moving_features
from towers.data.training_data import Features, TrainingData
from towers.network.encoders import FeatureSum, RandomStream
from towers.network.history_encoders import PooledHistory
from towers.network.item_tower import ItemTower
from towers.network.losses import Certain, Pairs, sampled_softmax
from towers.network.user_tower import UserTower
from towers.runtime import tf, tfrs
from towers.settings import TowersSettings

# Log of the initial weight of an item in a history that was only shown, relative to one that was taken.
_SHOWN_LOG_WEIGHT = -5.0


class Columns:
    """Encoded features of one side as tensors outside the model: gathered by row, never trained, never saved."""

    def __init__(self, values: Features, features: tuple[Feature, ...]) -> None:
        self.tensors = {f.name: tf.Variable(values[f.name], trainable=False, name=f.name) for f in features}
        self.moving = [feature.name for feature in moving_features(features)]

    def __call__(self, rows: Any) -> dict[str, Any]:
        """``{name: [rows, ..]}``."""
        return {name: tf.gather(tensor, rows) for name, tensor in self.tensors.items()}

    def at_moment(self, rows: Any, moving: Any) -> dict[str, Any]:
        """The same, with the features that change with the moment from ``moving [rows, widths]`` (or no columns)."""
        columns = self(rows)
        names = [name for name in self.moving if moving.shape[1]]
        widths = [self.tensors[name].shape[1] for name in names]
        return columns | dict(zip(names, tf.split(moving, widths, axis=1) if names else (), strict=True))


class TwoTowers(tfrs.Model):
    """User tower, item tower, and the loss of a batch.

    ``compute_loss`` computes each needed item's vector once, whether it is in a history, a positive or a negative.
    """

    def __init__(self, data: TrainingData, settings: TowersSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.has_certain = data.mined is not None or bool(settings.negative_actions)
        self.temperature: Any = settings.temperature
        if settings.learned_temperature:
            self.temperature = tf.Variable(settings.temperature, name="temperature", constraint=_positive)
        self.chance = RandomStream()
        items = self._features(data, "item", seed, settings.embedding_dim)
        profile = self._features(data, "user", seed + 1, settings.vector_dim) if data.features("user") else None
        assert items is not None
        self.item_tower = ItemTower(items, count_features(data.features("item")), self.temperature, settings)
        self.user_tower = UserTower(
            profile,
            settings,
            self.chance,
            history=data.schema.history.max_length,
            actions=len(data.schema.action_names),
        )
        if settings.negative_actions and isinstance(self.user_tower.pool, PooledHistory):
            self._damp_shown(data)
        self._columns = {
            "item": Columns(data.items, data.features("item")),
            "user": Columns(data.users, data.features("user")),
        }

    def _features(self, data: TrainingData, side: Side, seed: int, width: int) -> FeatureSum | None:
        features, columns = data.features(side), data.items if side == "item" else data.users
        if side == "item":
            features = tuple(feature for feature in features if feature.kind != "count")
        return FeatureSum(
            features,
            data.table_sizes[side],
            data.frequencies if side == "item" else {},
            self.settings,
            self.chance,
            width=width,
            content_dim=self.settings.content_dim if side == "item" else 0,
            complete=[f.name for f in features if f.kind == "id" and columns[f.name].all()],  # code 0: missing
            seed=seed,
            name=f"{side}_features",
        )

    def _damp_shown(self, data: TrainingData) -> None:
        """Gives events that were shown and not taken almost no initial weight in a pooled history."""
        weights = self.user_tower.pool.action_weights.numpy()
        weights[[name in self.settings.negative_actions for name in data.schema.action_names]] = _SHOWN_LOG_WEIGHT
        self.user_tower.pool.action_weights.assign(weights)

    def own_rows(self) -> list[Any]:
        """The tables in which each item or user has its own row."""
        bodies = [body for body in (self.item_tower.body, self.user_tower.profile) if body is not None]
        return [body.tables[f.name] for body in bodies for f in body.features if f.kind == "id"]

    def item_vectors(self, rows: Any, moving: Any, training: bool = False) -> Any:
        """``[rows] int32`` and their moving features ``[rows, widths or 0] float32`` to ``[rows, embedding_dim]``.

        ``moving`` is as of a moment (``towers.data.moments.Moving``); without columns the encoded ones are used.
        """
        return self.item_tower(self._columns["item"].at_moment(rows, moving), training=training)

    def user_inputs(self, vectors: Any, batch: dict[str, Any]) -> dict[str, Any]:
        """The user tower's inputs; the histories point into ``vectors [unique, dim]``."""
        inputs: dict[str, Any] = self._columns["user"].at_moment(batch["users"], batch["user_moving"])
        if self.settings.history_encoder == "none":
            return inputs
        mask = tf.cast(batch["history"] >= 0, tf.float32)
        history = tf.gather(vectors, tf.maximum(batch["history"], 0)) * mask[:, :, None]
        return {
            **inputs,
            "history": history,
            "history_mask": mask,
            "history_age_days": batch["ages_days"],
            "history_action": tf.cast(batch["actions"], tf.int32),
        }

    def compute_loss(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The loss of one batch (``tensors_of``)."""
        vectors = self.item_vectors(inputs["rows"], inputs["item_moving"], training=training)
        user_inputs = self.user_inputs(vectors, inputs)
        if self.settings.protocol == "positions":
            places = inputs["query_users"], inputs["query_positions"]
            queries = self.user_tower.at_positions(user_inputs, *places, training=training)
        else:
            queries = self.user_tower(user_inputs, training=training)
        owners, rows = tf.unstack(inputs["positives"], axis=1)
        scores, candidates = scores_and_candidates(
            queries, vectors, owners, rows, by_row=inputs["by_row"], candidates=inputs["candidates"]
        )
        excluded = inputs["excluded"]
        logits = self._scores(queries / self.temperature, candidates)
        pairs = Pairs(owners, scores / self.temperature, inputs["weights"])
        certain = self._certain(queries, vectors, inputs) if self.has_certain else None
        loss = sampled_softmax(logits, inputs["log_inclusion"], pairs, excluded, certain)
        if self.settings.protocol == "windows" and self.settings.novel_weight > 0:
            excluded = tf.concat([excluded, inputs["seen"]], 0)
            novel = dataclasses.replace(pairs, weights=inputs["novel"])
            again = sampled_softmax(logits, inputs["log_inclusion"], novel, excluded, certain)
            loss += self.settings.novel_weight * again
        return loss

    def _certain(self, queries: Any, vectors: Any, inputs: dict[str, Any]) -> Certain:
        owners, rows = tf.unstack(inputs["certain"], axis=1)
        scores = tf.reduce_sum(tf.gather(queries, owners) * tf.gather(vectors, rows), 1) / self.temperature
        return Certain(owners, scores, inputs["certain_weights"])

    def _scores(self, queries: Any, candidates: Any) -> Any:
        """``[queries, candidates] float32``; most of a step's multiplications."""
        kind = tf.bfloat16 if self.settings.mixed_precision else tf.float32
        return tf.cast(tf.matmul(tf.cast(queries, kind), tf.cast(candidates, kind), transpose_b=True), tf.float32)


def scores_and_candidates(
    queries: Any, vectors: Any, owners: Any, rows: Any, *, by_row: Any, candidates: Any
) -> tuple[Any, Any]:
    """The pairs' dot products ``[pairs]`` and the candidates' vectors ``[candidates, dim]``.

    Equals gathering and multiplying, but the gradients of a query or vector are adjacent when they are added up, which
    takes a third of the time of adding in any order. The candidates' gradients go into the same sums.

    Args:
        queries: ``[queries, dim]``.
        vectors: ``[rows, dim]``.
        owners: ``[pairs] int32`` the query of each pair, ascending.
        rows: ``[pairs] int32`` the vector of each pair.
        by_row: ``[pairs] int32`` an order of the pairs in which ``rows`` are ascending.
        candidates: ``[candidates] int32`` rows.
    """

    @tf.custom_gradient
    def looked_up(queries: Any, vectors: Any) -> Any:
        asked, answered = tf.gather(queries, owners), tf.gather(vectors, rows)

        def gradients(of_scores: Any, of_candidates: Any) -> Any:
            of_queries = _added_up(of_scores[:, None] * answered, owners, tf.shape(queries)[0])
            asked_by_row = tf.gather(queries, tf.gather(owners, by_row))
            in_order = tf.gather(of_scores, by_row)[:, None] * asked_by_row
            of_vectors = _added_up(in_order, tf.gather(rows, by_row), tf.shape(vectors)[0])
            return of_queries, tf.tensor_scatter_nd_add(of_vectors, candidates[:, None], of_candidates)

        return (tf.reduce_sum(asked * answered, 1), tf.gather(vectors, candidates)), gradients

    scores, found = looked_up(queries, vectors)
    return scores, found


def _added_up(values: Any, owners: Any, count: Any) -> Any:
    """``[count, dim]``: the sums of each owner's values; ``owners`` are ascending."""
    sums = tf.math.segment_sum(values, owners)
    return tf.pad(sums, [[0, count - tf.shape(sums)[0]], [0, 0]])


def _positive(value: Any) -> Any:
    return tf.clip_by_value(value, 0.01, 1.0)


def tensors_of(batch: Batch) -> dict[str, Any]:
    """The batch as ``compute_loss`` needs it; ``by_row [pairs]``: the positives' order by row."""
    # Row and place combined into one number: sorted ten times as fast as by a stable argsort.
    rows = batch.positives[:, 1].astype(np.int64)
    by_row = np.sort(rows << 32 | np.arange(len(rows))).astype(np.int32)
    fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
    return {name: tf.constant(values) for name, values in {**fields, "by_row": by_row}.items()}


def signature(batch: Batch) -> dict[str, Any]:
    """Types and shapes of all batches like this one, with all lengths open, so that one graph serves them."""
    whole, real = tf.int32, tf.float32
    flat = {"rows": whole, "users": whole, "candidates": whole, "log_inclusion": real, "query_users": whole}
    flat |= {"query_positions": whole, "by_row": whole, "weights": real, "novel": real, "certain_weights": real}
    specs = {name: tf.TensorSpec([None], kind) for name, kind in flat.items()}
    specs["history"] = tf.TensorSpec([None, None], whole)
    specs["ages_days"] = tf.TensorSpec([None, None], real)
    specs["actions"] = tf.TensorSpec([None, None], tf.int8)
    for name in ("positives", "excluded", "seen", "certain"):
        specs[name] = tf.TensorSpec([None, 2], whole)
    specs["item_moving"] = tf.TensorSpec([None, batch.item_moving.shape[1]], real)
    specs["user_moving"] = tf.TensorSpec([None, batch.user_moving.shape[1]], real)
    return specs


def all_item_vectors(model: TwoTowers, moving: npt.NDArray[np.float32], block: int = 8192) -> npt.NDArray[np.float32]:
    """``[items, embedding_dim]`` of the whole catalogue; ``moving [items, widths or 0]`` as ``item_vectors``."""
    rows = range(0, len(moving), block)
    parts = [
        model.item_vectors(tf.range(start, min(start + block, len(moving))), moving[start : start + block]).numpy()
        for start in rows
    ]
    return np.concatenate(parts)
