"""Training with bfloat16 scores compared with the same training in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.saved_towers import SavedTowers
from tests.towers.tiny import tiny_data
from towers.export import write_towers
from towers.runtime import tf
from towers.settings import settings_for
from towers.training.job import train

SMALL = {
    "embedding_dim": 17, "epochs": 4, "batch_users": 32, "uniform_negatives": 30, "learning_rate": 0.02,
    "select_k": (10,), "temperature": 0.1, "refit": False, "history_encoder": "mean",
}  # fmt: skip


def test_the_loss_curve_is_that_of_float32_and_the_weights_are_float32(tmp_path: Path) -> None:
    """bfloat16 keeps 8 bits: a cosine over the temperature .1 is off by up to 10 / 256, one way or the other.

    The loss is a mean over many of them and falls from 3.9 to 2.6: .2 % of that is less than what one may be off by.
    """
    data = tiny_data("set")
    curves, trained = {}, None
    for mixed in (False, True):
        settings = settings_for(data.schema, **(SMALL | {"mixed_precision": mixed}))
        trained = train(data, settings, seed=3)
        curves[mixed] = np.array([epoch.loss for epoch in trained.curves if epoch.epoch > 0])
    assert len(curves[True]) == len(curves[False]) == 4
    assert not np.array_equal(curves[True], curves[False])
    np.testing.assert_allclose(curves[True], curves[False], rtol=0.002)
    # The curve goes down by more than the two differ.
    assert curves[True][-1] < 0.95 * curves[True][0]

    assert trained is not None
    write_towers(trained.model, data.schema, settings, tmp_path, seed=1)
    for tower in ("item_tower", "user_tower"):
        weights = tf.saved_model.load(str(tmp_path / tower)).variables_of_tower
        assert weights
        assert {weight.dtype for weight in weights if weight.dtype.is_floating} == {tf.float32}
    vectors = SavedTowers(tmp_path).vectors(data, np.arange(5, dtype=np.int32), 2)
    assert vectors.users.dtype == vectors.items.dtype == np.float32
