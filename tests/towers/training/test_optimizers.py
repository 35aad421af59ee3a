"""Lazy Adam: rows with gradients are updated as in Adam, the others not at all."""

from __future__ import annotations

import numpy as np

from towers.runtime import tf
from towers.training.optimizers import LazyAdam


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


def test_a_rowwise_table_keeps_one_number_per_row() -> None:
    rng = np.random.default_rng(0)
    start = rng.normal(size=(5, 3)).astype(np.float32)
    variable = tf.Variable(start, name="own")
    optimizer = LazyAdam(0.1, rowwise=[variable.name])
    expected, v = start.astype(float), np.zeros(5)
    for step in range(1, 5):
        # Twice a row, and none twice out of order and in order.
        rows = np.array([[3, 1, 3], [3, 1, 4], [1, 3, 4]][step % 3])
        values = rng.normal(size=(3, 3))
        slices = tf.IndexedSlices(tf.constant(values, tf.float32), tf.constant(rows), [5, 3])
        optimizer.apply_gradients([(slices, variable)])
        for row in np.unique(rows):
            gradient = values[rows == row].sum(0)
            v[row] = 0.999 * v[row] + 0.001 * np.mean(gradient**2)
            expected[row] -= 0.1 * np.sqrt(1 - 0.999**step) * gradient / (np.sqrt(v[row]) + 1e-7)
    np.testing.assert_allclose(variable.numpy(), expected, atol=1e-5)
    assert sum(int(tf.size(state)) for state in optimizer.variables) <= 5 + 2  # with the step and the rate


def test_a_rowwise_table_takes_a_dense_gradient_too() -> None:
    start, gradient = np.ones((4, 2), np.float32), np.arange(8, dtype=np.float32).reshape(4, 2)
    variables = [tf.Variable(start, name=name) for name in ("dense", "sparse")]
    optimizer = LazyAdam(0.1, rowwise=[variable.name for variable in variables])
    slices = tf.IndexedSlices(tf.constant(gradient), tf.range(4), [4, 2])
    optimizer.apply_gradients([(tf.constant(gradient), variables[0]), (slices, variables[1])])
    np.testing.assert_allclose(variables[0].numpy(), variables[1].numpy(), atol=1e-6)
    assert (variables[0].numpy()[1:] < 1).all()
