"""Continues from an earlier model: moves its weights to the codes of the new vocabulary.

Reads a model artifact.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.contracts.errors import ArtifactError
from pipelines.contracts.manifest import Manifest, read_manifest
from pipelines.contracts.schema import Side
from pipelines.contracts.vocabulary import OUT_OF_VOCABULARY, RESERVED_CODES, FittedCodes, ValueTable, Vocabulary
from towers.network.encoders import FeatureSum
from towers.network.model import TwoTowers
from towers.runtime import tf

NIGHTS = "warm_nights"
EPOCHS_FOUND = "epochs_found"
FORGOTTEN_USERS = "forgotten_users"


@dataclass(frozen=True)
class WarmStart:
    """``epochs`` over all training events, starting with the weights of the model artifact at ``model``."""

    model: Path
    epochs: int

    def nights(self) -> int:
        """Number of warm starts since the last full training, including this one."""
        return nights_of(read_manifest(self.model)) + 1

    def fill(self, towers: TwoTowers, features: Path) -> None:
        """Gives ``towers`` the model's weights.

        A value that the model knows keeps its row under its new code; an unknown value gets the row of unknown values,
        so it starts with the vector that the retriever used until now.

        Raises:
            ArtifactError: the model's weights do not fit towers with these features and settings.
        """
        old, new = (Vocabulary.load(folder / "vocabulary") for folder in (self.model, features))
        sides: tuple[tuple[Side, Any, FeatureSum | None], ...] = (
            ("item", towers.item_tower, towers.item_tower.body),
            ("user", towers.user_tower, towers.user_tower.profile),
        )
        for side, tower, body in sides:
            by_value = _by_value(body, old.side(side), new.side(side))
            stored = tf.saved_model.load(str(self.model / f"{side}_tower")).variables_of_tower
            if len(stored) != len(tower.variables):
                raise self._misfit(f"{len(tower.variables)} {side} weights", str(len(stored)))
            for variable, kept in zip(tower.variables, stored, strict=True):
                weights = kept.numpy()
                if id(variable) in by_value:
                    weights = _moved(weights, *by_value[id(variable)])
                if weights.shape != tuple(variable.shape):
                    raise self._misfit(f"{variable.name} of shape {tuple(variable.shape)}", f"{weights.shape}")
                variable.assign(weights)

    def _misfit(self, expected: str, got: str) -> ArtifactError:
        return ArtifactError(f"{self.model}: expected {expected}, got {got}. Train in full.")


def forgotten_users(features: Manifest) -> int:
    """Number of users whom the features were made without, because they asked to be forgotten."""
    return int((features.facts.get("forgotten") or {}).get("users", 0))


def nights_of(model: Manifest) -> int:
    """Number of consecutive warm starts behind a model; 0: trained in full."""
    return int(model.facts.get(NIGHTS) or 0)


def epochs_found(model: Manifest) -> int:
    """The number of epochs that the last full training behind a model found best."""
    # Models made before this was kept were trained in full, or went on from one for a night's few epochs.
    return int(model.facts[EPOCHS_FOUND] if EPOCHS_FOUND in model.facts else model.facts["best_epoch"])


def _by_value(
    body: FeatureSum | None, old: dict[str, Any], new: dict[str, Any]
) -> dict[int, tuple[FittedCodes, FittedCodes]]:
    """The weights with a row per value (by ``id``), with their old and new values."""
    if body is None:
        return {}
    weights = [*body.tables.items(), *body.token_logits.items()]
    return {id(weight): (old[name], new[name]) for name, weight in weights if new[name].hash_buckets is None}


def _moved(weights: npt.NDArray[Any], old: FittedCodes, new: FittedCodes) -> npt.NDArray[Any]:
    """``weights [codes of old, ..]`` as ``[codes of new, ..]``."""
    places = ValueTable(old.values).places(new.values)
    codes = np.where(places < 0, OUT_OF_VOCABULARY, places + RESERVED_CODES)
    return np.concatenate([weights[:RESERVED_CODES], weights[codes]])
