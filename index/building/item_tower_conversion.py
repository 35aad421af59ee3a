"""Converts the item tower to LiteRT: the model's SavedModel to ``item_tower.tflite``. Needs TensorFlow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from index.inference.item_tower import LiteItemTower
from index.search.searcher import Vectors
from pipelines.contracts.errors import ArtifactError

# Largest difference from TensorFlow's numbers that float32 rounding explains.
TOLERANCE = 1e-4


def convert(saved_model: Path, out: Path, columns: Mapping[str, npt.NDArray[Any]], expected: Vectors) -> None:
    """Converts the SavedModel and compares the two.

    Args:
        saved_model: the item tower.
        out: the file to write.
        columns: encoded features of some items.
        expected: ``[items, dim] float32``: the SavedModel's vectors for them.

    Raises:
        ArtifactError: the converted tower returns other vectors.
    """
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model), signature_keys=["serving_default"])
    out.write_bytes(converter.convert())
    difference = float(np.abs(LiteItemTower(out).vectors(columns) - expected).max(initial=0.0))
    if not difference <= TOLERANCE:
        raise ArtifactError(
            f"{out.name}: differs from the SavedModel by {difference:.2e}, expected at most {TOLERANCE:.0e}. "
            "This TensorFlow and this LiteRT do not agree: run `towerline doctor`."
        )
