"""After training: fits the content weights to the known ads, so that new ads benefit from them.

A known ad's vector is the sum of its content and a row of its own, and only the sum is trained: the row can learn
everything, and then the content's tables do not predict the sum. Here they are refitted to predict it, and the rows
keep the remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse

from pipelines.contracts.vocabulary import OUT_OF_VOCABULARY, RESERVED_CODES
from towers.data.training_data import TrainingData
from towers.network.encoders import FeatureSum
from towers.network.model import TwoTowers
from towers.runtime import tf

Float = npt.NDArray[np.float32]

# A content value's row is a mean over its ads, shrunk as if there were one more ad with a zero vector.
_SHRINKAGE = 1.0
# For numbers and outside vectors: the ridge regression's penalty, in mean squares of a column.
_RIDGE = 0.01
_ITEMS, _COLUMNS = 8192, 64  # at a time


def settle(model: TwoTowers, data: TrainingData) -> None:
    """Fits the item tower's content to the directions of the known ads' vectors.

    Known ads keep their vectors: their own rows absorb the difference. An ad without an id of its own gets the vector
    of its content, nearer to 0 the less content there is, and the known ads' mean bias plus the effect of its counts.
    All known ads weigh the same, however often they were sold; otherwise a new ad would resemble its category's
    best-seller. Columns that only content fills (``content_share``) stay as they are; in the others, the gates of
    outside vectors are then half open for all.

    Does nothing without content, or if known ads have no rows of their own: without an id, with several, a hashed one,
    or one that several ads share.
    """
    body, dim = model.item_tower.body, model.settings.vector_dim
    item_id, content = _own_id(body, data), [feature.name for feature in body.features if feature.kind != "id"]
    if item_id is None or not content:
        return
    codes = data.items[item_id].astype(np.int64)
    known: npt.NDArray[np.bool_] = codes >= RESERVED_CODES
    vectors = _outputs(body, data)
    lengths = np.linalg.norm(vectors[:, : body.own_dim], axis=1)
    # Root mean square: new ads' scores should spread like those of the known ads, of which few are long.
    usual = float(np.sqrt(np.mean(np.square(lengths[known]))))
    to_usual = (usual / np.maximum(lengths, 1e-12))[:, None]
    # The columns that include the id: the others stay.
    columns = np.r_[0 : body.own_dim, dim : body.width]
    inputs = [_input(body, name, data.items[name], known) for name in content]
    for each in inputs:
        each.values[:, columns] = 0.0
    for start in range(0, body.own_dim, _COLUMNS):
        part = slice(start, min(start + _COLUMNS, body.own_dim))
        vectors[:, part] -= _fit(inputs, vectors[:, part] * to_usual, part, known)
    for each in inputs:
        each.weights.assign(each.values)
    for gate in body.gates.values():
        values = gate.numpy()
        values[:, columns] = 0.0
        gate.assign(values)
    table = body.tables[item_id]
    rows = np.zeros(tuple(table.shape), np.float32)
    rows[codes[known]] = vectors[known][:, columns]
    rows[OUT_OF_VOCABULARY, body.own_dim :] = (vectors[:, dim:] + _lift(model, data))[known].mean(0)
    table.assign(rows)
    if model.item_tower.usual_length is not None:
        model.item_tower.usual_length.assign(usual)


@dataclass(frozen=True)
class _Input:
    """A content feature: ``every [items, n]`` adds up the rows of its ``weights``, whose new ``values`` are fitted;
    ``inverse [n, n]`` is that of ``of_known``'s normal equations (for tables, of their diagonal: means by value).
    """

    weights: Any
    values: Float
    every: Any
    of_known: Any
    inverse: Any


def _input(body: FeatureSum, name: str, encoded: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> _Input:
    every: Any
    if name in body.tables:
        weights, every = body.tables[name], body.code_weights(name, encoded)
        of_known = every[known]
        mass = np.asarray(of_known.sum(0)).ravel()
        inverse: Any = scipy.sparse.diags((1.0 / (mass + _SHRINKAGE)).astype(np.float32))
    else:
        # A gate of zeros is half open.
        weights, every = body.maps[name], encoded.astype(np.float32) * np.float32(0.5 if name in body.gates else 1.0)
        of_known = every[known]
        squares = of_known.T @ of_known
        penalty = _RIDGE * max(float(np.diag(squares).mean()), 1e-6)
        inverse = np.linalg.inv(squares + penalty * np.eye(len(squares))).astype(np.float32)
    return _Input(weights, weights.numpy(), every, of_known, inverse)


def _fit(inputs: list[_Input], wanted: Float, part: slice, known: npt.NDArray[np.bool_]) -> Float:
    """Fits the columns ``part`` of the inputs' values to ``wanted [items, dim]`` of the ``known``; returns the
    predictions for all items, of the same shape.

    Two rounds over the features, each fitted to what the others leave.
    """
    predicted = np.zeros_like(wanted)
    for _ in range(2):
        for each in inputs:
            step = each.inverse @ (each.of_known.T @ (wanted - predicted)[known])
            each.values[:, part] += step
            predicted += each.every @ step
    return predicted


def content_of(body: FeatureSum, data: TrainingData) -> list[Any]:
    """The weights that ``content_rate`` applies to: all weights of the items' content, if items have their own rows and
    content is fitted at the end.
    """
    if _own_id(body, data) is None:
        return []
    kinds = {feature.name: feature.kind for feature in body.features}
    weights = {**body.tables, **body.maps}
    content = [weight for name, weight in weights.items() if kinds[name] != "id"]
    return [*content, *body.gates.values(), *body.token_logits.values()]


def _lift(model: TwoTowers, data: TrainingData) -> Float:
    """``[items, 1]`` the effect of the items' counts on their bias."""
    tower = model.item_tower
    if tower.demand is None:
        return np.zeros((data.num_items, 1), np.float32)
    lift: Float = tower.lift(np.concatenate([data.items[name] for name in tower.counts], axis=1)).numpy()
    return lift


def _own_id(body: FeatureSum, data: TrainingData) -> str | None:
    """The feature that gives each known ad its own row, if any is known and no two share one."""
    ids = [feature for feature in body.features if feature.kind == "id"]
    if len(ids) != 1 or ids[0].hash_buckets is not None:
        return None
    codes = data.items[ids[0].name].astype(np.int64)
    known = codes[codes >= RESERVED_CODES]
    return ids[0].name if len(known) and len(np.unique(known)) == len(known) else None


def _outputs(body: FeatureSum, data: TrainingData) -> Float:
    """``[items, width]`` of the whole catalogue."""
    parts = []
    for start in range(0, data.num_items, _ITEMS):
        inputs: dict[str, Any] = {
            feature.name: tf.constant(data.items[feature.name][start : start + _ITEMS]) for feature in body.features
        }
        parts.append(body(inputs).numpy())
    return np.concatenate(parts)
