"""The pairs' scores and the candidates' vectors, and their gradients, against sums by hand."""

from __future__ import annotations

import numpy as np
import pytest

from towers.network.model import scores_and_candidates
from towers.runtime import tf


@pytest.mark.parametrize("pairs", [0, 1, 40])
def test_scores_candidates_and_their_gradients_are_those_of_sums_by_hand(pairs: int) -> None:
    rng = np.random.default_rng(pairs)
    queries, vectors = (rng.normal(size=(n, 3)).astype(np.float32) for n in (6, 9))
    # The last query and the last vectors have no pair; vector 2 is a candidate twice.
    owners = np.sort(rng.integers(0, 5, pairs)).astype(np.int32)
    rows, candidates = rng.integers(0, 7, pairs).astype(np.int32), np.array([2, 8, 2], np.int32)
    of_scores, of_candidates = rng.normal(size=pairs).astype(np.float32), rng.normal(size=(3, 3)).astype(np.float32)

    of_queries, of_vectors = np.zeros((6, 3)), np.zeros((9, 3))
    for pair, (owner, row) in enumerate(zip(owners, rows, strict=True)):
        of_queries[owner] += of_scores[pair] * vectors[row]
        of_vectors[row] += of_scores[pair] * queries[owner]
    for place, row in enumerate(candidates):
        of_vectors[row] += of_candidates[place]

    asked, known = tf.constant(queries), tf.constant(vectors)
    with tf.GradientTape() as tape:
        tape.watch([asked, known])
        scores, found = scores_and_candidates(
            asked,
            known,
            tf.constant(owners),
            tf.constant(rows),
            by_row=tf.constant(np.argsort(rows, kind="stable").astype(np.int32)),
            candidates=tf.constant(candidates),
        )
        upstream = tf.reduce_sum(scores * of_scores) + tf.reduce_sum(found * of_candidates)
    np.testing.assert_allclose(scores.numpy(), (queries[owners] * vectors[rows]).sum(1), atol=1e-6)
    np.testing.assert_array_equal(found.numpy(), vectors[candidates])
    learned = tape.gradient(upstream, [asked, known])
    np.testing.assert_allclose(learned[0].numpy(), of_queries, atol=1e-5)
    np.testing.assert_allclose(learned[1].numpy(), of_vectors, atol=1e-5)
