"""Chains: four stages that lead to one bundle. One chain, or two with rolling windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FEATURES, MODEL, EMBEDDINGS, BUNDLE = "features", "model", "embeddings", "bundle"


@dataclass(frozen=True)
class Chain:
    """Four stages that lead to one bundle. place: of their folders, below the run's."""

    name: Literal["only", "backtest", "night"]
    place: str = ""

    def folder(self, artifact: str) -> str:
        """The folder of one of the four artifacts, below the run's."""
        return f"{self.place}{artifact}"


# What is measured is what is published.
ONLY = Chain("only")
# With rolling windows: towers that have not seen the held-out events, and towers that have learned from all events.
BACKTEST, NIGHT = Chain("backtest"), Chain("night", "night/")
