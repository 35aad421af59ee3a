"""Losses by hand and against slow references."""

from __future__ import annotations

import numpy as np
import pytest

from towers.network.losses import Certain, Pairs, sampled_softmax
from towers.runtime import tf


def test_masked_candidates_get_no_gradient() -> None:
    logits = tf.Variable([[2.0, 1.0, 0.5, 3.0]])
    with tf.GradientTape() as tape:
        pairs = Pairs(tf.constant([0]), logits[0, :1], tf.constant([1.0]))
        loss = sampled_softmax(logits, tf.zeros(4), pairs, tf.constant([[0, 0], [0, 3], [0, 3]]))
    # By hand: log(e^2 + e^1 + e^0.5) - 2.
    assert float(loss) == pytest.approx(np.log(np.exp(2) + np.exp(1) + np.exp(0.5)) - 2, rel=1e-6)
    assert tape.gradient(loss, logits).numpy()[0, 3] == 0.0


def test_certain_negatives_are_a_part_of_the_denominator() -> None:
    """Two queries; the second has two certain negatives, one of which counts as three items. By hand in NumPy."""
    logits = tf.constant([[2.0, 1.0, 0.5], [0.3, -1.0, 4.0]])
    log_pi = tf.constant([-0.1, -0.7, -1.2])
    excluded = tf.constant([[0, 0], [1, 2]])
    positives = Pairs(tf.constant([0, 1]), tf.constant([2.0, 4.0]), tf.constant([0.25, 0.75]))
    scores = tf.Variable([1.5, -0.5])
    with tf.GradientTape() as tape:
        certain = Certain(tf.constant([1, 1]), scores, tf.constant([1.0, 3.0]))
        loss = sampled_softmax(logits, log_pi, positives, excluded, certain)
    first = np.exp(1.0 + 0.7) + np.exp(0.5 + 1.2)
    second = np.exp(0.3 + 0.1) + np.exp(-1.0 + 0.7) + np.exp(1.5) + 3 * np.exp(-0.5)
    expected = 0.25 * (np.log(np.exp(2.0) + first) - 2.0) + 0.75 * (np.log(np.exp(4.0) + second) - 4.0)
    assert float(loss) == pytest.approx(expected, rel=1e-5)
    whole = np.exp(4.0) + second
    np.testing.assert_allclose(
        tape.gradient(loss, scores).numpy(), 0.75 * np.array([np.exp(1.5), 3 * np.exp(-0.5)]) / whole, rtol=1e-4
    )
