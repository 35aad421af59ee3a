"""Answers many records from one version: while one part is searched, the next is embedded.

Embedding holds the interpreter's lock and searching does not, so this keeps two cores busy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from index.inference.records import Request
from index.retrieval.answer import NO_RULES, answer, cold_start, unfiltered
from index.retrieval.candidates import Candidates, ColdStart
from index.retrieval.live.version import ServingVersion
from index.search.searcher import Neighbors, Vectors
from pipelines.contracts.errors import SchemaError

# Records per part: two cores search them in about 10 ms; small next to a batch, large next to a thread switch.
PART = 256


@dataclass(frozen=True, slots=True)
class Embedded:
    """A part ready to be searched: ``queries [part, dim] float32``, zeros where a user is answered by popularity."""

    queries: Vectors
    requests: list[Request]
    colds: list[ColdStart | None]


def answer_batch(live: ServingVersion, records: Sequence[Mapping[str, Any]], k: int, depth: int) -> list[Candidates]:
    """Returns the answer to each record, in order. See ``Retriever.retrieve_batch``.

    Args:
        live: the version.
        records: any number.
        k: candidates for each.
        depth: from ``search_depth``: how many rows to search for.
    """
    if len(records) <= PART:
        part = embedded(live, records, 0)
        return _answers(live, part, live.searcher.search_batch(part.queries, depth), k) if len(records) else []
    answers: list[Candidates] = []
    with ThreadPoolExecutor(1, thread_name_prefix="towerline-batch") as pool:
        waiting: tuple[Embedded, Future[Neighbors]] | None = None
        for start in range(0, len(records), PART):
            part = embedded(live, records[start : start + PART], start)
            searching = pool.submit(live.searcher.search_batch, part.queries, depth)
            if waiting is not None:
                answers += _answers(live, waiting[0], waiting[1].result(), k)
            waiting = part, searching
        assert waiting is not None
        answers += _answers(live, waiting[0], waiting[1].result(), k)
    return answers


def embedded(live: ServingVersion, records: Sequence[Mapping[str, Any]], start: int) -> Embedded:
    """Reads and embeds a part of the records; ``start``: place of its first, for messages."""
    part = Embedded(np.zeros((len(records), live.tower.dim), np.float32), [], [])
    for place, record in enumerate(records):
        try:
            request = live.reader.read(record)
            cold = cold_start(live, request, record)
            if cold != "popularity":
                live.tower.embed_into(part.queries[place], request, record)
                if not live.tells(part.queries[place]):
                    part.queries[place], cold = 0.0, "popularity"
        except SchemaError as err:
            raise SchemaError(f"records[{start + place}]: {err}") from err
        part.requests.append(request)
        part.colds.append(cold)
    return part


def _answers(live: ServingVersion, part: Embedded, found: Neighbors, k: int) -> list[Candidates]:
    full = found.rows.shape[1] > 0 and bool((found.rows[:, -1] >= 0).all())
    return [
        answer(live, None, k, NO_RULES, cold=cold, request=request)
        if cold == "popularity"
        else unfiltered(live, Neighbors(rows, scores) if full else _unpadded(rows, scores), k, cold, request.unknown)
        for request, cold, rows, scores in zip(part.requests, part.colds, found.rows, found.scores, strict=True)
    ]


def _unpadded(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32]) -> Neighbors:
    n = int(np.count_nonzero(rows >= 0))
    return Neighbors(rows[:n], scores[:n])
