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

from pipelines.encode import input_dtype, input_shape
from pipelines.errors import ArtifactError
from pipelines.schema import HISTORY_INPUTS, DatasetSchema, Feature
from towers.model import TwoTowers
from towers.runtime import tf
from towers.settings import TowersSettings

# Largest difference between LiteRT's and Keras's vector that rounding explains at float32.
TOLERANCE = 1e-5


def write_towers(
    model: TwoTowers, schema: DatasetSchema, settings: TowersSettings, directory: Path, seed: int
) -> dict[str, Any]:
    """Writes both towers below ``directory`` and compares what was written with the model.

    Returns:
        What ``towers.json`` says: settings, dim, history, space, the towers' input names.

    Raises:
        ArtifactError: a reloaded tower gives another vector than the model does.
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
        "difference": _compare(model, item_inputs, single, directory, np.random.default_rng(seed)),
    }
    (directory / "towers.json").write_text(json.dumps(facts, indent=2, sort_keys=True))
    return facts


def _spec(feature: Feature, batch: int | None) -> Any:
    shape = [batch, *input_shape(feature)]
    return tf.TensorSpec(shape, tf.as_dtype(np.dtype(input_dtype(feature))), name=feature.name)


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
    """The query tower for one user, float32, LiteRT's builtin operations alone."""
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


def _random_inputs(specs: dict[str, Any], batch: int, generator: np.random.Generator) -> dict[str, npt.NDArray[Any]]:
    """Inputs of the right shapes; codes 0 to 2 exist in every table, action 0 in every data set."""
    inputs: dict[str, npt.NDArray[Any]] = {}
    for name, spec in specs.items():
        shape = [batch, *spec.shape[1:]]
        if spec.dtype.is_integer:
            high = 1 if name == "history_action" else 2
            inputs[name] = generator.integers(0, high, shape).astype(spec.dtype.as_numpy_dtype)
        elif name == "history_mask":
            inputs[name] = (np.arange(shape[1]) < generator.integers(0, shape[1] + 1, (batch, 1))).astype(np.float32)
        elif name == "history_age_days":
            inputs[name] = generator.uniform(0, 90, shape).astype(np.float32)
        else:
            inputs[name] = generator.normal(0, 0.3, shape).astype(np.float32)
    return inputs


def _compare(
    model: TwoTowers,
    item_inputs: dict[str, Any],
    single: dict[str, Any],
    directory: Path,
    generator: np.random.Generator,
) -> dict[str, float]:
    items = _random_inputs(item_inputs, 5, generator)
    reloaded = tf.saved_model.load(str(directory / "item_tower")).signatures["serving_default"]
    of_model = model.item_tower({name: tf.constant(value) for name, value in items.items()}).numpy()
    of_file = reloaded(**{name: tf.constant(value) for name, value in items.items()})["vectors"].numpy()
    differences = {"item_tower": float(np.abs(of_model - of_file).max())}
    batched = tf.saved_model.load(str(directory / "user_tower")).signatures["serving_default"]
    lite = Interpreter(model_path=str(directory / "query_tower.tflite")).get_signature_runner("serving_default")
    worst = {"user_tower": 0.0, "query_tower": 0.0}
    for _ in range(5):
        user = _random_inputs(single, 1, generator)
        tensors = {name: tf.constant(value) for name, value in user.items()}
        expected = model.user_tower(tensors).numpy()
        found = {"user_tower": batched(**tensors)["vector"].numpy(), "query_tower": lite(**user)["vector"]}
        for name, vector in found.items():
            worst[name] = max(worst[name], float(np.abs(vector - expected).max()))
    differences |= worst
    for name, difference in differences.items():
        if not difference <= TOLERANCE:
            raise ArtifactError(
                f"{directory / name}: the reloaded tower differs from the trained one by {difference:.2e}, expected at "
                f"most {TOLERANCE:.0e}. This TensorFlow and this LiteRT do not agree: run `towerline doctor`."
            )
    return differences
