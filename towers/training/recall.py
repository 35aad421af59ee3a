"""Exact recall over the whole corpus, in blocks of users; early stopping uses it.

Pure NumPy, outside the TensorFlow graph; nothing is sampled.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contracts.arrays import Float32, Int64
from pipelines.contracts.top_k import top_k_batch
from pipelines.sequences.event_lists import owners_of
from pipelines.sequences.held_out import HeldOut


@dataclass(frozen=True)
class Figures:
    """Means over users, by k: recall ``hits / |truth|``, capped recall ``hits / min(k, |truth|)``, binary NDCG."""

    recall: dict[int, float]
    capped_recall: dict[int, float]
    ndcg: dict[int, float]
    users: int


def recall_at(
    users: Float32, items: Float32, held_out: HeldOut, ks: tuple[int, ...], *, remove_seen: bool, block: int = 256
) -> Figures:
    """Ranks every item for each user of ``held_out``.

    Args:
        users: ``[n, dim]`` vectors, in the order of ``held_out.users``.
        items: ``[items, dim]`` vectors; with equal scores, the lower row comes first.
        held_out: the truth, and the items to leave out.
        ks: cut-offs.
        remove_seen: rank without the items a user had before.
        block: number of users scored at once.
    """
    return recall_of(lambda part: users[part] @ items.T, held_out, ks, remove_seen=remove_seen, block=block)


def recall_of(
    score: Callable[[slice], Float32], held_out: HeldOut, ks: tuple[int, ...], *, remove_seen: bool, block: int = 256
) -> Figures:
    """The same for any scores: ``score`` returns ``[users of the slice, items] float32``, which may be overwritten."""
    truth, removed = held_out.truth, held_out.seen
    sizes = truth.counts
    hits = np.zeros((len(sizes), max(ks)), bool)

    def rank(start: int) -> None:
        stop = min(start + block, len(sizes))
        scores = score(slice(start, stop))
        if remove_seen:
            owner = owners_of(removed.offsets[start : stop + 1])
            scores[owner, removed.rows[removed.offsets[start] : removed.offsets[stop]]] = -np.inf
        best = top_k_batch(scores, max(ks))
        wanted = np.zeros(scores.shape, bool)
        owner = owners_of(truth.offsets[start : stop + 1])
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
