"""After training: what content says of the known ads is put where new ads find it.

A known ad's vector is its content's and a row of its own together, and only the sum is trained: the row can say it all,
and what the content's tables have learned is then no forecast of the sum. Here they become one, and the rows the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from towers.encoders import FeatureSum
from towers.inputs import TrainingData
from towers.model import TwoTowers
from towers.runtime import tf

Float = npt.NDArray[np.float32]

_KNOWN = 2  # the first code of an id that stands for one ad
# A content value's row is a mean over its ads, shrunk as if it had one more of which it says nothing.
_SHRINKAGE = 1.0
# Of numbers and outside vectors: the ridge regression's penalty, in mean squares of a column.
_RIDGE = 0.01
_BLOCK = 8192


def settle(model: TwoTowers, data: TrainingData) -> None:
    """Fits the item tower's content to the directions of the known ads' vectors.

    Known ads keep their vectors: their own rows take the difference. An ad without an id of its own gets what its
    content says: the nearer to 0 the less that is, and the known ads' mean bias. All known ads weigh alike, however
    often they were sold; else a new ad would be like its kind's best seller. Columns that content fills alone
    (``content_share``) stay as they are; gates of outside vectors then let one half of all through.

    Does nothing without an id, with a hashed one (there every ad has a row) or without content.
    """
    body, dim = model.item_tower.body, model.settings.vector_dim
    item_id, content = _own_id(body), _content(body)
    if item_id is None or not content:
        return
    codes = data.items[item_id].astype(np.int64)
    known: npt.NDArray[np.bool_] = codes >= _KNOWN
    if not known.any():
        return
    # The columns in which the id has a part, and among them those of the vector.
    columns = np.r_[0 : body.own_dim, dim : body.width]
    own = slice(body.own_dim)
    vectors = _outputs(body, data)
    lengths = np.linalg.norm(vectors[:, :dim], axis=1)
    usual = float(np.median(lengths[known]))
    directions = vectors[:, own] * (usual / np.maximum(lengths, 1e-12))[:, None]
    table = body.tables[item_id]
    for weights in (table, *body.gates.values()):
        weights.assign(tf.zeros_like(weights))
    for weights in content.values():
        values = weights.numpy()
        values[:, columns] = 0.0
        weights.assign(values)
    rest = vectors[:, columns]
    rest[:, own] -= _fit(body, data, directions, known)
    rows = np.zeros(tuple(table.shape), np.float32)
    rows[codes[known]] = rest[known]
    rows[_KNOWN - 1, body.own_dim :] = rest[known, body.own_dim :].mean(0)
    table.assign(rows)
    if model.item_tower.usual_length is not None:
        model.item_tower.usual_length.assign(usual)


def content_of(body: FeatureSum) -> list[Any]:
    """What ``content_rate`` is about: all weights of the items' content, where rows of their own can do all the
    learning and content is fitted in the end.
    """
    if _own_id(body) is None:
        return []
    return [*_content(body).values(), *body.gates.values(), *body.token_logits.values()]


def _own_id(body: FeatureSum) -> str | None:
    """The feature that gives each known ad a row of its own."""
    return next((f.name for f in body.features if f.kind == "id" and f.hash_buckets is None), None)


def _content(body: FeatureSum) -> dict[str, Any]:
    """The tables and maps of all features but ids."""
    weights = {**body.tables, **body.maps}
    return {feature.name: weights[feature.name] for feature in body.features if feature.kind != "id"}


def _fit(body: FeatureSum, data: TrainingData, wanted: Float, known: npt.NDArray[np.bool_]) -> Float:
    """Adds to the weights of the content what tells ``wanted [items, dim]`` of the ``known``; returns what content
    then says of all, as large.

    Two rounds over the features, each fitted to what the others leave: means of a value's ads for tables, ridge
    regression for maps.
    """
    said = np.zeros_like(wanted)
    for _ in range(2):
        for name, weights in _content(body).items():
            left = (wanted - said)[known]
            inputs: Any
            if name in body.tables:
                inputs = body.code_weights(name, data.items[name])
                mass = np.asarray(inputs[known].sum(0)).ravel()
                step = (inputs[known].T @ left) / (mass + _SHRINKAGE)[:, None]
            else:
                # A gate of zeros lets one half through.
                inputs = data.items[name].astype(np.float32) * (0.5 if name in body.gates else 1.0)
                squares = inputs[known].T @ inputs[known]
                penalty = _RIDGE * max(float(np.diag(squares).mean()), 1e-6) * np.eye(len(squares))
                step = np.linalg.solve(squares + penalty, inputs[known].T @ left).astype(np.float32)
            values = weights.numpy()
            values[:, : step.shape[1]] += step
            weights.assign(values)
            said += inputs @ step
    return said


def _outputs(body: FeatureSum, data: TrainingData) -> Float:
    """``[items, width]`` of the whole catalogue."""
    parts = []
    for start in range(0, data.num_items, _BLOCK):
        inputs: dict[str, Any] = {
            feature.name: tf.constant(data.items[feature.name][start : start + _BLOCK]) for feature in body.features
        }
        parts.append(body(inputs).numpy())
    return np.concatenate(parts)
