"""Losses over a batch's queries and candidates. One function per published quantity.

A batch has ``queries`` user vectors and ``candidates`` item vectors, the union of the batch's positives and of items
drawn uniformly. A candidate is a negative for every query it is not a positive of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from towers.runtime import tf

# Used as minus infinity where exp() must give 0 and gradients must stay finite.
MASKED = -1e9


@dataclass(frozen=True)
class Pairs:
    """Queries with their positives: ``queries [pairs] int32``, the ``scores [pairs]`` of both, ``weights [pairs]``."""

    queries: Any
    scores: Any
    weights: Any


@dataclass(frozen=True)
class Certain:
    """Negatives that are certain to be in the batch: ``queries [pairs] int32``, ``scores [pairs]``, ``weights [pairs]``
    above 0: the number of items that each counts as.
    """

    queries: Any
    scores: Any
    weights: Any


def sampled_softmax(
    logits: Any, log_inclusion: Any, positives: Pairs, excluded: Any, certain: Certain | None = None
) -> Any:
    """The softmax cross entropy of each positive against the catalogue, the latter estimated from the candidates.

    ``-log(exp(s_p) / (exp(s_p) + sum_j exp(s_j) / pi_j))`` with j over the candidates that are not excluded and pi_j
    the probability that j is among them (Horvitz-Thompson; Bengio & Senécal 2008; Yi et al. 2019 for in-batch
    candidates, Yang et al. 2020 for their mixture with uniform ones). Deviation from Yi et al.: only the
    negatives are corrected, because the positive is certain to be in the denominator.

    Args:
        logits: ``[queries, candidates]`` scores divided by the temperature.
        log_inclusion: ``[candidates]``.
        positives: the pairs to be explained, their scores divided by the temperature as well.
        excluded: ``[places, 2] int32`` (query, candidate) that are not negatives: all of a query's positives among the
            candidates, accidental hits, certain negatives.
        certain: a stratum of its own in the denominator, with pi = 1: mined negatives, impressions without action.

    Returns:
        The weighted sum of the pairs' losses (a mean if the weights add up to 1).
    """
    negatives = tf.tensor_scatter_nd_update(
        logits - log_inclusion[None, :], excluded, tf.fill([tf.shape(excluded)[0]], tf.cast(MASKED, logits.dtype))
    )
    partition = tf.reduce_logsumexp(negatives, axis=1)
    if certain is not None:
        partition = _log_add(partition, certain)
    losses = tf.nn.softplus(tf.gather(partition, positives.queries) - positives.scores)
    return tf.reduce_sum(losses * positives.weights)


def _log_add(partition: Any, certain: Certain) -> Any:
    """``log(exp(partition) + sum_j w_j exp(s_j))`` by query."""
    scores, count = certain.scores + tf.math.log(certain.weights), tf.shape(partition)[0]
    highest = tf.maximum(partition, tf.math.unsorted_segment_max(scores, certain.queries, count))
    highest = tf.stop_gradient(highest)
    parts = tf.exp(scores - tf.gather(highest, certain.queries))
    total = tf.exp(partition - highest) + tf.math.unsorted_segment_sum(parts, certain.queries, count)
    return highest + tf.math.log(total)
