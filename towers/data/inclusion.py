"""The probability that an item is among a batch's candidates, which the loss corrects for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import gammaln

from pipelines.contracts.arrays import Float32, Float64

# Up to this number of takers the probability is computed step by step.
_FEW = 8


@dataclass(frozen=True, eq=False)
class Takers:
    """Who may bring items into a batch.

    number: ``[rows] float64``, the users whose positives include the item when they are in the batch. chance: the
    probability that such a user then shows it, one or ``[rows] float64``: below 1 where positives are hidden at random,
    or where only some of the batch's positives are candidates.
    """

    number: npt.NDArray[np.floating]
    chance: npt.NDArray[np.floating] | float = 1.0


def log_inclusion(takers: Takers, users: int, drawn: int, uniform_share: float) -> Float32:
    """``[rows] float32``: log of the probability that an item is among a batch's candidates.

    One probability for both sources: an item comes with a user who took it, or by a uniform draw without replacement of
    a share of the catalogue. There is no floor: an item that nobody took has the probability of the uniform draw.

    Args:
        takers: of the items.
        users: the users that batches are drawn from, U.
        drawn: those in this batch, B, drawn without replacement.
        uniform_share: share of the catalogue that is drawn uniformly.
    """
    absent = _log_absent(takers, users, drawn)
    with np.errstate(divide="ignore"):
        absent = absent + np.log1p(-min(uniform_share, 1.0))
    # It is 0 for an item in the batch only if nothing is drawn uniformly and nobody took it.
    logs: Float32 = np.log(np.maximum(-np.expm1(absent), 1e-12)).astype(np.float32)
    return logs


def _log_absent(takers: Takers, users: int, drawn: int) -> Float64:
    """``[rows] float64``: log of the probability that no user in the batch shows the item.

    With a chance p of 1 it is ``C(U - c, B) / C(U, B)`` for c takers. Else it is ``E[(1 - p)^K]`` over the number K of
    takers in the batch, which is hypergeometric; a binomial number with the same mean and variance takes its place.
    For few takers it is exact whatever the chance.
    """
    c, p = np.broadcast_arrays(np.asarray(takers.number, np.float64), np.asarray(takers.chance, np.float64))
    if users == 0 or drawn == 0:
        return np.zeros(len(c))
    absent = np.where(p < 1.0, _matched(c, p, users, drawn), _without_replacement(c, users, drawn))
    for few, exact in enumerate(_of_few(p, users, drawn)):
        absent = np.where(c == few, exact, absent)
    return absent


def _without_replacement(c: Float64, users: int, drawn: int) -> Float64:
    """``log C(U - c, B) / C(U, B)``, by gamma functions; minus infinity where c + B > U."""
    left = users - drawn - c
    possible = left >= 0
    kept = np.where(possible, c, 0.0)
    absent = gammaln(users - kept + 1) + gammaln(users - drawn + 1.0)
    absent -= gammaln(users - drawn - kept + 1) + gammaln(users + 1.0)
    return np.where(possible, np.minimum(absent, 0.0), -np.inf)


def _matched(c: Float64, p: Float64, users: int, drawn: int) -> Float64:
    """``log E[(1 - p)^K]`` of a binomial K with the mean and the variance of the hypergeometric one.

    Undefined without takers.
    """
    mean = c * drawn / users
    success = 1.0 - (1.0 - c / users) * (users - drawn) / max(users - 1, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Float64 = mean / success * np.log1p(-p * success)
    return found


def _of_few(p: Float64, users: int, drawn: int) -> Iterator[Float64]:
    """Log of the exact probability for 0, 1, 2 ... takers.

    ``E[(1 - p)^K]`` is Gauss's ``2F1(-c, -B; -U; p)``, whose contiguous relation gives each c from the two before it.
    """
    before, found = np.zeros(len(p)), np.ones(len(p))
    for c in range(min(_FEW, users) + 1):
        with np.errstate(divide="ignore"):
            yield np.log(np.clip(found, 0.0, 1.0))
        if c < users:
            after = (users - 2 * c + c * p - drawn * p) * found + c * (1.0 - p) * before
            before, found = found, after / (users - c)
