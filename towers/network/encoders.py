"""From encoded features to vectors: the parts that both towers share.

A missing value (code 0, present 0, an embedding of zeros) adds nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.coded import Coded
from towers.runtime import tf, tf_keras
from towers.settings import TowersSettings

EPSILON = 1e-12


def unit(vectors: Any) -> Any:
    """``[..., dim]`` to rows of length 1; a zero row stays zero."""
    return vectors * tf.math.rsqrt(tf.maximum(tf.reduce_sum(tf.square(vectors), -1, keepdims=True), EPSILON))


class RowNorm(tf_keras.initializers.Initializer):
    """Rows of about the norm ``scale`` in the first ``dim`` columns, ``rest`` (``[rows]``, or 0) in the others.

    The first ``empty`` rows start at 0: unknown ids add nothing until they are trained.
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


class RandomStream:
    """Resettable random numbers: the same seed gives the same dropout, also in a resumed run."""

    def __init__(self) -> None:
        self.generator = tf.random.Generator.from_seed(0)

    def reset(self, seed: int) -> None:
        """Starts the stream of ``seed``."""
        self.generator.reset_from_seed(seed)

    def below(self, shape: Any, share: float) -> Any:
        """A tensor of ``shape``, true with probability ``share``."""
        return self.generator.uniform(shape) < share

    def drop(self, values: Any, share: float, training: bool) -> Any:
        """Dropout: in training a share of the values is set to 0, and the others are scaled up accordingly."""
        if not training or share == 0:
            return values
        kept = ~self.below(tf.shape(values), share)
        return tf.where(kept, values / (1.0 - share), tf.zeros_like(values))

    def seed(self) -> Any:
        """``[2] int32`` for ``drop_by``."""
        return self.generator.uniform_full_int([2], tf.int32)


def drop_by(seed: Any, values: Any, share: float) -> Any:
    """Reproducible dropout: the same ``seed [2] int32`` drops the same values."""
    kept = tf.random.stateless_uniform(tf.shape(values), seed) >= share
    return tf.where(kept, values / (1.0 - share), tf.zeros_like(values))


class FeatureSum(tf_keras.layers.Layer):
    """``{name: encoded feature}`` to ``[batch, width]``: each feature's learned contribution, added up.

    Coded features have a table row per code (lists and texts the weighted mean of their rows, by rarity or, with
    ``text_pool = "attention"``, by a weight that each token learns as well); numbers have a linear map, outside vectors
    one behind a gate of their own (a zero vector: missing). ``id_dropout`` replaces that share of the ids by the
    out-of-vocabulary row in training, so that the other features learn to work without it.

    Args:
        features: the schema's features of one side, each with an input of its name.
        table_sizes: codes of each coded feature.
        frequencies: train counts of each coded feature's values. Rarer tokens of a text weigh more (IDF); an id's
            bias starts at the log of its count. May be empty.
        width: columns in all; those after ``vector_dim`` are the bias.
        content_dim: number of columns at the end of ``vector_dim`` that exclude the id.
        complete: features without missing values in training.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        table_sizes: dict[str, int],
        frequencies: dict[str, npt.NDArray[np.int64]],
        settings: TowersSettings,
        chance: RandomStream,
        *,
        width: int,
        content_dim: int,
        complete: Collection[str] = (),
        seed: int,
        name: str,
    ) -> None:
        super().__init__(name=name)
        self.chance, scope = chance, name  # the optimizer distinguishes weights of both sides by name
        self.features = tuple(features)
        self.id_dropout = settings.id_dropout
        self.complete = frozenset(complete)
        self.tables: dict[str, Any] = {}
        self.maps: dict[str, Any] = {}
        self.gates: dict[str, Any] = {}
        self.token_logits: dict[str, Any] = {}
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
            if isinstance(feature, Coded):
                shape = (table_sizes[feature.name], columns + self.bias_dim)
                title = f"{scope}/{feature.name}_table"
                self.tables[feature.name] = self.add_weight(title, shape, initializer=initializer)
            else:
                shape = (feature.input_shape[0], width)
                self.maps[feature.name] = self.add_weight(f"{scope}/{feature.name}_map", shape, initializer=initializer)
            if feature.kind == "embedding":
                self.gates[feature.name] = self.add_weight(f"{scope}/{feature.name}_gate", shape, initializer="zeros")
            if feature.kind == "text" and settings.text_pool == "attention":
                name, sizes = f"{scope}/{feature.name}_logits", (table_sizes[feature.name],)
                self.token_logits[feature.name] = self.add_weight(name, sizes, initializer="zeros")
            if feature.kind == "text":
                weights = token_weights(table_sizes[feature.name], frequencies.get(feature.name))
                self.token_weights[feature.name] = tf.constant(weights)
        self.width = width

    def call(self, inputs: dict[str, Any], training: bool = False) -> Any:
        """The sum of all contributions, ``[batch, width]``; zeros if there are none: an item with counts alone."""
        parts = [self._contribution(feature, inputs[feature.name], training) for feature in self.features]
        return tf.add_n(parts) if parts else tf.zeros([tf.shape(next(iter(inputs.values())))[0], self.width])

    def code_weights(self, name: str, values: npt.NDArray[Any]) -> scipy.sparse.csr_matrix:
        """``[batch, table rows]``: the weights with which a coded feature's ``values`` add up its table's rows."""
        codes = values.reshape(len(values), -1)
        weights = (codes > 0).astype(np.float32)
        if name in self.token_weights:
            weights *= self.token_weights[name].numpy()[codes]
        if name in self.token_logits:
            weights *= np.exp(self.token_logits[name].numpy()[codes])
        weights /= np.maximum(weights.sum(1, keepdims=True), EPSILON)
        rows = np.repeat(np.arange(len(codes)), codes.shape[1])
        size = int(self.tables[name].shape[0])
        matrix = scipy.sparse.csr_matrix((weights.ravel(), (rows, codes.ravel())), (len(codes), size))
        matrix.eliminate_zeros()
        return matrix

    def _contribution(self, feature: Feature, values: Any, training: bool) -> Any:
        if not isinstance(feature, Coded):
            mapped = tf.matmul(values, self.maps[feature.name])
            gate = self.gates.get(feature.name)
            return mapped if gate is None else mapped * tf.sigmoid(tf.matmul(values, gate))
        table = self.tables[feature.name]
        if feature.kind == "id" and training and self.id_dropout > 0:
            hidden = self.chance.below(tf.shape(values), self.id_dropout)
            values = tf.where(hidden & (values > 1), tf.ones_like(values), values)
        present = tf.cast(values > 0, table.dtype)
        if feature.kind == "id":
            rows = tf.gather(table, values)
            if not (training and feature.name in self.complete):
                rows *= present[:, None]
            if table.shape[1] == self.width:
                return rows
            parts = tf.split(rows, [self.own_dim, self.bias_dim], axis=1)
            return tf.concat([parts[0], tf.zeros([tf.shape(rows)[0], self.width - table.shape[1]]), parts[1]], 1)
        if feature.kind == "categorical":
            return tf.gather(table, values) * present[:, None]
        if feature.kind == "text":
            present *= tf.gather(self.token_weights[feature.name], values)
        if feature.name in self.token_logits:
            present *= tf.exp(tf.gather(self.token_logits[feature.name], values))
        weights = present / tf.maximum(tf.reduce_sum(present, 1, keepdims=True), EPSILON)
        if training:
            return _bag_of_present(table, values, weights)
        return tf.squeeze(tf.matmul(weights[:, None, :], tf.gather(table, values)), 1)


def _bag_of_present(table: Any, codes: Any, weights: Any) -> Any:
    """``sum_t weights[r, t] table[codes[r, t]]`` as ``[rows, dim]``, at the cost of the codes that are present.

    Most places of a padded list are empty; gathering them, with gradients, would take most of a step.
    """
    places = tf.where(weights > 0)
    used, where = tf.unique(tf.gather_nd(codes, places), out_idx=tf.int64)
    indices = tf.stack([places[:, 0], where], 1)
    shape = tf.stack([tf.shape(codes, tf.int64)[0], tf.size(used, tf.int64)])
    matrix = tf.SparseTensor(indices, tf.gather_nd(weights, places), shape)
    return tf.sparse.sparse_dense_matmul(matrix, tf.gather(table, used))


def log_counts(size: int, frequencies: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    """``[size] float32`` initial bias of an id, in logits: log(1 + count), centred; reserved codes count 0.

    A softmax over the catalogue first learns the log of an item's share; starting there leaves only the rest to learn.
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
