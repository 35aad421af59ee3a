"""Joins: the share of events whose user and item are in their tables, and the error where it is too small."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipelines.contracts.errors import SchemaError
from pipelines.contracts.schema import DatasetSchema, Side
from pipelines.features.reporting.data_summary import UnknownIds
from pipelines.tables.rejects.place import shown

_LOG = logging.getLogger("towerline.features")
# Below this share a run warns: some events are always newer than the tables, but few.
WARN_BELOW = 0.99
# Unknown ids among which a pair is searched that differs in spelling alone.
MOST_SEARCHED = 1_000
# How two systems write one id: leading zeros, decimals of a float, blanks, dashes, upper and lower case.
_SPELLING = r"^0+|\.0*$|[\s_\-]"
# What the type int64 reads as one number.
_INTEGER = re.compile(r"\s*-?(0|[1-9][0-9]*)(\.0*)?\s*")


@dataclass(frozen=True)
class Joins:
    """How events join the tables of users and items.

    accepted: events in use; their item is known. unknown: events by side; those of an unknown item are not among the
    accepted, those of an unknown user are. A side without a table of its own has no entry.
    """

    accepted: int
    unknown: Mapping[Side, UnknownIds]

    @property
    def events(self) -> int:
        """All events that could join."""
        return self.accepted + self._of("item")

    @property
    def share(self) -> float | None:
        """Share of events whose user and item are in their tables; None without tables or events."""
        if not self.unknown or self.events == 0:
            return None
        return (self.accepted - self._of("user")) / self.events

    def share_of(self, side: Side) -> float:
        """Share of events whose user (of the accepted ones) or item is in its table."""
        among = self.accepted if side == "user" else self.events
        return 1.0 - self._of(side) / among if among else 1.0

    def _of(self, side: Side) -> int:
        return self.unknown[side].events if side in self.unknown else 0

    def require(self, schema: DatasetSchema) -> None:
        """Checks the share; warns below .99.

        Raises:
            SchemaError: it is below ``validation.min_joined``; the message has the shares of both sides, an id of the
                events next to one of the table, and what to write in the TOML.
        """
        share, least = self.share, schema.validation.min_joined
        if share is None or share >= max(least, WARN_BELOW):
            return
        if share < least:
            raise SchemaError("\n".join([f"{self._head(share)} validation.min_joined is {least:.2%}.", *self._lines()]))
        _LOG.warning("%s", "\n".join([self._head(share), *self._lines()]))

    def _head(self, share: float) -> str:
        return (
            f"tables.events: {share:.2%} of {self.events:,} events have a user and an item that are in their tables "
            f"({', '.join(f'{side}s: {self.share_of(side):.2%}' for side in self.unknown)})."
        )

    def _lines(self) -> Iterator[str]:
        for side, unknown in self.unknown.items():
            if unknown.events:
                events = "event" if unknown.events == 1 else "events"
                yield f"  {unknown.events:,} {events} of unknown {side}s{_pair(side, unknown)}"
        remedies = dict.fromkeys(_remedy(side, unknown) for side, unknown in self.unknown.items() if unknown.events)
        yield f"{'; '.join(remedies)}; or lower validation.min_joined."


def _remedy(side: Side, unknown: UnknownIds) -> str:
    """What to do, by the two ids."""
    found, known = unknown.example, unknown.known
    if found is None or known is None or _plain_text(found) != _plain_text(known):
        return f"Complete tables.{side}s"
    if _INTEGER.fullmatch(found) and _INTEGER.fullmatch(known):
        return f'Write [ids] {side} = "int64"'
    return f"Write the {side} ids of both tables in one way"


def _pair(side: Side, unknown: UnknownIds) -> str:
    if unknown.example is None:
        return ""
    known = "" if unknown.known is None else f", tables.{side}s has {shown(unknown.known)}"
    return f": events have {shown(unknown.example)}{known}"


def joins_with_examples(
    accepted: int, unknown: Mapping[Side, tuple[int, Sequence[str]]], known: Callable[[Side], pa.Array]
) -> Joins:
    """How events join the tables, with an example of each side; where they join badly, one that the table resembles.

    Args:
        accepted: number of accepted events.
        unknown: events whose id is in no table, and some of these ids as text.
        known: ids of the side's table; called only where events join badly.
    """
    joins = Joins(
        accepted, {side: UnknownIds(events, next(iter(ids), None)) for side, (events, ids) in unknown.items()}
    )
    if joins.share is None or joins.share >= WARN_BELOW:
        return joins
    pairs = {side: example_pair(ids, known(side)) for side, (_, ids) in unknown.items()}
    return Joins(accepted, {side: UnknownIds(events, *pairs[side]) for side, (events, _) in unknown.items()})


def example_pair(unknown: Sequence[str], known: pa.Array) -> tuple[str | None, str | None]:
    """An unknown id and one of the table: a pair that differs in spelling alone if there is one, else the first ones.

    Args:
        unknown: ids of the events, as text.
        known: the table's ids, int64 or string.
    """
    if not unknown or len(known) == 0:
        return (unknown[0] if unknown else None), None
    texts = known.cast(pa.string())
    places = pc.index_in(_plain(pa.array(unknown, pa.string())), value_set=_plain(texts))
    found = pc.index(pc.is_valid(places), True).as_py()
    if found < 0:
        return unknown[0], texts[0].as_py()
    return unknown[found], texts[places[found].as_py()].as_py()


def _plain(ids: pa.Array) -> pa.Array:
    """The ids without what two systems write differently; one of zeros alone is empty."""
    return pc.utf8_lower(pc.replace_substring_regex(ids, _SPELLING, ""))


def _plain_text(text: str) -> str:
    return str(_plain(pa.array([text], pa.string()))[0].as_py())
