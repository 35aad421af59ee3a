"""The joins that a run of the features job found, with an example of each side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.contracts.files import read_arrow
from pipelines.contracts.schema import Side
from pipelines.features.planning import FeaturesPlan
from pipelines.features.reporting.data_summary import UnknownIds
from pipelines.features.reporting.joins import WARN_BELOW, Joins, example_pair
from pipelines.features.reporting.unknown import read_unknown
from pipelines.features.totals import PartitionFacts
from pipelines.sequences.segments import joined

# Unknown ids among which a pair is searched that differs in spelling alone.
_SEARCHED = 1_000


def joins_of(plan: FeaturesPlan, parts: Sequence[PartitionFacts], accepted: int) -> Joins:
    """How the accepted events (their number) and those of unknown items join the tables."""
    unknown: dict[Side, UnknownIds] = {}
    texts: dict[Side, list[str]] = {}
    if plan.inputs.users is not None:
        texts["user"] = [text for part in parts for text in part.strangers][:_SEARCHED]
        unknown["user"] = UnknownIds(sum(part.unknown for part in parts), next(iter(texts["user"]), None))
    if plan.inputs.items is not None:
        table = read_unknown(Path(plan.job.out))
        ids = pa.array([], pa.string()) if table is None else joined(table["item_id"]).drop_null().unique()
        texts["item"] = ids.slice(0, _SEARCHED).cast(pa.string()).to_pylist()
        unknown["item"] = UnknownIds(0 if table is None else len(table), next(iter(texts["item"]), None))
    joins = Joins(accepted, unknown)
    if joins.share is None or joins.share >= WARN_BELOW:
        return joins
    paired = {side: _paired(plan, side, one, texts[side]) for side, one in unknown.items()}
    return dataclasses.replace(joins, unknown=paired)


def _paired(plan: FeaturesPlan, side: Side, unknown: UnknownIds, texts: Sequence[str]) -> UnknownIds:
    example, known = example_pair(texts, plan.items.ids if side == "item" else _profiled(plan))
    return dataclasses.replace(unknown, example=example, known=known)


def _profiled(plan: FeaturesPlan) -> pa.Array:
    """The ids of the users table, as they were spilled."""
    paths = sorted((Path(plan.job.work) / "spill").glob("users-*.arrow"))
    return joined(
        pa.chunked_array([pa.array([], plan.job.id_type), *(c for p in paths for c in read_arrow(p)["user_id"].chunks)])
    )
