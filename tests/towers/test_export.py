"""What was exported is what was trained, for each encoder; a wrongly written table is detected."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.contracts.errors import ArtifactError
from tests.towers.tiny import tiny_data
from towers import export
from towers.data.training_data import TrainingData
from towers.export import write_towers
from towers.network.model import TwoTowers
from towers.runtime import tf
from towers.settings import TowersSettings, settings_for
from towers.training.validation_recall import all_vectors


def data_of(kind: str, length: int) -> TrainingData:
    """Tiny data with histories of up to ``length`` events and two actions."""
    data = tiny_data(kind)
    history = data.schema.history.model_copy(update={"max_length": length})
    schema = data.schema.model_copy(update={"history": history, "actions": {"view": 0.5, "buy": 1.0}})
    return dataclasses.replace(data, schema=schema)


def drawn(data: TrainingData, **given: object) -> tuple[TwoTowers, TowersSettings]:
    """Towers whose weights are all drawn at random, but the id's reserved rows: nothing hides behind a zero."""
    settings = settings_for(data.schema, **({"embedding_dim": 17, "heads": 2, **given}))
    model = TwoTowers(data, settings, 1)
    all_vectors(model, data, np.arange(2, dtype=np.int32), 2)
    rng = np.random.default_rng(2)
    for weights in model.trainable_variables:
        weights.assign(weights + rng.normal(0, 0.2, weights.shape).astype(np.float32))
    return model, settings


@pytest.mark.parametrize(
    ("kind", "length", "encoder"),
    [
        ("time", 10, "recency"),
        ("time", 10, "attention"),
        ("time", 10, "transformer"),
        # In blocks, the last one with 44 places.
        ("order", 300, "transformer"),
        ("set", 10, "none"),
    ],
)
def test_the_files_say_what_the_model_says(kind: str, length: int, encoder: str, tmp_path: Path) -> None:
    data = data_of(kind, length)
    model, settings = drawn(data, history_encoder=encoder)
    differences = write_towers(model, data.schema, settings, tmp_path, seed=1)["difference"]
    assert sorted(differences) == ["item_tower", "query_tower", "user_tower"]
    assert max(differences.values()) <= 1e-5


def rows_turned(values: np.ndarray) -> np.ndarray:
    """The rows of real values one further; those of the reserved codes 0 and 1 stay."""
    return np.concatenate([values[:2], np.roll(values[2:], 1, axis=0)])


def newest_turned(values: np.ndarray) -> np.ndarray:
    """The last place of a full history alone."""
    return np.concatenate([values[:-1], -values[-1:]])


@dataclasses.dataclass(frozen=True)
class Wrong:
    """Weights of a tower with this history ``encoder`` that are written wrongly, and which ``file`` then differs."""

    file: str
    weights: Callable[[TwoTowers], Any]
    turned: Callable[[np.ndarray], np.ndarray] = rows_turned
    encoder: str = "recency"


WRONG = {
    "ids": Wrong("item_tower", lambda model: model.item_tower.body.tables["item"]),
    "categories": Wrong("item_tower", lambda model: model.item_tower.body.tables["category"]),
    "words": Wrong("item_tower", lambda model: model.item_tower.body.tables["title"]),
    "countries": Wrong("user_tower", lambda model: model.user_tower.profile.tables["country"]),
    "actions": Wrong("user_tower", lambda model: model.user_tower.pool.action_weights, lambda values: values[::-1]),
    "places": Wrong("user_tower", lambda model: model.user_tower.pool.positions, newest_turned, "transformer"),
}


# LiteRT has the user's side only.
@pytest.mark.parametrize(
    ("wrong", "lite"),
    [(name, lite) for name in WRONG for lite in (False, True) if WRONG[name].file == "user_tower" or not lite],
)
def test_a_table_that_was_written_wrongly_is_found(
    wrong: str, lite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, data = WRONG[wrong], data_of("time", 10)
    model, settings = drawn(data, history_encoder=case.encoder)
    weights = case.weights(model)

    def wrongly(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(tower: Any, *arguments: Any) -> Any:
            right = weights.numpy()
            weights.assign(case.turned(right))
            try:
                return write(tower, *arguments)
            finally:
                weights.assign(right)

        return call

    name = "_convert" if lite else "_save"
    monkeypatch.setattr(export, name, wrongly(getattr(export, name)))
    expected = "query_tower" if lite else case.file
    # An item's vector is of free length, here up to 2: so much larger is what rounding may do.
    message = (
        rf"{expected}: the reloaded tower differs from the trained one by \d\.\d\de[-+]\d\d, expected at most [12]e-05"
    )
    with pytest.raises(ArtifactError, match=message):
        write_towers(model, data.schema, settings, tmp_path, seed=1)


def test_a_tower_of_nan_is_found(tmp_path: Path) -> None:
    data = data_of("time", 10)
    model, settings = drawn(data)
    model.item_tower.body.maps["price"].assign(tf.fill([2, 17], np.nan))
    with pytest.raises(ArtifactError, match="item_tower: the reloaded tower differs from the trained one by nan"):
        write_towers(model, data.schema, settings, tmp_path, seed=1)
