"""The exported towers: vectors from a model artifact, without the training code's model.

Reads ``model/``. Used by tests and benchmarks; single requests go through LiteRT.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Int32
from pipelines.contracts.kinds.feature import HISTORY_INPUTS
from towers.data.histories import Histories
from towers.data.training_data import Features, TrainingData
from towers.runtime import tf
from towers.training.validation_recall import TowerVectors, known_at


class SavedTowers:
    """Both SavedModels of a model artifact at ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._loaded = [tf.saved_model.load(str(directory / name)) for name in ("item_tower", "user_tower")]
        self._item, self._user = (loaded.signatures["serving_default"] for loaded in self._loaded)

    def vectors(self, data: TrainingData, users: Int32, split: int, block: int = 2048) -> TowerVectors:
        """Vectors of the catalogue, and of ``users [n] int32`` as known when ``split`` begins."""
        known = known_at(data, users, split)
        features = data.items | known.item_moving
        profiles = {name: column[users] for name, column in data.users.items()} | known.user_moving
        names = set(self._item.structured_input_signature[1])
        items = np.concatenate(
            [
                self._item(**{name: tf.constant(features[name][start : start + block]) for name in names})[
                    "vectors"
                ].numpy()
                for start in range(0, data.num_items, block)
            ]
        )
        parts = [self._users(items, profiles, known.histories, slice(at, at + 256)) for at in range(0, len(users), 256)]
        return TowerVectors(items, np.concatenate(parts) if parts else np.zeros((0, items.shape[1]), np.float32))

    def _users(
        self, items: npt.NDArray[np.float32], profiles: Features, known: Histories, part: slice
    ) -> npt.NDArray[np.float32]:
        mask = (known.rows[part] >= 0).astype(np.float32)
        values: tuple[npt.NDArray[Any], ...] = (
            items[np.maximum(known.rows[part], 0)] * mask[:, :, None],
            mask,
            known.ages_days[part],
            known.actions[part].astype(np.int32),
        )
        inputs: Features = dict(zip(HISTORY_INPUTS, values, strict=True))
        inputs |= {name: column[part] for name, column in profiles.items()}
        names = self._user.structured_input_signature[1]
        vectors: npt.NDArray[np.float32] = self._user(**{name: tf.constant(inputs[name]) for name in names})[
            "vector"
        ].numpy()
        return vectors
