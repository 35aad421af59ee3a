"""Lazy Adam: the rows that have gradients move as Adam moves them, the others not at all."""

from __future__ import annotations

import numpy as np

from towers.optimizers import LazyAdam
from towers.runtime import tf


def adam_by_hand(weights: np.ndarray, gradients: list[np.ndarray], rate: float) -> np.ndarray:
    """Kingma & Ba 2015, algorithm 1, in the form with the corrected step size."""
    m, v = np.zeros_like(weights), np.zeros_like(weights)
    for step, gradient in enumerate(gradients, 1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        size = rate * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
        weights = weights - size * m / (np.sqrt(v) + 1e-7)
    return weights


def test_a_dense_variable_moves_as_adam_says() -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(4, 3)), [rng.normal(size=(4, 3)) for _ in range(5)]
    variable, optimizer = tf.Variable(start.astype(np.float32)), LazyAdam(0.1)
    for gradient in gradients:
        optimizer.apply_gradients([(tf.constant(gradient, tf.float32), variable)])
    np.testing.assert_allclose(variable.numpy(), adam_by_hand(start, gradients, 0.1), atol=1e-5)


def test_rows_without_a_gradient_stay_and_repeated_rows_are_added_up() -> None:
    start = np.arange(12, dtype=np.float32).reshape(4, 3)
    variable, optimizer = tf.Variable(start), LazyAdam(0.1)
    values = np.array([[1.0, 2, 3], [4, 5, 6], [1, 1, 1]], np.float32)
    for _ in range(3):
        optimizer.apply_gradients([(tf.IndexedSlices(tf.constant(values), tf.constant([2, 0, 2]), [4, 3]), variable)])
    np.testing.assert_array_equal(variable.numpy()[[1, 3]], start[[1, 3]])
    np.testing.assert_allclose(variable.numpy()[2], adam_by_hand(start[2], [values[0] + values[2]] * 3, 0.1), atol=1e-5)
    np.testing.assert_allclose(variable.numpy()[0], adam_by_hand(start[0], [values[1]] * 3, 0.1), atol=1e-5)
