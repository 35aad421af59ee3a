"""The item tower in LiteRT: vectors for new and changed ads without TensorFlow, in milliseconds.

Reads ``item_tower.tflite``, which ``index.building.item_tower_conversion`` writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from ai_edge_litert.interpreter import Interpreter

from index.search.searcher import Vectors
from pipelines.contracts.errors import ArtifactError, SchemaError

# Rows per call.
_BATCH_ROWS = 512


class LiteItemTower:
    """The item tower. Not safe to call from several threads at once."""

    def __init__(self, file: Path) -> None:
        """Opens the tower.

        Raises:
            ArtifactError: the file is missing or not a LiteRT model of an item tower.
        """
        try:
            self._interpreter = Interpreter(model_path=str(file), num_threads=os.cpu_count())
            signature = self._interpreter.get_signature_runner("serving_default")
        except (OSError, ValueError, RuntimeError) as err:
            raise ArtifactError(f"{file}: expected an item tower for LiteRT ({err}). Build the bundle again.") from err
        self._inputs: dict[str, Any] = signature.get_input_details()
        self._output = signature.get_output_details()["vectors"]["index"]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the encoded features that the tower reads."""
        return tuple(sorted(self._inputs))

    def vectors(self, columns: Mapping[str, npt.NDArray[Any]]) -> Vectors:
        """Embeds encoded items.

        Args:
            columns: encoded features, ``[items, ..]`` each (``pipelines.contracts.encoding``), one item or more.

        Returns:
            ``[items, dim] float32``.

        Raises:
            SchemaError: a feature that the tower reads is missing.
        """
        missing = sorted(set(self._inputs) - set(columns))
        if missing:
            raise SchemaError(f"items: the item tower reads {', '.join(missing)}, which the schema does not define.")
        rows = len(columns[self.input_names[0]])
        return np.concatenate(
            [
                self._batch(columns, slice(start, min(rows, start + _BATCH_ROWS)))
                for start in range(0, rows, _BATCH_ROWS)
            ]
        )

    def _batch(self, columns: Mapping[str, npt.NDArray[Any]], part: slice) -> Vectors:
        rows = part.stop - part.start
        for name, detail in self._inputs.items():
            self._interpreter.resize_tensor_input(detail["index"], [rows, *columns[name].shape[1:]])
        self._interpreter.allocate_tensors()
        for name, detail in self._inputs.items():
            self._interpreter.set_tensor(detail["index"], np.ascontiguousarray(columns[name][part], detail["dtype"]))
        self._interpreter.invoke()
        vectors: Vectors = self._interpreter.get_tensor(self._output)
        return vectors
