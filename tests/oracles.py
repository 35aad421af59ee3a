"""Slow independent references: what the fast code must give, written as loops that can be checked by reading.

NumPy and plain Python only; nothing of ours is imported. Used by tests of several packages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# user, row, time, action, value, split
Event = tuple[int, int, int, int, float, int]


def top_k(scores: np.ndarray, k: int) -> list[int]:
    """The places of the k largest of ``scores [n]``, best first; of equal scores the lower place first."""
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))[:k]


def recall_figures(
    scores: np.ndarray, wanted: Sequence[set[int]], k: int, without: Sequence[set[int]] | None = None
) -> tuple[float, float, float, int]:
    """Means of recall, capped recall and NDCG over the users who want something, and the number of these.

    Args:
        scores: ``[users, items]``.
        wanted: the items each user wants.
        k: length of the ranking.
        without: items that are taken out of each user's ranking.
    """
    found = []
    for user, items in enumerate(wanted):
        if not items:
            continue
        gone = set() if without is None else without[user]
        ranking = [item for item in top_k(scores[user], scores.shape[1]) if item not in gone][:k]
        hits = [float(item in items) for item in ranking]
        most = min(k, len(items))
        gain = sum(hit / np.log2(2 + rank) for rank, hit in enumerate(hits))
        ideal = sum(1 / np.log2(2 + rank) for rank in range(most))
        found.append((sum(hits) / len(items), sum(hits) / most, gain / ideal))
    recall, capped, ndcg = np.mean(found, axis=0).tolist()
    return recall, capped, ndcg, len(found)


def grouped(events: Iterable[Event], users: Iterable[int] = ()) -> dict[int, list[Event]]:
    """Each user's events in canonical order (time, row, action, value, split), users ascending.

    ``users`` are there even without an event.
    """
    events = list(events)
    found: dict[int, list[Event]] = {user: [] for user in sorted({event[0] for event in events} | set(users))}
    for event in sorted(events, key=lambda event: (event[2], event[1], event[3], event[4], event[5])):
        found[event[0]].append(event)
    return found


def window_counts(
    owners: Iterable[int], times: Iterable[int], askers: Iterable[int], moments: Iterable[int], width: int
) -> list[int]:
    """For each asker and its moment: its events in the ``width`` before the moment, which is not counted itself."""
    events = [(int(owner), int(time)) for owner, time in zip(owners, times, strict=True)]
    return [
        sum(owner == asker and moment - width <= time < moment for owner, time in events)
        for asker, moment in zip(map(int, askers), map(int, moments), strict=True)
    ]


def history(events: Sequence[tuple[int, int]], moment: int, length: int) -> list[int]:
    """The rows of the last ``length`` of one user's ``events`` (time, row) before the moment, oldest first."""
    return [row for time, row in sorted(events) if time < moment][-length:]


def inclusion_with_replacement(share: float, draws: int, uniform: float) -> float:
    """Probability that an item is drawn: by any of ``draws``, each with the probability ``share``, or by a uniform draw
    of the part ``uniform`` of the catalogue.
    """
    absent = 1.0 - uniform
    for _ in range(draws):
        absent *= 1.0 - share
    return 1.0 - absent


def inclusion(chances: Sequence[float], users: int, drawn: int, uniform: float) -> float:
    """Probability that an item is in a batch of ``drawn`` of ``users`` users, or drawn uniformly.

    Those who took it show it with their ``chances`` when they are in the batch. User by user: ``ways[n]`` adds up, over
    the choices with n users in the batch, the probability that none of these shows it.
    """
    ways = [1.0] + [0.0] * drawn
    for user in range(users):
        hides = 1.0 - chances[user] if user < len(chances) else 1.0
        for n in range(drawn, 0, -1):
            ways[n] += ways[n - 1] * hides
    return 1.0 - (1.0 - uniform) * ways[drawn] / math.comb(users, drawn)


def taken_greedily(
    scores: np.ndarray,
    k: int,
    passes: Callable[[int], bool] = lambda row: True,
    max_per: Mapping[str, int] | None = None,
    attributes: Mapping[str, Sequence[Any]] | None = None,
) -> list[int]:
    """The k best rows that pass, taken down the exact ranking one at a time.

    Args:
        scores: ``[items]``.
        k: number of rows.
        passes: whether a row may be taken.
        max_per: how many of each value of an attribute may be taken.
        attributes: ``[items]`` values of each attribute that ``max_per`` names.
    """
    limits, values = max_per or {}, attributes or {}
    taken: dict[str, Counter[Any]] = {name: Counter() for name in limits}
    rows: list[int] = []
    for row in top_k(scores, len(scores)):
        full = any(taken[name][values[name][row]] >= most for name, most in limits.items())
        if len(rows) < k and not full and passes(row):
            rows.append(row)
            for name in limits:
                taken[name][values[name][row]] += 1
    return rows


def marginal_relevance(scores: np.ndarray, vectors: np.ndarray, diversity: float, k: int, pool: int) -> list[int]:
    """Maximal marginal relevance (Carbonell & Goldstein 1998): places in the ranking, in the order they are chosen.

    Args:
        scores: ``[n]`` descending; relevance is their place between the last of the pool (0) and the first (1).
        vectors: ``[n, dim]`` unit rows.
        diversity: weight of the largest similarity to what was chosen; relevance weighs the rest of 1.
        k: number of places.
        pool: each step chooses among this many, the best that are left.
    """
    last = scores[:pool][-1]
    relevance = (scores - last) / (scores[0] - last)
    chosen = [0]
    while len(chosen) < k:
        left = [place for place in range(len(scores)) if place not in chosen][:pool]
        worth = [
            (1 - diversity) * relevance[place] - diversity * max(vectors[place] @ vectors[one] for one in chosen)
            for place in left
        ]
        chosen.append(left[int(np.argmax(worth))])
    return chosen
