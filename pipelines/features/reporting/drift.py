"""Drift: how a run's data differ from the previous run's, beyond what the schema allows.

Compares the facts of two manifests and two vocabularies: shares of nulls and of new values, means, and the number of
events per day. Reads the previous artifact's manifest and vocabulary. Imports neither Beam, TensorFlow nor ScaNN.
"""

from __future__ import annotations

import datetime
import logging
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.contracts.conversion import US_PER_DAY
from pipelines.contracts.errors import ArtifactError, SchemaError
from pipelines.contracts.manifest import open_artifact
from pipelines.contracts.schema import DriftLimits, Validation, Window
from pipelines.contracts.vocabulary import Fitted, FittedCodes, FittedNumbers, ValueTable, Vocabulary

_LOG = logging.getLogger("towerline.features")
# Shown even if the root logger hides the libraries' messages.
_LOG.setLevel(logging.WARNING)
# The previous daily mean is taken over this number of days, four whole weeks.
_VOLUME_DAYS = 28


@dataclass(frozen=True)
class Profile:
    """The figures of a run that are compared.

    ``nulls`` has, by table, the number of rows and of nulls by column; ``days`` the accepted events by day since the
    epoch.
    """

    nulls: Mapping[str, Any]
    days: Mapping[int, int]
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Drift:
    """One figure out of bounds: ``kind`` is a limit's name; ``before`` and ``now`` are what was compared."""

    kind: str
    column: str
    before: float
    now: float
    limit: float

    def __str__(self) -> str:
        change = f", {self.now / self.before - 1:+.0%}" if self.kind == "daily_volume" and self.before else ""
        return (
            f"{self.kind} of {self.column}: {self.before:.4g} before, {self.now:.4g} now{change} (limit {self.limit:g})"
        )


@dataclass(frozen=True)
class Before:
    """The previous run, and the fingerprint that names it."""

    profile: Profile
    fingerprint: str

    @classmethod
    def read(cls, directory: Path | None) -> Before | None:
        """The run at ``directory``; None where there is none that can be compared with."""
        if directory is None:
            return None
        try:
            manifest = open_artifact(directory, kind="features", verify=False).manifest
            vocabulary = Vocabulary.load(directory / "vocabulary")
        except ArtifactError:
            return None
        facts = manifest.facts
        if "nulls" not in facts or "days" not in facts:
            return None
        days = used_days({int(day): count for day, count in facts["days"].items()}, Window.of(facts))
        return cls(Profile(facts["nulls"], days, vocabulary), manifest.fingerprint)


def used_days(days: Mapping[int, int], window: Window | None) -> Mapping[int, int]:
    """Of events by day those before the end of a window."""
    return days if window is None else {day: n for day, n in days.items() if day * US_PER_DAY < window.end}


def report(before: Before | None, now: Profile, validation: Validation) -> dict[str, Any] | None:
    """What goes into the manifest: with which run this one was compared, and what drifted; None without comparison.

    Raises:
        SchemaError: something drifted and the schema says that this fails the job.
    """
    if before is None or validation.drift == "off":
        return None
    found = list(drifts(before.profile, now, validation.drift_limits))
    if found and validation.drift == "fail":
        lines = "; ".join(str(drift) for drift in found)
        raise SchemaError(
            f"validation.drift: the data differ from the previous run's ({before.fingerprint}): {lines}. "
            'Correct the tables, raise validation.drift_limits, or set drift = "warn".'
        )
    for drift in found:
        _LOG.warning("drift: %s", drift)
    return {"compared_with": before.fingerprint, "found": [asdict(drift) for drift in found]}


def drifts(before: Profile, now: Profile, limits: DriftLimits) -> Iterator[Drift]:
    """All figures beyond their limit: null rates, shares of new values, means, daily volume, in this order."""
    yield from _null_rates(before, now, limits.null_rate)
    yield from _new_values(before.vocabulary, now.vocabulary, limits.new_value_share)
    yield from _means(before.vocabulary, now.vocabulary, limits.mean)
    yield from _daily_volume(before.days, now.days, limits.daily_volume)


def _null_rates(before: Profile, now: Profile, limit: float) -> Iterator[Drift]:
    for table in sorted(before.nulls.keys() & now.nulls.keys()):
        old, new = before.nulls[table], now.nulls[table]
        if old["rows"] == 0 or new["rows"] == 0:
            continue
        for column in sorted(old["columns"].keys() & new["columns"].keys()):
            rates = (old["columns"][column] / old["rows"], new["columns"][column] / new["rows"])
            if abs(rates[1] - rates[0]) > limit:
                yield Drift("null_rate", f"{table}.{column}", *rates, limit)


def _new_values(before: Vocabulary, now: Vocabulary, limit: float) -> Iterator[Drift]:
    share = _new_share(before.item_ids, now.item_ids, np.ones(len(now.item_ids)))
    if share > limit:
        yield Drift("new_value_share", "items", 0.0, share, limit)
    for name, old, new in _pairs(before, now):
        if isinstance(old, FittedCodes) and isinstance(new, FittedCodes) and len(old.values) and len(new.values):
            share = _new_share(old.values, new.values, new.frequencies.astype(np.float64))
            if share > limit:
                yield Drift("new_value_share", name, 0.0, share, limit)


def _new_share(known: pa.Array, values: pa.Array, weights: Any) -> float:
    total = float(weights.sum())
    if known.equals(values):
        return 0.0
    return float(weights[ValueTable(known).places(values) < 0].sum()) / total if total else 0.0


def _means(before: Vocabulary, now: Vocabulary, limit: float) -> Iterator[Drift]:
    for name, old, new in _pairs(before, now):
        if not (isinstance(old, FittedNumbers) and isinstance(new, FittedNumbers)) or old.scale != new.scale:
            continue
        if old.quantiles is not None and new.quantiles is not None:
            median = float(np.median(new.quantiles))
            moved = abs(float(old.scaled(np.array([median]))[0]))
            if moved > limit:
                yield Drift("mean", name, float(np.median(old.quantiles)), median, limit)
        elif abs(new.center - old.center) > limit * (old.spread if old.spread > 0 else 1.0):
            yield Drift("mean", name, old.center, new.center, limit)


def _pairs(before: Vocabulary, now: Vocabulary) -> Iterator[tuple[str, Fitted, Fitted]]:
    for side, old, new in (("item", before.item, now.item), ("user", before.user, now.user)):
        for name in sorted(old.keys() & new.keys()):
            yield f"{side}.{name}", old[name], new[name]


def _daily_volume(before: Mapping[int, int], now: Mapping[int, int], limit: float) -> Iterator[Drift]:
    """Each day after those of the previous run against that run's mean over its last four weeks.

    A day without any event is a day of 0 events, up to the last day of this run. A longer gap is one finding.
    """
    if not before:
        return
    last = max(before)
    known = [before.get(day, 0) for day in range(max(min(before), last - _VOLUME_DAYS + 1), last + 1)]
    mean = statistics.fmean(known)
    day = last + 1
    for busy in sorted(day for day in now if day > last):
        if limit < 1.0:
            yield from (Drift("daily_volume", name, mean, 0, limit) for name in _empty_days(day, busy))
        if abs(now[busy] - mean) > limit * mean:
            yield Drift("daily_volume", _date(busy), mean, now[busy], limit)
        day = busy + 1


def _empty_days(first: int, until: int) -> Iterator[str]:
    """Names of the days from ``first`` to before ``until``; more than four weeks of them are one interval."""
    if until - first > _VOLUME_DAYS:
        yield f"{_date(first)}/{_date(until - 1)}"
    else:
        yield from (_date(day) for day in range(first, until))


def _date(day: int) -> str:
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=day)).isoformat()
