"""Repeats: events of a user that equal another one in everything: item, time, action and value.

Works on sorted sequences, in which they are adjacent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.sequences.grouping import Grouped, bisect, places_of


def repeats(grouped: Grouped, *, by_split: bool) -> npt.NDArray[np.bool_]:
    """``[events] bool``: exact duplicates of the event before them; the canonical order makes them adjacent.

    ``by_split``: events of two splits differ, because a column of the table holds the split.
    """
    found = np.zeros(len(grouped.rows), bool)
    owners = grouped.owners
    after = np.flatnonzero((grouped.times[1:] == grouped.times[:-1]) & (owners[1:] == owners[:-1])) + 1
    for column in _identity(grouped, by_split):
        after = after[column[after] == column[after - 1]]
    found[after] = True
    return found


def known_already(base: Grouped, new: Grouped, *, by_split: bool) -> npt.NDArray[np.bool_]:
    """``[events] bool`` for ``new``: whether ``base`` has an exact duplicate; ``by_split`` as in ``repeats``."""
    places = places_of(new.user_ids, base.user_ids)[new.owners]
    known = np.flatnonzero(places >= 0)
    low, high = base.offsets[places[known]], base.offsets[places[known] + 1]
    at = bisect(base.times, low, high, new.times[known] - 1)  # The first event of the moment.
    found = np.zeros(len(new.rows), bool)
    while len(known):
        inside = at < high
        known, at, high = known[inside], at[inside], high[inside]
        same_time = base.times[at] == new.times[known]
        known, at, high = known[same_time], at[same_time], high[same_time]
        equal = np.ones(len(known), bool)
        for old, column in zip(_identity(base, by_split), _identity(new, by_split), strict=True):
            equal &= old[at] == column[known]
        found[known[equal]] = True
        known, at, high = known[~equal], at[~equal] + 1, high[~equal]
    return found


def _identity(grouped: Grouped, by_split: bool) -> list[npt.NDArray[Any]]:
    columns: list[npt.NDArray[Any]] = [grouped.rows, grouped.actions, grouped.values]
    return [*columns, grouped.splits] if by_split else columns
