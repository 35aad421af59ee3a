"""A gate's verdict, and how it is shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True)
class Verdict:
    """A gate's result.

    stage: at fault if it failed. recall: recall@100 of the new bundle on held-out events, of the gate that is about it.
    """

    gate: str
    outcome: Outcome
    measured: float | None
    threshold: float | None
    stage: str
    detail: str
    recall: float | None = None

    @classmethod
    def at_least(cls, gate: str, measured: float, threshold: float, stage: str, detail: str) -> Verdict:
        """Passed if the figure reaches the threshold."""
        return cls(gate, "passed" if measured >= threshold else "failed", measured, threshold, stage, detail)

    @classmethod
    def at_most(cls, gate: str, measured: float, threshold: float, stage: str, detail: str) -> Verdict:
        """Passed if the figure does not exceed the threshold."""
        return cls(gate, "passed" if measured <= threshold else "failed", measured, threshold, stage, detail)

    @classmethod
    def skipped(cls, gate: str, threshold: float | None, stage: str, why: str) -> Verdict:
        """Not judged, for a reason."""
        return cls(gate, "skipped", None, threshold, stage, why)

    @property
    def line(self) -> str:
        """For the terminal."""
        sign = {"passed": "ok  ", "failed": "FAIL", "skipped": "skip"}[self.outcome]
        figure = "" if self.measured is None else f" {_formatted(self.measured)}"
        bound = "" if self.threshold is None else f" (threshold {_formatted(self.threshold)})"
        fault = f"; look at `towerline {self.stage}`" if self.outcome == "failed" else ""
        return f"{sign} {self.gate}{figure}{bound}: {self.detail}{fault}"

    def as_fact(self) -> dict[str, Any]:
        """For the manifest."""
        return dataclasses.asdict(self)


def _formatted(figure: float) -> str:
    """Counts and large figures as whole numbers, fractions with four digits."""
    return f"{figure:,.0f}" if abs(figure) >= 1000 or float(figure).is_integer() else f"{figure:.4g}"
