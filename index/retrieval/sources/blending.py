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
from collections.abc import Sequence
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
    cursors = [_Cursor(ranking) for ranking in rankings]
    taker = _Taker(limits)
    last = len(cursors) - 1
    sources: list[int] = []
    places: list[int] = []
    for owner in _owners(tuple(shares), _rounded(k))[:k]:
        for source in dict.fromkeys((owner, last, *range(last))):
            place = cursors[source].next(taker)
            if place is not None:
                sources.append(source)
                places.append(place)
                break
        else:
            break
    ended = len(places) < k or all(cursor.ended for cursor in cursors)
    return Blend(np.array(sources, np.int64), np.array(places, np.int64), ended)


class _Taker:
    """Takes each row once, and only if the limits have room for it."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        self._taken: set[int] = set()
        self._groups = [limit.groups for limit in limits]
        self._room = Room(limits)

    def takes(self, row: int) -> bool:
        if row in self._taken or (self._groups and not self._room.takes([int(groups[row]) for groups in self._groups])):
            return False
        self._taken.add(row)
        return True


class _Cursor:
    """Goes down one source. What is passed over never fits again."""

    def __init__(self, ranking: Ranking) -> None:
        self._ranking = ranking
        self._rows = ranking.rows.tolist()
        self._place = 0

    @property
    def ended(self) -> bool:
        return self._ranking.exhausted and self._place == len(self._rows)

    def next(self, taker: _Taker) -> int | None:
        """The place of the next row that is taken; None if there is none."""
        while True:
            for place in range(self._place, len(self._rows)):
                if taker.takes(self._rows[place]):
                    self._place = place + 1
                    return place
            self._place = len(self._rows)
            if self._ranking.exhausted:
                return None
            self._ranking.reach(self._place + 1)
            self._rows = self._ranking.rows.tolist()


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
