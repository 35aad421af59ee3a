"""Rankings of the held-out users by a bundle: what the retriever returns for them, in the catalogue of the features.

Reads a bundle through ``Retriever``; writes nothing. The records are those of ``index.users``, the ones that
``retrieve_by_id`` reads out of the bundle, so that the report ranks what ``towerline retrieve`` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from index.evaluation.metrics import without
from index.evaluation.truth import HeldOut, Int32, Int64, Pairs
from index.retriever import Retriever
from index.users import records_of, user_table
from pipelines.schema import DatasetSchema
from pipelines.vocabulary import ValueTable

# Users answered at once: bounds the memory of their records and of the searcher's scores.
_USERS_AT_ONCE = 512


@dataclass(frozen=True)
class Rankings:
    """Rows for each held-out user, best first, -1 where a ranking has ended.

    served: ``[users, k] int32``, the answer as it is. novel: the answer without what the user has met, as long.
    """

    served: Int32
    novel: Int32


@dataclass(frozen=True)
class Asked:
    """The held-out users as the retriever is asked about them.

    features, schema: where their records come from. item_ids: the features' catalogue in row order.
    """

    features: Path
    schema: DatasetSchema
    item_ids: pa.Array
    held_out: HeldOut

    def records(self, places: Int64) -> list[dict[str, Any]]:
        """Raw records of some held-out users (``[n]`` places among them)."""
        return records_of(user_table(self.features, self.schema, self.item_ids, self.held_out.users[places]))

    def blocks(self) -> Iterator[Int64]:
        """Places of the held-out users, block by block."""
        for start in range(0, self.held_out.num_users, _USERS_AT_ONCE):
            yield np.arange(start, min(start + _USERS_AT_ONCE, self.held_out.num_users), dtype=np.int64)


def rows_of_version(version_ids: pa.Array, feature_ids: pa.Array) -> Int32:
    """``[items of the version] int32``: each one's row in the features' catalogue, -1 where that has no such item."""
    return ValueTable(feature_ids).places(version_ids)


def rank(retriever: Retriever, version_ids: pa.Array, asked: Asked, k: int, *, progress: bool = True) -> Rankings:
    """Ranks all held-out users.

    The novel ranking is the same search looked at more deeply, with what the user met taken out: as deep as the
    longest past in its block asks for.

    Args:
        retriever: the version that answers.
        version_ids: item ids of that version, in its row order.
        asked: the users.
        k: how deep.
        progress: show a bar.
    """
    held_out = asked.held_out
    to_feature_row = np.append(rows_of_version(version_ids, asked.item_ids), np.int32(-1))
    served = np.full((held_out.num_users, k), -1, np.int32)
    novel = served.copy()
    bar = tqdm(total=held_out.num_users, desc="rank", unit="user", disable=not progress)
    for places in asked.blocks():
        seen = held_out.seen.of_users(places)
        found = _answers(retriever, asked.records(places), k + int(seen.counts.max(initial=0)))
        ranked = to_feature_row[found]
        served[places] = ranked[:, :k] if ranked.shape[1] >= k else _widened(ranked, k)
        novel[places] = without(ranked, seen, k)
        bar.update(len(places))
    bar.close()
    return Rankings(served, novel)


def _answers(retriever: Retriever, records: list[dict[str, Any]], k: int) -> Int32:
    answers = retriever.retrieve_batch(records, k)
    rows = np.full((len(answers), k), -1, np.int32)
    for line, answer in zip(rows, answers, strict=True):
        line[: len(answer.rows)] = answer.rows
    return rows


def _widened(ranked: Int32, k: int) -> Int32:
    padded = np.full((len(ranked), k), -1, np.int32)
    padded[:, : ranked.shape[1]] = ranked
    return padded


def novel_truth(held_out: HeldOut) -> Pairs:
    """The truth without what the user had met."""
    return held_out.truth.where(~held_out.truth.within(held_out.seen))


def repeated_truth(held_out: HeldOut) -> Pairs:
    """The part of the truth that the user had met."""
    return held_out.truth.where(held_out.truth.within(held_out.seen))
