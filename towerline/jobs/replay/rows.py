"""The rows of a replay: one per night, as they are kept between runs and written to ``replay.json``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from index.evaluation.sections.part import Bounds, Figure, Part

# What is asked on each day. fresh: the version live after that night. frozen: the first version. weekly: the version
# live after the latest night whose number is a multiple of seven. backtest: the towers that the fresh version was
# measured with, as if they had been published. refused: the bundle that a gate refused that night.
Arm = Literal["fresh", "frozen", "weekly", "backtest", "refused"]
ARMS: tuple[Arm, ...] = ("fresh", "frozen", "weekly", "backtest", "refused")
# all: everything a user chose that day. novel: what the user had not chosen before. new: ads that nobody had.
PartName = Literal["all", "novel", "new"]
PARTS: tuple[PartName, ...] = ("all", "novel", "new")
Outcome = Literal["published", "unchanged", "refused", "failed"]


class Measured(Part):
    """One arm on one part of a day's truth: recall@100 over its users, with a bootstrap interval."""

    recall: Figure
    interval: Bounds
    users: int


class NightRow(Part):
    """One night and the day after it.

    night: from 0. date: the day that it has not seen, which is the truth. outcome: what became of it. error: why it was
    refused or failed. version: live after it. resumed: it was begun by an earlier run that was stopped, so that its
    seconds are not whole. stages: seconds by stage. seconds: of the whole night; asking_seconds: of the measurement.
    verdicts: of the gates, as in a version's manifest. users: with an event on the day; pairs: of a user and an ad
    chosen; new_pairs: those of ads that nobody had chosen before. stale_records: the features of the night could not
    be made, so that the users were described by older ones. churn: mean share of the fresh top 100 that the version
    before does not have. false_alarm: whether a refused bundle was not certainly worse than the live version; None
    where nothing was refused or nothing was live.
    """

    night: int
    date: str
    outcome: Outcome
    error: str | None = None
    version: str | None = None
    resumed: bool = False
    stages: dict[str, float] = Field(default_factory=dict)
    seconds: float = 0.0
    asking_seconds: float = 0.0
    verdicts: tuple[dict[str, Any], ...] = ()
    users: int = 0
    pairs: int = 0
    new_pairs: int = 0
    stale_records: bool = False
    measured: dict[Arm, dict[PartName, Measured]] = Field(default_factory=dict)
    churn: Figure = None
    false_alarm: bool | None = None

    def recall(self, arm: Arm, part: PartName = "all") -> float | None:
        """Recall@100 of an arm on a part of the truth; None if it was not measured."""
        found = self.measured.get(arm, {}).get(part)
        return None if found is None else found.recall
