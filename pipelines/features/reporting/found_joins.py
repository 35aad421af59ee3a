"""The joins that a run of the features job found, with an example of each side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipelines.contracts.files import read_arrow
from pipelines.contracts.schema import Side
from pipelines.features.planning import FeaturesPlan
from pipelines.features.reporting.joins import MOST_SEARCHED, Joins, joins_with_examples
from pipelines.features.reporting.unknown import read_unknown
from pipelines.features.totals import PartitionFacts
from pipelines.sequences.segments import joined


def joins_of(plan: FeaturesPlan, parts: Sequence[PartitionFacts], accepted: int) -> Joins:
    """How the accepted events (their number) and those of unknown items join the tables."""
    unknown: dict[Side, tuple[int, Sequence[str]]] = {}
    if plan.inputs.users is not None:
        ids = [text for part in parts for text in part.unknown_users]
        unknown["user"] = (sum(part.unknown for part in parts), ids[:MOST_SEARCHED])
    if plan.inputs.items is not None:
        table = read_unknown(Path(plan.job.out), plan.job.window)
        found = pa.array([], pa.string()) if table is None else joined(table["item_id"]).drop_null().unique()
        texts = found.slice(0, MOST_SEARCHED).cast(pa.string()).to_pylist()
        unknown["item"] = (0 if table is None else len(table), texts)
    return joins_with_examples(accepted, unknown, lambda side: plan.items.ids if side == "item" else _profiled(plan))


def _profiled(plan: FeaturesPlan) -> pa.Array:
    """The ids of the users table, as they were spilled."""
    paths = sorted((Path(plan.job.work) / "spill").glob("users-*.arrow"))
    return joined(
        pa.chunked_array([pa.array([], plan.job.id_type), *(c for p in paths for c in read_arrow(p)["user_id"].chunks)])
    )
