"""The case that the gates decide: the new bundle and the live one, each asked what a gate wants to know.

Two questions are kept apart. What would users see tonight: the bundle itself, asked for the panel as of now. And how
good is it on events that it has not seen: the backtest's bundle where there is one, asked as of the held-out windows.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from index.evaluation.measures.metrics import user_metrics
from index.evaluation.towers_measured import measured_towers
from index.publishing.answers import Answers, K, Served
from index.publishing.panel import Panel
from index.registry.bundle import Bundle
from index.search.searcher import Rows
from index.settings import GatesSettings
from pipelines.contracts.arrays import Float64
from pipelines.contracts.errors import SchemaError


@dataclass(frozen=True)
class Unasked:
    """Why the live version has no answer."""

    why: str


@dataclass(frozen=True)
class Agreement:
    """How many of their best ``depth`` items two models have in common: for the same user, and for two different users.

    Two models that answer everybody alike have as many in common for any two users.
    """

    same_user: float
    two_users: float
    users: int
    depth: int

    @property
    def above_chance(self) -> float:
        """What the same user's answers have in common beyond those of two users, as a share of what is possible.

        1 for equal answers, 0 or less if they say nothing of the user: Cohen's kappa of the overlaps.
        """
        possible = 1.0 - self.two_users
        return (self.same_user - self.two_users) / possible if possible > 0.0 else 1.0


@dataclass(frozen=True)
class Case:
    """Everything the gates look at; what needs answers is computed on first use.

    live: None if nothing is live. held_out: the panel with its held-out events. now: the same users, asked for what
    they would see tonight.
    """

    bundle: Bundle
    live: Bundle | None
    settings: GatesSettings
    held_out: Panel
    now: Panel

    @classmethod
    def of(
        cls, bundle: Bundle, live: Bundle | None, features: Path, settings: GatesSettings, night: Path | None
    ) -> Case:
        """Chooses the panel.

        Raises:
            ArtifactError: the features are missing or damaged.
        """
        panel = Panel.of(features, settings.panel)
        return cls(bundle, live, settings, panel, panel if night is None else panel.in_features(night))

    @functools.cached_property
    def served(self) -> Served:
        """What the bundle serves tonight."""
        return Served.of(self.bundle, self.now.records(self.bundle))

    @functools.cached_property
    def live_served(self) -> Answers | Unasked:
        """What the live version would serve tonight."""
        return _asked(self.live, self.now)

    @functools.cached_property
    def measured(self) -> Answers:
        """The answers on which held-out events are measured."""
        measured = self.bundle.measured
        if measured is self.bundle and self.now is self.held_out:
            return self.served.answers
        return Answers.from_bundle(measured, self.held_out.records(measured))

    @functools.cached_property
    def live_measured(self) -> Answers | Unasked:
        """The live version's answers on which held-out events are measured."""
        if self.live is None:
            return _asked(None, self.held_out)
        measured, towers = self.live.measured, measured_towers(self.live, self.held_out.test_from_us)
        if towers.seen:
            return Unasked(
                f"the live version has learned from events until {towers.learned_until}, and tonight's held-out events "
                f"begin at {towers.held_out_from}"
            )
        if measured is self.live and self.now is self.held_out:
            return self.live_served
        return _asked(measured, self.held_out)

    def ranked(self, answers: Answers) -> Rows:
        """``[panel, 100] int32``: the answers as rows of the features' catalogue, -1 for an item it does not have."""
        return answers.rows_in(self.held_out.catalogue)

    def recalls(self, answers: Answers) -> Float64:
        """``[panel] float64`` recall@100 on held-out events, NaN for users without any."""
        return user_metrics(self.ranked(answers), self.held_out.truth, (K,)).at("recall", K)

    @functools.cached_property
    def agreement(self) -> Agreement | None:
        """How far the bundle's towers agree with its backtest's, for the users whom a search answers; None without a
        backtest or with fewer than two such users.

        Both rank by exact search. As many items are compared as a tenth of the catalogue, at most 100: all items would
        always agree.
        """
        backtest = self.bundle.backtest
        if backtest is None or len(self.served.vectors) < 2:
            return None
        depth = min(K, max(1, self.bundle.num_items // 10))
        records = [one for one, kept in zip(self.served.records, self.served.answers.searched, strict=True) if kept]
        vectors = backtest.record_embedder().vectors(records)
        found = backtest.exact.search_batch(vectors, min(depth, backtest.num_items)).rows
        theirs = np.append(self.bundle.vocabulary.item_rows(backtest.vocabulary.item_ids), np.int32(-1))[found]
        ours = self.served.exact[:, :depth]
        return Agreement(_overlap(ours, theirs), _overlap(np.roll(ours, 1, axis=0), theirs), len(ours), depth)


def _asked(bundle: Bundle | None, panel: Panel) -> Answers | Unasked:
    if bundle is None:
        return Unasked("nothing is live yet")
    try:
        return Answers.from_bundle(bundle, panel.records(bundle))
    except SchemaError as err:
        return Unasked(f"the live version cannot read these users: {err}")


def _overlap(first: Rows, second: Rows) -> float:
    """Mean share of each line of ``first`` that is in the same line of ``second``."""
    return float(np.mean([np.isin(mine, other).mean() for mine, other in zip(first, second, strict=True)]))
