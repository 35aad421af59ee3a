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
_CODED = ("categorical", "list", "text")
# A content value's row is a mean over its ads, shrunk as if it had one more of which it says nothing.
_SHRINKAGE = 1.0
_BLOCK = 8192


def settle(model: TwoTowers, data: TrainingData) -> None:
    """Fits the item tower's content tables to the directions of the known ads' vectors.

    Known ads keep their vectors: their own rows take the difference. An ad without an id of its own gets what its
    content says: the nearer to 0 the less that is, and the known ads' mean bias. All known ads weigh alike, however
    often they were sold; else a new ad would be like its kind's best seller. Columns that content fills alone
    (``content_share``), numbers and outside vectors stay as they were learned.

    Does nothing without an id, with a hashed one (there every ad has a row) or without categories, lists and texts.
    """
    body, dim = model.item_tower.body, model.settings.vector_dim
    item_id, coded = _own_id(body), [feature.name for feature in body.features if feature.kind in _CODED]
    if item_id is None or not coded:
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
    for name in coded:
        values = body.tables[name].numpy()
        values[:, columns] = 0.0
        body.tables[name].assign(values)
    table = body.tables[item_id]
    table.assign(tf.zeros_like(table))
    fixed = _outputs(body, data)
    said = _fit(body, data, coded, directions - fixed[:, own], known)
    rest = (vectors - fixed)[:, columns]
    rest[:, own] -= said
    rows = np.zeros(tuple(table.shape), np.float32)
    rows[codes[known]] = rest[known]
    rows[_KNOWN - 1, body.own_dim :] = rest[known, body.own_dim :].mean(0)
    table.assign(rows)
    if model.item_tower.usual_length is not None:
        model.item_tower.usual_length.assign(usual)


def content_of(body: FeatureSum) -> list[Any]:
    """What ``content_rate`` is about: tables and maps of the items' content, where the rows of their own can do all the
    learning and content is fitted in the end. Outside vectors are not fitted, so not among it.
    """
    if _own_id(body) is None:
        return []
    kinds = {feature.name: feature.kind for feature in body.features}
    content = {**body.tables, **body.maps}
    return [weights for name, weights in content.items() if kinds[name] not in ("id", "embedding")]


def _own_id(body: FeatureSum) -> str | None:
    """The feature that gives each known ad a row of its own."""
    return next((f.name for f in body.features if f.kind == "id" and f.hash_buckets is None), None)


def _fit(body: FeatureSum, data: TrainingData, coded: list[str], wanted: Float, known: npt.NDArray[np.bool_]) -> Float:
    """Adds to the ``coded`` features' tables what tells ``wanted [items, dim]`` of the ``known``; returns what they
    then say of all, as large.

    Two rounds over the features, each fitted to what the others leave.
    """
    said = np.zeros_like(wanted)
    for _ in range(2):
        for name in coded:
            codes = body.code_weights(name, data.items[name])
            of_known = codes[known]
            mass = np.asarray(of_known.sum(0)).ravel()
            step = (of_known.T @ (wanted - said)[known]) / (mass + _SHRINKAGE)[:, None]
            values = body.tables[name].numpy()
            values[:, : step.shape[1]] += step
            body.tables[name].assign(values)
            said += codes @ step
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
