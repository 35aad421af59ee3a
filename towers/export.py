"""The model artifact: both towers as SavedModels, the query tower for LiteRT, and a check that all agree.

Writes below an artifact draft: ``item_tower/``, ``user_tower/``, ``query_tower.tflite``, ``towers.json``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from ai_edge_litert.interpreter import Interpreter

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.feature import HISTORY_INPUTS
from pipelines.contracts.schema import DatasetSchema
from towers.network.encoders import FeatureSum
from towers.network.model import TwoTowers
from towers.runtime import tf
from towers.settings import TowersSettings

# Largest difference between LiteRT's and Keras's vectors that float32 rounding explains, for entries up to 1; for
# larger entries, which items of free length have, it grows in proportion.
TOLERANCE = 1e-5
# Rows to compare: of the item tower in one batch, and of the user towers one at a time.
_ITEMS, _USERS = 64, 8


def write_towers(
    model: TwoTowers, schema: DatasetSchema, settings: TowersSettings, directory: Path, seed: int
) -> dict[str, Any]:
    """Writes both towers below ``directory`` and compares the written towers with the model.

    Returns:
        The content of ``towers.json``: settings, dim, history, space, the towers' input names.

    Raises:
        ArtifactError: a reloaded tower returns other vectors than the model.
    """
    item_inputs = {feature.name: _spec(feature, None) for feature in schema.side("item")}
    possible = _user_specs(schema, settings, None)
    user_inputs = {name: possible[name] for name in model.user_tower.needed_inputs()}
    single = {name: _spec_of(spec, 1) for name, spec in user_inputs.items()}
    _save(model.item_tower, item_inputs, "vectors", directory / "item_tower")
    _save(model.user_tower, user_inputs, "vector", directory / "user_tower")
    (directory / "query_tower.tflite").write_bytes(_convert(model.user_tower, single))
    facts: dict[str, Any] = {
        "settings": settings.model_dump(mode="json", exclude={"tune"}),
        "dim": settings.embedding_dim,
        "item_bias": settings.item_bias,
        "temperature": float(model.temperature),
        "history": schema.history.max_length if settings.history_encoder != "none" else 0,
        "space": f"towers-{_weights_hash(model)}",
        "item_inputs": sorted(item_inputs),
        "query_inputs": sorted(user_inputs),
        "difference": _compare(model, item_inputs, single, directory, seed),
    }
    (directory / "towers.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
    return facts


def _spec(feature: Feature, batch: int | None) -> Any:
    shape = [batch, *feature.input_shape]
    return tf.TensorSpec(shape, tf.as_dtype(np.dtype(feature.input_dtype)), name=feature.name)


def _spec_of(spec: Any, batch: int) -> Any:
    return tf.TensorSpec([batch, *spec.shape[1:]], spec.dtype, name=spec.name)


def _user_specs(schema: DatasetSchema, settings: TowersSettings, batch: int | None) -> dict[str, Any]:
    length = schema.history.max_length
    history = dict(
        zip(
            HISTORY_INPUTS,
            (
                tf.TensorSpec([batch, length, settings.embedding_dim], tf.float32, name=HISTORY_INPUTS[0]),
                tf.TensorSpec([batch, length], tf.float32, name=HISTORY_INPUTS[1]),
                tf.TensorSpec([batch, length], tf.float32, name=HISTORY_INPUTS[2]),
                tf.TensorSpec([batch, length], tf.int32, name=HISTORY_INPUTS[3]),
            ),
            strict=True,
        )
    )
    return history | {feature.name: _spec(feature, batch) for feature in schema.side("user")}


def _function(tower: Any, specs: dict[str, Any], output: str) -> Any:
    names = list(specs)

    def call(**inputs: Any) -> dict[str, Any]:
        return {output: tower({name: inputs[name] for name in names}, training=False)}

    return tf.function(call).get_concrete_function(**specs)


class _Served(tf.Module):
    """What a SavedModel holds: a tower's weights and its one function."""

    def __init__(self, tower: Any, specs: dict[str, Any], output: str) -> None:
        super().__init__()
        self.variables_of_tower = list(tower.variables)
        self.serve = _function(tower, specs, output)


def _save(tower: Any, specs: dict[str, Any], output: str, directory: Path) -> None:
    served = _Served(tower, specs, output)
    tf.saved_model.save(served, str(directory), signatures={"serving_default": served.serve})


def _convert(tower: Any, specs: dict[str, Any]) -> bytes:
    """The query tower for one user, in float32, with LiteRT's builtin operations only."""
    served = _Served(tower, specs, "vector")
    converter = tf.lite.TFLiteConverter.from_concrete_functions([served.serve], served)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    converted: bytes = converter.convert()
    return converted


def _weights_hash(model: TwoTowers) -> str:
    digest = xxhash.xxh3_64()
    for tower in (model.item_tower, model.user_tower):
        for weights in tower.get_weights():
            digest.update(np.ascontiguousarray(weights).tobytes())
    return digest.hexdigest()


def _codes(body: FeatureSum | None) -> dict[str, int]:
    """Number of codes of each coded feature of a side."""
    return {} if body is None else {name: int(table.shape[0]) for name, table in body.tables.items()}


def _random_inputs(
    specs: dict[str, Any], rows: int, codes: dict[str, int], generator: np.random.Generator
) -> dict[str, npt.NDArray[Any]]:
    """``rows`` inputs of a tower: codes from 0 to the last of each table (``codes``: how many it has), histories of any
    length; the first is empty, the last full.
    """
    inputs: dict[str, npt.NDArray[Any]] = {}
    for name, spec in specs.items():
        shape = [rows, *spec.shape[1:]]
        if spec.dtype.is_integer:
            inputs[name] = generator.integers(0, codes[name], shape).astype(spec.dtype.as_numpy_dtype)
        elif name == "history_mask":
            lengths = generator.integers(0, shape[1] + 1, rows)
            lengths[0], lengths[-1] = 0, shape[1]
            inputs[name] = (np.arange(shape[1]) < lengths[:, None]).astype(np.float32)
        elif name == "history_age_days":
            inputs[name] = generator.uniform(0, 90, shape).astype(np.float32)
        else:
            inputs[name] = generator.normal(0, 0.3, shape).astype(np.float32)
    return inputs


def _compare(
    model: TwoTowers, item_inputs: dict[str, Any], single: dict[str, Any], directory: Path, seed: int
) -> dict[str, float]:
    """``{file: largest difference}`` between the vectors of the model and of the written towers, on random inputs."""
    generator = np.random.default_rng(seed)
    items = _random_inputs(item_inputs, _ITEMS, _codes(model.item_tower.body), generator)
    reloaded = tf.saved_model.load(str(directory / "item_tower")).signatures["serving_default"]
    of_model = {"item_tower": model.item_tower(_tensors(items)).numpy()}
    of_file = {"item_tower": reloaded(**_tensors(items))["vectors"].numpy()}

    codes = _codes(model.user_tower.profile)
    if "history_action" in single:
        codes["history_action"] = int(model.user_tower.pool.action_weights.shape[0])
    users = _random_inputs(single, _USERS, codes, generator)
    of_model["user_tower"] = of_model["query_tower"] = model.user_tower(_tensors(users)).numpy()
    batched = tf.saved_model.load(str(directory / "user_tower")).signatures["serving_default"]
    of_file["user_tower"] = batched(**_tensors(users))["vector"].numpy()
    lite = Interpreter(model_path=str(directory / "query_tower.tflite")).get_signature_runner("serving_default")
    each = [{name: value[row : row + 1] for name, value in users.items()} for row in range(_USERS)]
    of_file["query_tower"] = np.concatenate([lite(**user)["vector"] for user in each])
    return {name: _difference(of_file[name], expected, directory / name) for name, expected in of_model.items()}


def _tensors(inputs: dict[str, npt.NDArray[Any]]) -> dict[str, Any]:
    return {name: tf.constant(value) for name, value in inputs.items()}


def _difference(found: npt.NDArray[Any], expected: npt.NDArray[Any], file: Path) -> float:
    difference = float(np.abs(found - expected).max())
    most = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    if not difference <= most:
        raise ArtifactError(
            f"{file}: the reloaded tower differs from the trained one by {difference:.2e}, expected at most {most:.0e}."
            " This TensorFlow and this LiteRT do not agree: run `towerline doctor`."
        )
    return difference
