"""Exact recall over the whole corpus, in blocks of users: what training is steered by.

Pure NumPy, outside the graph; nothing is sampled.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Float32, Int32, Int64
from pipelines.contracts.top_k import top_k_batch


@dataclass(frozen=True)
class Truth:
    """Held-out items of some users, and what each had before.

    ``users [n] int32``; ``offsets [n + 1]`` into ``rows`` (unique within a user); likewise the seen items.
    """

    users: Int32
    offsets: Int64
    rows: Int32
    seen_offsets: Int64
    seen_rows: Int32

    def without_seen(self) -> Truth:
        """Truth without what a user had before; users with nothing left are dropped."""
        owner = np.repeat(np.arange(len(self.users)), np.diff(self.offsets))
        seen_owner = np.repeat(np.arange(len(self.users)), np.diff(self.seen_offsets))
        width = int(max(self.rows.max(initial=0), self.seen_rows.max(initial=0))) + 1
        return self.where(~np.isin(owner * width + self.rows, seen_owner * width + self.seen_rows))

    def where(self, wanted: npt.NDArray[np.bool_]) -> Truth:
        """Only the held-out items at which ``wanted [rows]`` is true; users with nothing left are dropped."""
        owner = np.repeat(np.arange(len(self.users)), np.diff(self.offsets))
        counts = np.bincount(owner[wanted], minlength=len(self.users))
        whole = dataclasses.replace(self, offsets=_offsets(counts), rows=self.rows[wanted])
        return whole._of(np.flatnonzero(counts))

    def spread(self, count: int) -> Truth:
        """``count`` of the users at even distances: users of neighbouring rows are often alike, in age or origin."""
        if len(self.users) <= count:
            return self
        return self._of(np.arange(count, dtype=np.int64) * len(self.users) // count)

    def of(self, users: Int32) -> Truth:
        """Only those of ``users``."""
        return self._of(np.flatnonzero(np.isin(self.users, users)))

    def _of(self, kept: npt.NDArray[np.int64]) -> Truth:
        chosen = np.zeros(len(self.users), np.bool_)
        chosen[kept] = True
        sizes, seen_sizes = np.diff(self.offsets), np.diff(self.seen_offsets)
        return Truth(
            self.users[kept],
            _offsets(sizes[kept]),
            self.rows[np.repeat(chosen, sizes)],
            _offsets(seen_sizes[kept]),
            self.seen_rows[np.repeat(chosen, seen_sizes)],
        )


def _offsets(counts: npt.NDArray[np.int64]) -> Int64:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


@dataclass(frozen=True)
class Figures:
    """Means over users, by k: recall ``hits / |truth|``, capped recall ``hits / min(k, |truth|)``, binary NDCG."""

    recall: dict[int, float]
    capped_recall: dict[int, float]
    ndcg: dict[int, float]
    users: int


def recall_at(
    users: Float32, items: Float32, truth: Truth, ks: tuple[int, ...], *, remove_seen: bool, block: int = 256
) -> Figures:
    """Ranks every item for each user of ``truth``.

    Args:
        users: ``[n, dim]`` vectors, in the order of ``truth.users``.
        items: ``[items, dim]`` vectors; of equal scores the lower row comes first.
        truth: held-out items.
        ks: lengths of the list.
        remove_seen: rank without the items a user had before.
        block: users scored at once.
    """
    return recall_of(lambda part: users[part] @ items.T, truth, ks, remove_seen=remove_seen, block=block)


def recall_of(
    score: Callable[[slice], Float32], truth: Truth, ks: tuple[int, ...], *, remove_seen: bool, block: int = 256
) -> Figures:
    """The same of any scores: ``score`` gives ``[users of the slice, items] float32``, which may be written to."""
    sizes = np.diff(truth.offsets)
    hits = np.zeros((len(sizes), max(ks)), bool)

    def rank(start: int) -> None:
        stop = min(start + block, len(sizes))
        scores = score(slice(start, stop))
        if remove_seen:
            seen = slice(truth.seen_offsets[start], truth.seen_offsets[stop])
            owner = np.repeat(np.arange(stop - start), np.diff(truth.seen_offsets[start : stop + 1]))
            scores[owner, truth.seen_rows[seen]] = -np.inf
        best = top_k_batch(scores, max(ks))
        wanted = np.zeros(scores.shape, bool)
        owner = np.repeat(np.arange(stop - start), sizes[start:stop])
        wanted[owner, truth.rows[truth.offsets[start] : truth.offsets[stop]]] = True
        found = np.take_along_axis(wanted, best, axis=1)
        hits[start:stop, : found.shape[1]] = found

    # NumPy holds no lock while it multiplies and selects.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(rank, range(0, len(sizes), block)))
    return _figures(hits, sizes, ks)


def _figures(hits: npt.NDArray[np.bool_], sizes: Int64, ks: tuple[int, ...]) -> Figures:
    discounts = 1.0 / np.log2(np.arange(hits.shape[1]) + 2.0)
    gains = np.cumsum(hits * discounts, axis=1)
    ideal = np.cumsum(discounts)
    counts = np.cumsum(hits, axis=1)
    recall, capped, ndcg = {}, {}, {}
    for k in ks:
        reachable = np.minimum(sizes, k)
        recall[k] = float(np.mean(counts[:, k - 1] / sizes)) if len(sizes) else 0.0
        capped[k] = float(np.mean(counts[:, k - 1] / reachable)) if len(sizes) else 0.0
        ndcg[k] = float(np.mean(gains[:, k - 1] / ideal[reachable - 1])) if len(sizes) else 0.0
    return Figures(recall, capped, ndcg, len(sizes))
