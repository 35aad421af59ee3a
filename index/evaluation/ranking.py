"""Rankings of the held-out users by a bundle: what the retriever returns for them, in the catalogue of the features.

Reads a bundle through ``Retriever``. The records are those of ``index.inference.user_records``, which
``retrieve_by_id`` reads from the bundle, so that the report ranks what ``towerline retrieve`` shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from index.evaluation.measures.exact_top_k import exact_top_k
from index.evaluation.measures.metrics import without
from index.evaluation.subject import Subject
from index.retrieval.candidates import NEW_ITEMS, Candidates
from pipelines.contracts.arrays import Int32, Int64
from pipelines.progress import SILENT, Progress
from pipelines.sequences.held_out import HeldOut
from pipelines.sequences.item_sets import ItemSets

# Number of users answered at once: bounds the memory of their records and of the searcher's scores.
_USERS_AT_ONCE = 512


@dataclass(frozen=True)
class Rankings:
    """Rows for each held-out user, best first, -1 after the end of a ranking.

    served: ``[users, k] int32``, the answer as it is. novel: the answer without items the user interacted with, of the
    same length.
    """

    served: Int32
    novel: Int32


def rank(subject: Subject, k: int, *, progress: Progress = SILENT) -> Rankings:
    """Ranks all held-out users.

    The novel ranking is the same search to a larger depth, with the items the user interacted with removed; the depth
    covers the longest past in a block.

    Args:
        subject: the version that answers, and the users.
        k: how deep.
        progress: shows the users ranked.
    """
    held_out = subject.data.held_out
    served = np.full((held_out.num_users, k), -1, np.int32)
    novel = served.copy()
    # Users with pasts of similar length go together: a block is searched as deeply as its longest past needs.
    order = np.argsort(held_out.seen.counts, kind="stable")
    with progress.bar(held_out.num_users, "rank", "users") as bar:
        for block in blocks(held_out.num_users):
            places = order[block]
            seen = held_out.seen.of_users(places)
            records = subject.records(places)
            answers = subject.answers(records, k)
            served[places] = subject.rows_of_answers(answers, k)
            novel[places] = without(_deeper(subject, records, answers, k + int(seen.counts.max(initial=0))), seen, k)
            bar.advance(len(places))
    return Rankings(served, novel)


def _deeper(subject: Subject, records: list[dict[str, Any]], answers: list[Candidates], k: int) -> Int32:
    """``[records, k] int32``: the answers, extended to a larger k.

    Exact search for thousands of rows uses the implementation for many users. Its results are the same if the retriever
    only blends in the user's own items, because those are removed again.
    """
    mixed = any(answer.cold_start == "popularity" or NEW_ITEMS in answer.sources for answer in answers)
    if subject.bundle.spec.engine != "exact" or mixed:
        return subject.rows_of_answers(subject.answers(records, k), k)
    searches = subject.searches(records, answers)
    found = exact_top_k(searches.vectors, subject.bundle.vectors, k)
    return np.append(subject.to_feature_row, np.int32(-1))[found.rows]


def blocks(users: int) -> Iterator[Int64]:
    """Places of users, in blocks."""
    for start in range(0, users, _USERS_AT_ONCE):
        yield np.arange(start, min(start + _USERS_AT_ONCE, users), dtype=np.int64)


def novel_truth(held_out: HeldOut) -> ItemSets:
    """The truth without items the user had interacted with."""
    return held_out.truth.where(~held_out.truth.within(held_out.seen))


def repeated_truth(held_out: HeldOut) -> ItemSets:
    """The truth among items the user had interacted with."""
    return held_out.truth.where(held_out.truth.within(held_out.seen))
