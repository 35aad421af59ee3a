"""Asking: versions answer the users of a day, and each answer is measured against what they chose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from index.evaluation.measures.bootstrap import bootstrap, paired_bootstrap
from index.evaluation.measures.exact_top_k import exact_top_k
from index.evaluation.measures.metrics import user_metrics, without
from index.retrieval.candidates import Candidates
from index.retrieval.live.version import settings_of
from index.retrieval.retriever import Retriever
from pipelines.contracts.arrays import Float64, Int32, Int64
from pipelines.contracts.files import write_parquet
from pipelines.progress import SILENT, Progress
from towerline.jobs.replay.rows import PARTS, Arm, Measured, PartName
from towerline.jobs.replay.truth import DayTruth

K = 100
_USERS_AT_ONCE = 512


@dataclass(frozen=True)
class Asked:
    """One version's answers, as rows of the day's catalogue, -1 after the end of an answer.

    served: ``[users, 100] int32``. novel: the answer with the user's earlier items excluded.
    """

    served: Int32
    novel: Int32

    def recalls(self, day: DayTruth) -> dict[PartName, Float64]:
        """``[users] float64`` recall@100 by part of the truth, NaN for a user without any."""
        pairs = {
            "all": (self.served, day.truth),
            "novel": (self.novel, day.novel_truth),
            "new": (self.served, day.new_truth),
        }
        return {part: user_metrics(*pairs[part], (K,)).at("recall", K) for part in PARTS}


def ask(day: DayTruth, bundle: Path, *, progress: Progress = SILENT) -> Asked:
    """Asks a bundle for every user of a day, as an ad server does.

    Raises:
        ArtifactError: the bundle is damaged.
    """
    served = np.full((day.num_users, K), -1, np.int32)
    novel = served.copy()
    with Retriever.open(bundle, verify=False) as retriever, progress.bar(day.num_users, "asking", "users") as bar:
        for start in range(0, day.num_users, _USERS_AT_ONCE):
            users = np.arange(start, min(start + _USERS_AT_ONCE, day.num_users), dtype=np.int64)
            records = day.records(users)
            served[users] = _rows(day, retriever.retrieve_batch(records, K))
            novel[users] = _novel(day, retriever, users, records)
            bar.advance(len(users))
    return Asked(served, novel)


def _novel(day: DayTruth, retriever: Retriever, users: Int64, records: list[dict[str, Any]]) -> Int32:
    """``[users, 100] int32``: the answers when each user's earlier items are excluded.

    With exact search and the towers alone to fill the places, it is one deeper search for all users at once, whose
    results are the same.
    """
    bundle = retriever.bundle
    if bundle.spec.engine == "exact" and settings_of(bundle).new_items_share == 0.0:
        warm = np.array([bool(record.get("history")) for record in records], np.bool_)
    else:
        warm = np.zeros(len(records), np.bool_)
    novel = np.full((len(records), K), -1, np.int32)
    if warm.any():
        vectors = np.stack([retriever.embed(record) for record, one in zip(records, warm, strict=True) if one])
        seen = day.seen.of_users(users[warm])
        found = exact_top_k(vectors, bundle.vectors, K + int(seen.counts.max(initial=0)))
        novel[warm] = without(day.places.places(bundle.vocabulary.item_ids)[found.rows], seen, K)
    for place in np.flatnonzero(~warm).tolist():
        answer = retriever.retrieve(records[place], K, exclude=day.seen_ids(int(users[place])))
        novel[place] = _rows(day, [answer])[0]
    return novel


def _rows(day: DayTruth, answers: list[Candidates]) -> Int32:
    """``[answers, 100] int32`` rows of the day's catalogue."""
    rows = np.full((len(answers), K), -1, np.int32)
    lengths = np.array([len(answer) for answer in answers], np.int64)
    ids = [pa.array(answer.item_ids) for answer in answers if len(answer)]
    if ids:
        rows[np.arange(K) < lengths[:, None]] = day.places.places(pa.concat_arrays(ids))
    return rows


@dataclass(frozen=True)
class DayValues:
    """Recall@100 of every user of a day: ``[users] float64`` by arm and part."""

    user_ids: pa.Array
    values: Mapping[Arm, Mapping[PartName, Float64]]

    def write(self, file: Path) -> None:
        """Writes one line per user."""
        columns = {f"{arm}_{part}": found for arm, parts in self.values.items() for part, found in parts.items()}
        write_parquet(pa.table({"user_id": self.user_ids, **columns}), file)

    def measured(self) -> dict[Arm, dict[PartName, Measured]]:
        """Means over the users with their intervals."""
        return {arm: {part: _mean(found) for part, found in parts.items()} for arm, parts in self.values.items()}

    def false_alarm(self) -> bool | None:
        """Whether a refused bundle would not have been certainly worse than the live one; None if none was refused."""
        if "refused" not in self.values or "fresh" not in self.values:
            return None
        difference = paired_bootstrap(self.values["fresh"]["all"], self.values["refused"]["all"])
        return None if difference.users == 0 else not difference.high < 0.0


def _mean(values: Float64) -> Measured:
    interval = bootstrap(values)[0]
    return Measured(recall=interval.mean, interval=(interval.low, interval.high), users=interval.users)


def churn(before: Asked, after: Asked) -> float | None:
    """Mean share of a user's top 100 that the answers before do not have; None if nobody got an answer."""
    shares = [
        1.0 - np.isin(new[new >= 0], old[old >= 0]).mean()
        for old, new in zip(before.served, after.served, strict=True)
        if (new >= 0).any()
    ]
    return float(np.mean(shares)) if shares else None
