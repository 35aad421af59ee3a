"""Fitting of the features on the train window, in pieces that can be computed separately and merged.

A partition is summarised by ``summarise``; ``fit`` merges the summaries. Any cut of the data gives the same result to
the last bit (``pipelines.contracts.kinds.summary``). Each kind decides what is counted and kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from pipelines.contracts.arrays import Int64
from pipelines.contracts.kinds import Feature
from pipelines.contracts.kinds.feature import TrainRows
from pipelines.contracts.kinds.summary import Summary
from pipelines.contracts.vocabulary import Fitted


@dataclass(frozen=True)
class SideSummary:
    """Summaries of one side's features, by name; a kind that needs none has no entry."""

    features: dict[str, Summary] = field(default_factory=dict)


def summarise(
    features: Sequence[Feature], table: pa.Table, ids: pa.Array, frequency: Int64, as_of_us: int
) -> SideSummary:
    """Summarises rows of one side.

    Args:
        features: what is to be fitted.
        table: raw columns; one that is absent counts as null.
        ids: ``[n]`` the rows' own ids.
        frequency: ``[n]`` train events of each; rows without any are left out. A value counts once per train event,
            a number once per row.
        as_of_us: the moment from which ``time_since`` counts.
    """
    summarised = [feature for feature in features if feature.summarised]
    if not summarised:
        return SideSummary()
    seen = pa.array(np.flatnonzero(frequency > 0))
    rows = TrainRows(table.take(seen), ids.take(seen), frequency[np.asarray(seen)], as_of_us)
    return SideSummary({feature.name: feature.summarise(rows) for feature in summarised})


def fit(features: Sequence[Feature], summaries: Iterable[SideSummary]) -> dict[str, Fitted]:
    """Merges the partitions' summaries into the vocabulary's entries; a kind that needs none has no entry."""
    parts = list(summaries)
    fitted: dict[str, Fitted] = {}
    for feature in features:
        entry = feature.fit([part.features[feature.name] for part in parts] if feature.summarised else [])
        if entry is not None:
            fitted[feature.name] = entry
    return fitted
