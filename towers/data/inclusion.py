"""The probability that an item is among a batch's candidates, which the loss corrects for."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def log_inclusion(shares: npt.NDArray[np.float64], draws: int, uniform_share: float) -> npt.NDArray[np.float32]:
    """``[rows] float32``: log of the probability that an item is among a batch's candidates.

    One q for both sources: an item enters the batch by ``draws`` draws, each with probability ``shares [rows]`` (its
    share of the events that positives are drawn from), or by a uniform draw without replacement of a share
    ``uniform_share`` of the catalogue: ``1 - (1 - q)^draws (1 - uniform)``. There is no floor: an item that was never
    seen has the probability of the uniform draw.
    """
    absent = np.exp(draws * np.log1p(-np.minimum(shares, 1 - 1e-12)))
    inclusion = 1.0 - absent * (1.0 - min(uniform_share, 1.0))
    # The formula gives 0 for an item in the batch only if uniform = 0 and it has no train event.
    logs: npt.NDArray[np.float32] = np.log(np.maximum(inclusion, 1e-12)).astype(np.float32)
    return logs
