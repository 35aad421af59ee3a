"""Losses against slow references, and against the full softmax they estimate."""

from __future__ import annotations

import numpy as np
import pytest

from towers.losses import Certain, Pairs, cosine_contrastive, log_inclusion, sampled_softmax
from towers.runtime import tf

ITEMS, POSITIVE = 40, 3


def scores() -> np.ndarray:
    """Scores of one query, spread over about six nats."""
    return np.random.default_rng(5).normal(0, 1.5, ITEMS).astype(np.float32)


def full_softmax_gradient(logits: np.ndarray) -> np.ndarray:
    """d/ds of -log softmax(s)[positive]: probabilities less the indicator of the positive."""
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum() - (np.arange(len(logits)) == POSITIVE)


def gradient(logits: np.ndarray, candidates: np.ndarray, log_pi: np.ndarray) -> np.ndarray:
    """The sampled loss's gradient on all items' scores; candidate 0 is the positive."""
    return _gradient(tf.constant(logits), tf.constant(candidates, tf.int32), tf.constant(log_pi)).numpy()


@tf.function(reduce_retracing=True)
def _gradient(logits: tf.Tensor, candidates: tf.Tensor, log_pi: tf.Tensor) -> tf.Tensor:
    own = tf.constant([[0, 0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        chosen = tf.gather(logits, candidates)[None, :]
        loss = sampled_softmax(chosen, log_pi, Pairs(own[:, 0], chosen[0, :1], tf.constant([1.0])), own)
    return tf.convert_to_tensor(tape.gradient(loss, logits))


def test_with_every_item_a_candidate_it_is_the_full_softmax() -> None:
    logits = scores()
    candidates = np.r_[POSITIVE, np.delete(np.arange(ITEMS), POSITIVE)]
    found = gradient(logits, candidates, np.zeros(ITEMS, np.float32))
    np.testing.assert_allclose(found, full_softmax_gradient(logits), atol=1e-6)


def mean_gradient(q: np.ndarray, told: np.ndarray, draws: int, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of the gradient over samples of ``draws`` negatives from ``q``, corrected by ``told``.

    With replacement; an item drawn twice stands twice, each with the expected count ``draws * told``.
    """
    rng = np.random.default_rng(draws)
    logits = scores()
    negatives = np.delete(np.arange(ITEMS), POSITIVE)
    found = []
    for _ in range(repeats):
        drawn = rng.choice(negatives, draws, p=q[negatives] / q[negatives].sum())
        log_pi = np.log(draws * told[drawn] / told[negatives].sum()).astype(np.float32)
        found.append(gradient(logits, np.r_[POSITIVE, drawn], np.r_[np.float32(0), log_pi]))
    stacked = np.stack(found)
    return stacked.mean(0), stacked.std(0) / np.sqrt(repeats)


def test_the_bias_falls_as_the_negatives_grow() -> None:
    """A ratio of means is biased by O(1 / negatives) (Bengio & Senécal 2008): fewer negatives, more bias."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(ITEMS)) * 0.7 + 0.3 / ITEMS
    truth = full_softmax_gradient(scores())
    few, _ = mean_gradient(q, q, 8, 1500)
    many, _ = mean_gradient(q, q, 128, 600)
    assert np.abs(few - truth).sum() > 3 * np.abs(many - truth).sum()
    assert np.abs(many - truth).sum() < 0.05


def test_drawn_by_the_softmax_itself_it_has_no_bias() -> None:
    """Blanc & Rendle 2018, theorem 2.1: exp(s_j) / q_j is then the same for all j, and the partition is exact."""
    logits = scores()
    q = np.exp(logits) / np.exp(logits).sum()
    mean, _ = mean_gradient(q, q, 8, 1500)
    # The gradient of a negative is its share of 8 draws times what the positive leaves: a binomial's standard error.
    error = np.sqrt(q * (1 - q) / (8 * 1500))
    assert np.all(np.abs(mean - full_softmax_gradient(logits)) < 4.5 * error + 1e-5)


def test_a_wrong_q_is_found() -> None:
    """Drawn by q but corrected as if uniform: the bias stays, however many negatives."""
    rng = np.random.default_rng(0)
    q = rng.dirichlet(np.ones(ITEMS)) * 0.7 + 0.3 / ITEMS
    truth = full_softmax_gradient(scores())
    mean, error = mean_gradient(q, np.full(ITEMS, 1 / ITEMS), 128, 300)
    assert np.abs(mean - truth).sum() > 0.15
    assert np.any(np.abs(mean - truth) > 6 * error + 1e-6)


def test_inclusion_is_the_probability_of_being_drawn() -> None:
    """Against simulation: 30 draws by frequency, then 5 of 12 items uniformly without replacement."""
    frequency = np.array([50, 20, 10, 5, 5, 4, 3, 1, 1, 1, 0, 0])
    rng = np.random.default_rng(1)
    seen = np.zeros(12)
    for _ in range(4000):
        drawn = set(rng.choice(12, 30, p=frequency / frequency.sum())) | set(rng.choice(12, 5, replace=False))
        seen[list(drawn)] += 1
    expected = np.exp(log_inclusion(frequency / frequency.sum(), 30, 5 / 12))
    np.testing.assert_allclose(expected, seen / 4000, atol=4.5 * 0.5 / np.sqrt(4000))
    # No floor: an unseen item has the uniform draw's probability, 5 / 12, and not that of the rarest seen one.
    assert expected[-1] == pytest.approx(5 / 12, rel=1e-6)


def test_masked_candidates_get_no_gradient() -> None:
    logits = tf.Variable([[2.0, 1.0, 0.5, 3.0]])
    with tf.GradientTape() as tape:
        pairs = Pairs(tf.constant([0]), logits[0, :1], tf.constant([1.0]))
        loss = sampled_softmax(logits, tf.zeros(4), pairs, tf.constant([[0, 0], [0, 3]]))
    # By hand: log(e^2 + e^1 + e^0.5) - 2.
    assert float(loss) == pytest.approx(np.log(np.exp(2) + np.exp(1) + np.exp(0.5)) - 2, rel=1e-6)
    assert tape.gradient(loss, logits).numpy()[0, 3] == 0.0


def test_cosine_contrastive_by_hand() -> None:
    """One query, positive at cosine .9, negatives at .95, .85 and .2, margin .8, weight 3, four candidates.

    (1 - .9) + 3 / 4 (.15 + .05) = .25.
    """
    loss = cosine_contrastive(
        tf.constant([[0.9, 0.95, 0.85, 0.2]]),
        Pairs(tf.constant([0]), tf.constant([0.9]), tf.constant([1.0])),
        tf.constant([[0, 0]]),
        margin=0.8,
        negative_weight=3.0,
    )
    assert float(loss) == pytest.approx(0.25, rel=1e-5)


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


def test_mined_negatives_keep_the_denominator_unbiased_and_make_it_less_noisy() -> None:
    """Six of 39 negatives drawn evenly, with and without the three best as a stratum of their own."""
    logits, rng = scores(), np.random.default_rng(3)
    negatives = np.delete(np.arange(ITEMS), POSITIVE)
    best = negatives[np.argsort(-logits[negatives])[:3]]
    truth = float(np.exp(logits[negatives]).sum())
    own = Pairs(tf.constant([0]), tf.constant([logits[POSITIVE]]), tf.constant([1.0]))
    mined = Certain(tf.zeros(3, tf.int32), tf.constant(logits[best]), tf.ones(3))
    found: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(1500):
        drawn = rng.choice(negatives, 6, replace=False)
        log_pi = tf.fill([6], np.float32(np.log(6 / len(negatives))))
        for stratum in (False, True):
            places = np.flatnonzero(np.isin(drawn, best)) if stratum else np.zeros(0, int)
            excluded = tf.constant(np.stack([np.zeros(len(places)), places], 1), tf.int32)
            loss = sampled_softmax(tf.constant(logits[drawn])[None], log_pi, own, excluded, mined if stratum else None)
            found[stratum].append((np.exp(float(loss)) - 1) * np.exp(logits[POSITIVE]))
    for values in found.values():
        assert abs(np.mean(values) - truth) < 4.5 * np.std(values) / np.sqrt(len(values))
    assert np.std(found[True]) < 0.5 * np.std(found[False])
