"""The query tower: turns a record that was read into a vector, with LiteRT, in a few microseconds.

Reads ``query_tower.tflite``. An interpreter serves one call at a time. The tower keeps a pool of them, as many as there
were ever calls at the same moment, and frees them with itself.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from index.inference.records import Request
from index.search.searcher import Vectors, is_bounded
from pipelines.contracts.encoding import RecordEncoder
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.feature import HISTORY_INPUTS
from pipelines.contracts.schema import DatasetSchema
from pipelines.contracts.vocabulary import Fitted

# Returns the memory of an input or output; it must not be kept across an invocation.
Tensor = Callable[[], npt.NDArray[Any]]
# Writes one history input ``[history, ..]``.
Filler = Callable[[npt.NDArray[Any], Request], None]


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of the inputs in the order they are filled."""

    features: tuple[str, ...]
    history: tuple[str, ...]


class _Runner:
    """One interpreter with its inputs in the order they are filled.

    features: the number of each feature's input. values: an array for each to encode into. What an encoder refuses
    stays in the exception's traceback, which a caller may keep: an input's own memory in it would block the
    interpreter.
    """

    def __init__(self, content: bytes, names: _Names | None) -> None:
        self.interpreter = Interpreter(model_content=content, num_threads=1)
        self.interpreter.allocate_tensors()
        signatures = self.interpreter.get_signature_list()
        if "serving_default" not in signatures:
            raise ArtifactError(f"query tower: expected the signature serving_default, found {sorted(signatures)}")
        signature = self.interpreter.get_signature_runner("serving_default")
        self.details = signature.get_input_details()
        tensor = self.interpreter.tensor
        inputs: dict[str, Tensor] = {name: tensor(detail["index"]) for name, detail in self.details.items()}
        features = () if names is None else names.features
        self.features = tuple(int(self.details[name]["index"]) for name in features)
        self.values = tuple(np.zeros_like(inputs[name]()) for name in features)
        self.history = () if names is None else tuple(inputs[name] for name in names.history)
        outputs = signature.get_output_details()
        if "vector" not in outputs:
            raise ArtifactError(f"query tower: expected an output named vector, found {sorted(outputs)}")
        self.output: Tensor = tensor(outputs["vector"]["index"])


class QueryTower:
    """Turns records into vectors. Safe to call from many threads."""

    def __init__(
        self, content: bytes, schema: DatasetSchema, fitted: Mapping[str, Fitted], item_vectors: Vectors
    ) -> None:
        """Opens the tower.

        Args:
            content: the LiteRT file's bytes.
            schema: names the user features.
            fitted: the vocabulary of the user side.
            item_vectors: ``[items, dim] float32``: the history input is gathered from them.

        Raises:
            ArtifactError: the file is not a LiteRT model, or its inputs do not fit the schema or the vectors.
        """
        self._content = content
        try:
            first = _Runner(content, None)
        except (ValueError, RuntimeError) as err:
            raise ArtifactError(f"query tower: not a LiteRT model ({err}). Export the model again.") from err
        self._features = _used_features(first.details, schema)
        self._encoder = RecordEncoder(self._features, fitted, schema.column_types("users"))
        fillers: dict[str, Filler] = {
            # Not a method: a tower that refers to itself would hold the vectors until the next garbage collection.
            "history": functools.partial(_fill_vectors, item_vectors),
            "history_mask": _fill_mask,
            "history_age_days": _fill_ages,
            "history_action": _fill_actions,
        }
        history = tuple(name for name in HISTORY_INPUTS if name in first.details)
        self._fillers = tuple(fillers[name] for name in history)
        self._names = _Names(tuple(feature.name for feature in self._features), history)
        self._pool = [_Runner(content, self._names)]
        self.history_length, self.dim = _shapes(first)
        width = item_vectors.shape[1]
        if "history" in first.details and int(first.details["history"]["shape"][2]) != width:
            raise ArtifactError(
                f"query tower: reads history vectors of {first.details['history']['shape'][2]} numbers, the bundle's "
                f"have {width}. Build the bundle from one model."
            )

    def over(self, item_vectors: Vectors) -> QueryTower:
        """The same tower over more items; nothing is opened again.

        Args:
            item_vectors: ``[more items, dim] float32``, of the same length as before.
        """
        tower = copy.copy(self)
        tower._fillers = tuple(
            functools.partial(_fill_vectors, item_vectors) if name == "history" else fill
            for name, fill in zip(self._names.history, self._fillers, strict=True)
        )
        return tower

    @property
    def features(self) -> tuple[Feature, ...]:
        """The user features that the tower reads."""
        return self._features

    def embed(self, request: Request, record: Mapping[str, Any]) -> Vectors:
        """Returns the user's vector, ``[dim] float32``.

        Raises:
            SchemaError: a feature's value has the wrong type, or the vector is not finite.
        """
        vector = np.empty(self.dim, np.float32)
        self.embed_into(vector, request, record)
        return vector

    def embed_into(self, vector: Vectors, request: Request, record: Mapping[str, Any]) -> None:
        """Writes the user's vector to ``vector [dim] float32``. Otherwise like ``embed``."""
        try:
            runner = self._pool.pop()
        except IndexError:
            runner = _Runner(self._content, self._names)
        try:
            now_us = request.now_us
            for write, value in zip(self._encoder.writers, runner.values, strict=True):
                write(value, record, now_us)
            # From here on nothing fails because of the record.
            for number, value in zip(runner.features, runner.values, strict=True):
                runner.interpreter.set_tensor(number, value)
            for fill, tensor in zip(self._fillers, runner.history, strict=True):
                fill(tensor()[0], request)
            runner.interpreter.invoke()
            vector[:] = runner.output()[0]
        finally:
            self._pool.append(runner)
        if not is_bounded(vector):
            raise SchemaError("the query tower returned NaN or unbounded numbers. Check the record's numbers.")

    def knows(self, request: Request, record: Mapping[str, Any]) -> Known:
        """What the record's features say about the user.

        Raises:
            SchemaError: a feature's value has the wrong type.
        """
        known_id = known_any = False
        for feature, write in zip(self._features, self._encoder.writers, strict=True):
            target = np.zeros((1, *feature.input_shape), feature.input_dtype)
            write(target, record, request.now_us)
            known = feature.is_known(target)
            known_any = known_any or known
            known_id = known_id or (known and feature.kind == "id")
        return Known(known_id, known_any)


@dataclass(frozen=True, slots=True)
class Known:
    """user_id: the tower has learned the user that the record names. anything: some feature is known."""

    user_id: bool
    anything: bool


def _fill_vectors(item_vectors: Vectors, target: npt.NDArray[Any], request: Request) -> None:
    n = len(request.rows)
    if n:
        # The rows are known to be in range; clipping avoids the copy that checking would make.
        item_vectors.take(request.rows, axis=0, out=target[:n], mode="clip")
    target[n:] = 0.0


def _fill_mask(target: npt.NDArray[Any], request: Request) -> None:
    n = len(request.rows)
    target[:n] = 1.0
    target[n:] = 0.0


def _fill_ages(target: npt.NDArray[Any], request: Request) -> None:
    n = len(request.rows)
    target[:n] = 0.0 if request.ages_days is None else request.ages_days
    target[n:] = 0.0


def _fill_actions(target: npt.NDArray[Any], request: Request) -> None:
    n = len(request.rows)
    target[:n] = 0 if request.actions is None else request.actions
    target[n:] = 0


def _used_features(details: Mapping[str, Any], schema: DatasetSchema) -> tuple[Feature, ...]:
    features = {feature.name: feature for feature in schema.side("user")}
    unknown = sorted(details.keys() - features.keys() - set(HISTORY_INPUTS))
    if unknown:
        raise ArtifactError(
            f"query tower: reads {unknown[0]!r}, not a user feature of the schema. Build the bundle from one model."
        )
    return tuple(feature for name, feature in features.items() if name in details)


def _shapes(runner: _Runner) -> tuple[int, int]:
    """History length (0 if the tower reads no history) and the vector's length."""
    lengths = {int(runner.details[name]["shape"][1]) for name in HISTORY_INPUTS if name in runner.details}
    if len(lengths) > 1:
        raise ArtifactError(f"query tower: its history inputs have different lengths: {sorted(lengths)}")
    return (lengths.pop() if lengths else 0), int(runner.output().shape[-1])
