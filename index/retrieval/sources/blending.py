"""Several sources in one answer: the towers' candidates, the user's own items, and new ads.

Each place of an answer belongs to a source by the shares alone, evenly spread, and is filled with the best item of that
source that may still come; if it has none, with one of the last source, the towers'. So the order does not depend on
how many candidates are asked for, a rule that forbids an item forbids it in every source, and limits apply to all
sources together. New ads have reserved places because, where vector lengths are free, they rank behind the ads that
have sold.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from index.retrieval.sources.ranking import Ranking
from index.rules.crowding import Limit, Room
from pipelines.contracts.arrays import Int64

# Places are laid out for at least this many candidates, and kept.
_LEAST_PLACES = 128


@dataclass(frozen=True)
class Blend:
    """The answer's places: ``sources [n] int64`` which source fills it, ``places [n] int64`` with which of its items.

    ended: no source has an item left.
    """

    sources: Int64
    places: Int64
    ended: bool


def blended(rankings: Sequence[Ranking], shares: Sequence[float], k: int, limits: tuple[Limit, ...] = ()) -> Blend:
    """Returns the first k places of the blend, or all if the sources have fewer items.

    In every beginning a source has its share until it is exhausted, to within half an item between two sources, and
    ``1/2 + share * (n - 2) / 2`` items among n (its j-th place is that of Sainte-Laguë apportionment). An item of
    several sources comes once. An item that a limit has no room for is left out, and the next of its source follows.

    Args:
        rankings: the sources, which go on as far as needed. The last one fills the places of exhausted ones.
        shares: share of each source. At equal places the earlier source comes first.
        k: 1 or more.
        limits: maximum number of items of each group, over all sources.
    """
    taker = _Taker(limits)
    walks = [_taken(ranking, taker) for ranking in rankings]
    last = len(rankings) - 1
    # Those that may fill the places of each source.
    fillers = [list(dict.fromkeys((owner, last, *range(last)))) for owner in range(last + 1)]
    sources: list[int] = []
    places: list[int] = []
    ends = [0] * len(rankings)
    for owner in _owners(tuple(shares), _rounded(k))[:k]:
        while fillers[owner]:
            source = fillers[owner][0]
            place = next(walks[source], None)
            if place is not None:
                sources.append(source)
                places.append(place)
                ends[source] = place + 1
                break
            ends[source] = len(rankings[source].rows)
            fillers = [[one for one in of if one != source] for of in fillers]
    left = any(not one.exhausted or end < len(one.rows) for one, end in zip(rankings, ends, strict=True))
    return Blend(np.array(sources, np.int64), np.array(places, np.int64), ended=not left)


class _Taker:
    """Rows that were taken, and the room that limits leave."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self.rows: set[int] = set()
        self.groups = [limit.groups for limit in limits]
        self.room = Room(limits)


def _taken(ranking: Ranking, taker: _Taker) -> Iterator[int]:
    """Takes the next row that is not taken and has room; gives its place. What is passed over never fits again."""
    start, rows, groups, takes = 0, taker.rows, taker.groups, taker.room.takes
    while True:
        known = ranking.rows[start:].tolist()
        for place, row in enumerate(known, start):
            if row not in rows and (not groups or takes([int(group[row]) for group in groups])):
                rows.add(row)
                yield place
        start += len(known)
        if ranking.exhausted:
            return
        ranking.reach(start + 1)


def _rounded(k: int) -> int:
    return max(_LEAST_PLACES, 1 << (k - 1).bit_length())


@functools.lru_cache(maxsize=32)
def _owners(shares: tuple[float, ...], n: int) -> list[int]:
    """The source that each of the first n places belongs to."""
    wanted = [(np.arange(n) + 0.5) / share if share > 0 else np.full(n, np.inf) for share in shares]
    # Stable: items at the same place stay in the order of the sources.
    order = np.argsort(np.concatenate(wanted), kind="stable")[:n]
    owners: list[int] = (order // n).tolist()
    return owners


def places_of(k: int, share: float) -> int:
    """Number of items of one source to look for at first: about what the first k places of a blend hold."""
    return math.ceil(share * k)
