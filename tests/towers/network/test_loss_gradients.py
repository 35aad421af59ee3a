"""The sampled softmax's expected gradient against the full softmax's, exactly: over all sets of candidates.

Candidates are drawn as batches have them: the different items of some draws with replacement, and a uniform draw
without. Nothing is simulated, so a bias has no standard error, and what must be zero is zero but for rounding (the
logs that correct are float32: about 1e-7).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from tests import oracles
from towers.network.losses import Certain, Pairs, sampled_softmax
from towers.runtime import tf

# Shares of the draws, their number, and the uniform draw's part of the catalogue -> ``[kinds]`` logs that correct.
Probability = Callable[[np.ndarray, int, float], np.ndarray]


@dataclass(frozen=True)
class Catalogue:
    """Items of some kinds, equal within a kind: ``sizes [kinds]`` how many there are, ``events [kinds]`` what each
    is drawn by, ``scores [kinds]`` of the one query. Kind 0 is the query's positive alone.
    """

    sizes: tuple[int, ...]
    events: tuple[int, ...]
    scores: tuple[float, ...]

    @property
    def shares(self) -> np.ndarray:
        return np.array(self.events) / sum(s * e for s, e in zip(self.sizes, self.events, strict=True))

    @property
    def masses(self) -> np.ndarray:
        """``[kinds]`` what each kind adds to the partition."""
        return np.array(self.sizes) * np.exp(self.scores)

    def full_gradient(self) -> np.ndarray:
        """``[kinds]`` d/ds of -log softmax(s)[positive], added up over each kind's items."""
        return self.masses / self.masses.sum() - (np.arange(len(self.sizes)) == 0)


# Twelve different items, the last of which nobody has had yet.
SMALL = Catalogue(
    (1,) * 12,
    (10, 40, 20, 8, 6, 5, 4, 3, 2, 1, 1, 0),
    (0.4, -0.8, 1.1, 2.0, -1.3, 0.2, 0.9, -0.5, 1.6, 0.0, -2.1, 1.3),
)
# Its two best negatives.
BEST = (3, 8)
# A thousand known items, and enough others that a draw finds each of them less than once in a million batches.
LARGE = Catalogue((1, 1000, 100_000_000), (1_000_000, 1_000_000, 1), (8.0, 0.0, -10.0))
# Four negatives.
FEW = Catalogue((1,) * 5, (1,) * 5, (0.4, -0.8, 1.1, 2.0, -0.3))
# Numbers of draws, and of uniform items.
BATCHES = ((0, 3), (1, 1), (6, 2), (20, 10))


@dataclass(frozen=True)
class Drawn:
    """All that may be drawn: ``counts [sets, kinds]`` candidates of each kind besides the positive, ``chances [sets]``
    the probability of each, which add up to 1.
    """

    counts: np.ndarray
    chances: np.ndarray


def drawn(catalogue: Catalogue, draws: int, uniform: int) -> Drawn:
    """``draws`` with replacement by the events, joined with ``uniform`` different items.

    All candidates lie within a set with ``t_k`` items of kind k (and the positive) with probability
    ``(sum t_k e_k / events)^draws C(sum t_k, uniform) / C(items, uniform)``; that they are just this set follows by
    inclusion and exclusion, its finite differences. These cancel, so they are of whole numbers.
    """
    sizes, events = catalogue.sizes[1:], catalogue.events
    shape = tuple(min(size, draws + uniform) + 1 for size in sizes)
    within = np.zeros(shape, object)
    for inner in np.ndindex(shape):
        weight = events[0] + sum(t * e for t, e in zip(inner, events[1:], strict=True))
        within[inner] = weight**draws * math.comb(1 + sum(inner), uniform)
    for axis in range(len(shape)):
        along = np.moveaxis(within, axis, 0)
        for order in range(1, len(along)):
            along[order:] = along[order:] - along[order - 1 : -1]
    whole = sum(s * e for s, e in zip(catalogue.sizes, events, strict=True)) ** draws
    whole *= math.comb(sum(catalogue.sizes), uniform)
    found = {
        inner: ways * math.prod(map(math.comb, sizes, inner)) / whole for inner, ways in np.ndenumerate(within) if ways
    }
    counts = np.array([(0, *inner) for inner in found])
    return Drawn(counts, np.array(list(found.values())))


def drawn_with_replacement(q: np.ndarray, draws: int) -> Drawn:
    """Every draw a candidate of its own, kind k with probability ``q [kinds - 1]``: the multinomial's counts."""
    counts = np.array([c for c in itertools.product(range(draws + 1), repeat=len(q)) if sum(c) == draws])
    ways = [math.factorial(draws) / math.prod(map(math.factorial, row.tolist())) for row in counts]
    return Drawn(np.pad(counts, ((0, 0), (1, 0))), np.array(ways) * np.prod(q**counts, axis=1))


@dataclass(frozen=True)
class Expected:
    """Of the loss over all sets: the mean and the variance of the partition it estimates without the positive, and the
    mean ``gradient [kinds]``.
    """

    partition: float
    variance: float
    gradient: np.ndarray


def expected(catalogue: Catalogue, sets: Drawn, log_pi: np.ndarray, certain: tuple[int, ...] = ()) -> Expected:
    """The loss itself, a query a set: its columns are all there can be, those that are not in its set are excluded.

    ``certain`` kinds of one item are no candidates but a stratum of their own.
    """
    widths = sets.counts.max(0)
    widths[0] = 1
    kinds = np.repeat(np.arange(len(widths)), widths)
    copies = np.concatenate([np.arange(width) for width in widths])
    absent = copies >= np.where(np.isin(np.arange(len(widths)), certain), 0, sets.counts)[:, kinds]
    excluded = tf.constant(np.argwhere(absent), tf.int32)
    queries = tf.range(len(sets.counts))
    scores, weights = tf.constant(catalogue.scores, tf.float64), tf.constant(sets.chances, tf.float64)
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([scores, weights])
        logits = tf.gather(tf.repeat(scores[None], len(sets.counts), 0), kinds, axis=1)
        mined = _certain(scores, len(sets.counts), certain) if certain else None
        pairs = Pairs(queries, tf.repeat(scores[:1], len(sets.counts)), weights)
        loss = sampled_softmax(logits, tf.constant(log_pi[kinds], tf.float64), pairs, excluded, mined)
    losses = tape.gradient(loss, weights).numpy()
    partitions = np.expm1(losses) * np.exp(catalogue.scores[0])
    mean = float(sets.chances @ partitions)
    return Expected(mean, float(sets.chances @ (partitions - mean) ** 2), tape.gradient(loss, scores).numpy())


def _certain(scores: tf.Tensor, sets: int, kinds: tuple[int, ...]) -> Certain:
    queries, own = np.repeat(np.arange(sets), len(kinds)), np.tile(kinds, sets)
    return Certain(tf.constant(queries, tf.int32), tf.gather(scores, own), tf.ones(len(own), tf.float64))


def bias(catalogue: Catalogue, found: Expected) -> float:
    """Of the expected gradient, from the full softmax's: the sum of the absolute differences."""
    return float(np.abs(found.gradient - catalogue.full_gradient()).sum())


def of_batch(
    catalogue: Catalogue, draws: int, uniform: int, probability: Probability, certain: tuple[int, ...] = ()
) -> Expected:
    log_pi = probability(catalogue.shares, draws, uniform / sum(catalogue.sizes))
    return expected(catalogue, drawn(catalogue, draws, uniform), log_pi, certain)


def check_the_partition(catalogue: Catalogue, probability: Probability, certain: tuple[int, ...] = ()) -> None:
    """Horvitz and Thompson: divided by their probabilities to be there, those that are there add up to all."""
    for draws, uniform in BATCHES:
        found = of_batch(catalogue, draws, uniform, probability, certain)
        assert found.partition == pytest.approx(catalogue.masses[1:].sum(), rel=1e-6)


def check_the_rate(catalogue: Catalogue, probability: Probability) -> None:
    """Over 4 to 32 draws and as many uniform items, the bias falls as 1 / negatives: a slope of -1 in logarithms.

    What is divided by an estimate Z' of the partition Z is biased by the estimate's variance,
    ``z_j Var(Z') / Z^3 - Cov(z_j', Z') / Z^2``, and by higher moments (Bengio & Senécal 2008). Both come from
    ``z_j^2 (1 / pi_j - 1)``, and while pi_j is small it grows as the number of negatives does: in a large catalogue,
    whose own size is not felt. (In a small one pi_j ends at 1, and the bias at 0.)
    """
    sizes = np.array([4, 8, 16, 32])
    found = [bias(catalogue, of_batch(catalogue, int(n), int(n), probability)) for n in sizes]
    slope = np.polyfit(np.log(sizes), np.log(found), 1)[0]
    assert slope == pytest.approx(-1, abs=0.05)
    assert np.log2(found[-2] / found[-1]) == pytest.approx(1, abs=0.05)


def check_the_softmax_has_no_bias(catalogue: Catalogue, probability: np.ndarray) -> None:
    """Blanc & Rendle 2018, theorem 2.1: drawn with replacement by the softmax itself, the gradient has no bias, however
    few the draws; exp(s_j) / q_j is then the same for all j, and every estimate of the partition exact.
    """
    q = catalogue.masses[1:] / catalogue.masses[1:].sum()
    for draws in (1, 2, 5):
        log_pi = np.log(draws * np.append(1.0, probability))
        found = expected(catalogue, drawn_with_replacement(q, draws), log_pi)
        np.testing.assert_allclose(found.gradient, catalogue.full_gradient(), atol=1e-9)


def log_inclusion(shares: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    return np.log([oracles.inclusion_with_replacement(share, draws, uniform) for share in shares])


def squared(shares: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    return log_inclusion(shares**2 / (shares**2).sum(), draws, uniform)


def left_out(shares: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    return np.zeros(len(shares))


def floored(shares: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    """As TensorFlow Recommenders' retrieval task has it: no probability below a millionth."""
    return np.maximum(log_inclusion(shares, draws, uniform), np.log(1e-6))


def uniform_alone(shares: np.ndarray, draws: int, uniform: float) -> np.ndarray:
    """The draws of the batch forgotten."""
    return log_inclusion(shares, 0, uniform)


def test_the_sets_are_those_of_every_draw_there_is() -> None:
    """Three draws by 2, 3, 0 and 1 events and two different of four items: all 4^3 * 6 ways, one by one."""
    events = (2, 3, 0, 1)
    ways: Counter[tuple[int, ...]] = Counter()
    for draw in itertools.product(range(4), repeat=3):
        for uniform in itertools.combinations(range(4), 2):
            chosen = {*draw, *uniform}
            ways[0, *(int(item in chosen) for item in (1, 2, 3))] += math.prod(events[item] for item in draw)
    sets = drawn(Catalogue((1,) * 4, events, (0.0,) * 4), 3, 2)
    found = dict(zip(map(tuple, sets.counts.tolist()), sets.chances.tolist(), strict=True))
    assert found == pytest.approx({chosen: count / (6**3 * 6) for chosen, count in ways.items() if count})
    # Equal items are one kind: of these two with one event each, as many as of the two as kinds of their own.
    equal = drawn(Catalogue((1, 2), (1, 1), (0.0,) * 2), 2, 1)
    apart = drawn(Catalogue((1,) * 3, (1,) * 3, (0.0,) * 3), 2, 1)
    np.testing.assert_allclose(equal.chances, np.bincount(apart.counts.sum(1), apart.chances)[equal.counts[:, 1]])


@pytest.mark.parametrize("catalogue", [SMALL, LARGE])
def test_the_computed_probability_is_that_of_being_drawn(catalogue: Catalogue) -> None:
    for draws, uniform in BATCHES:
        sets = drawn(catalogue, draws, uniform)
        realised = (sets.chances @ sets.counts)[1:] / catalogue.sizes[1:]
        probability = np.exp(log_inclusion(catalogue.shares, draws, uniform / sum(catalogue.sizes)))[1:]
        np.testing.assert_allclose(probability, realised, rtol=3e-6)


@pytest.mark.parametrize("catalogue", [SMALL, LARGE])
def test_the_partition_has_no_bias(catalogue: Catalogue) -> None:
    check_the_partition(catalogue, log_inclusion)


def test_the_bias_falls_as_one_over_the_negatives() -> None:
    check_the_rate(LARGE, log_inclusion)


@pytest.mark.parametrize("probability", [squared, left_out, floored, uniform_alone])
def test_a_wrong_q_is_found(probability: Probability) -> None:
    with pytest.raises(AssertionError):
        check_the_partition(LARGE, probability)
    with pytest.raises(AssertionError):
        check_the_rate(LARGE, probability)


@pytest.mark.parametrize("probability", [squared, left_out, uniform_alone])
def test_a_wrong_q_is_found_with_certain_negatives(probability: Probability) -> None:
    with pytest.raises(AssertionError):
        check_the_partition(SMALL, probability, BEST)


def test_drawn_by_the_softmax_itself_it_has_no_bias() -> None:
    softmax = FEW.masses[1:] / FEW.masses[1:].sum()
    check_the_softmax_has_no_bias(FEW, softmax)
    for wrong in (np.full(4, 0.25), softmax**2 / (softmax**2).sum()):
        with pytest.raises(AssertionError):
            check_the_softmax_has_no_bias(FEW, wrong)


def test_drawn_by_anything_else_it_has_some() -> None:
    """What tells the theorem's case from others: evenly drawn and rightly corrected, twelve draws are biased yet."""
    found = expected(FEW, drawn_with_replacement(np.full(4, 0.25), 12), np.full(5, np.log(12 / 4)))
    assert found.partition == pytest.approx(FEW.masses[1:].sum(), rel=1e-9)
    assert bias(FEW, found) > 0.01


def test_certain_negatives_leave_the_partition_unbiased_and_less_noisy() -> None:
    """The two best of twelve as a stratum of their own: less variance is less bias of the gradient."""
    check_the_partition(SMALL, log_inclusion, BEST)
    for draws, uniform in BATCHES:
        without, found = (of_batch(SMALL, draws, uniform, log_inclusion, certain) for certain in ((), BEST))
        assert found.variance < 0.5 * without.variance
        assert bias(SMALL, found) < 0.9 * bias(SMALL, without)


def test_with_every_item_a_candidate_it_is_the_full_softmax() -> None:
    found = of_batch(SMALL, 0, 12, log_inclusion)
    assert found.variance < 1e-12
    np.testing.assert_allclose(found.gradient, SMALL.full_gradient(), atol=1e-12)
