"""Which towers a training run publishes, and why: its start, or what training made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# In the facts of a model and of its bundle.
TOWERS_FACT, WHY_FACT = "towers", "towers_why"
# In the same: the parts of the split whose events they have learned from.
LEARNED_FACT = "learned_from"


@dataclass(frozen=True)
class Published:
    """towers: "start" if no step of training is in the published weights, else "trained". why: for people."""

    towers: Literal["start", "trained"]
    why: str

    def as_facts(self) -> dict[str, str]:
        """For the manifest."""
        return {TOWERS_FACT: self.towers, WHY_FACT: self.why}


def published(
    best_epoch: int, valid: Sequence[tuple[int, float]], *, asked: int | None = None, continued: int | None = None
) -> Published:
    """What became of a run.

    Args:
        best_epoch: the epoch whose weights are published; 0 is the start.
        valid: validation recall by epoch, the start as epoch 0; empty without a validation part.
        asked: the number of epochs, where it was given and not looked for.
        continued: the number of epochs by which an earlier model was continued.
    """
    if continued is not None:
        return Published("trained", f"an earlier model was continued for {_epochs(continued)}")
    if asked is not None:
        return Published(
            "start" if asked == 0 else "trained",
            "no epoch of training was asked for" if asked == 0 else f"{_epochs(asked)} of training were asked for",
        )
    by_epoch = dict(valid)
    trained = [recall for epoch, recall in by_epoch.items() if epoch > 0]
    if best_epoch > 0:
        if best_epoch not in by_epoch:
            return Published("trained", f"{_epochs(best_epoch)} without a validation part to choose by")
        start = f", at the start {by_epoch[0]:.4f}" if 0 in by_epoch else ""
        best = f"epoch {best_epoch} has the highest validation recall, {by_epoch[best_epoch]:.4f}"
        return Published("trained", f"of {_epochs(len(trained))}, {best}{start}")
    if not trained or 0 not in by_epoch:
        return Published("start", "no epoch was trained")
    return Published(
        "start",
        f"none of {_epochs(len(trained))} of training improved on its validation recall of {by_epoch[0]:.4f}; the best "
        f"one had {max(trained):.4f}",
    )


def _epochs(number: int) -> str:
    return "1 epoch" if number == 1 else f"{number} epochs"
