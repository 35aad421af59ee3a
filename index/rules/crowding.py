"""Crowding: limits the number of candidates per advertiser (or any other attribute), best first.

The selection is greedy: going down the ranking, an item is taken unless its group is full. Items whose attribute is
null belong to no group.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from index.rules.attributes import Attributes
from index.search.searcher import Rows
from pipelines.contracts.errors import SchemaError


@dataclass(frozen=True)
class Limit:
    """At most ``most`` items of each group. groups: ``[items] int32``, -1 is no group."""

    attribute: str
    groups: npt.NDArray[np.int32]
    most: int


def limits_of(max_per: Mapping[str, int] | None, attributes: Attributes) -> tuple[Limit, ...]:
    """Reads ``max_per``.

    Raises:
        SchemaError: not a mapping of attributes to whole numbers of 1 or more, or an attribute is unknown or a list.
    """
    if max_per is None:
        return ()
    if not isinstance(max_per, Mapping):
        raise SchemaError(f"max_per: expected a mapping such as {{'advertiser_id': 2}}, got {max_per!r:.80}")
    limits = []
    for name, most in max_per.items():
        if not isinstance(name, str):
            raise SchemaError(f"max_per: expected an attribute's name, got {name!r:.80}")
        if isinstance(most, bool) or not isinstance(most, int | np.integer) or most < 1:
            raise SchemaError(f"max_per: {name!r}: expected a whole number of 1 or more, got {most!r:.80}")
        limits.append(Limit(name, attributes.groups(name), int(most)))
    return tuple(limits)


def within_limits(rows: Rows, limits: tuple[Limit, ...]) -> npt.NDArray[np.intp]:
    """Returns the places of ``rows [n]`` (best first) that greedy selection keeps, ascending."""
    if len(limits) == 1:
        return np.flatnonzero(_rank_in_group(limits[0].groups[rows]) < limits[0].most)
    return _greedy(rows, limits)


def _rank_in_group(groups: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """``[n]`` how many of the same group come before; 0 for rows without a group."""
    n = len(groups)
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    first = np.ones(n, bool)
    first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(first)
    ranks = np.empty(n, np.int64)
    ranks[order] = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
    ranks[groups < 0] = 0
    return ranks


def _greedy(rows: Rows, limits: tuple[Limit, ...]) -> npt.NDArray[np.intp]:
    """Several limits at once: an item refused by one takes no place in the groups of the others."""
    columns = [limit.groups[rows].tolist() for limit in limits]
    room = Room(limits)
    kept = [place for place, groups in enumerate(zip(*columns, strict=True)) if room.takes(groups)]
    return np.array(kept, np.intp)


class Room:
    """What limits leave room for while items are taken one by one."""

    def __init__(self, limits: tuple[Limit, ...]) -> None:
        """Nothing is taken yet."""
        self._most = [limit.most for limit in limits]
        self._taken: list[dict[int, int]] = [{} for _ in limits]

    def takes(self, groups: Sequence[int]) -> bool:
        """Takes an item if there is room in all its groups, one per limit; -1 is no group."""
        for taken, group, most in zip(self._taken, groups, self._most, strict=True):
            if group >= 0 and taken.get(group, 0) >= most:
                return False
        for taken, group in zip(self._taken, groups, strict=True):
            taken[group] = taken.get(group, 0) + 1
        return True


def expected_fetch(k: int, limits: tuple[Limit, ...], shares: Mapping[str, npt.NDArray[np.float64]]) -> int:
    """How many of the best to fetch so that about k remain, if groups were spread evenly over the ranking.

    Args:
        k: candidates wanted.
        limits: what restricts them.
        shares: by attribute, the share of items without a group, then each group's share of the catalogue.
    """
    fetch = k
    for limit in limits:
        share = shares[limit.attribute]
        while fetch < 64 * k:
            survivors = fetch * share[0] + np.minimum(fetch * share[1:], limit.most).sum()
            if survivors >= 1.15 * k:
                break
            fetch = fetch * 3 // 2 + 1
    return fetch
